"""What a search for similar objects answers: the same record in this process, over HTTP and for a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

By = Literal["all", "light-curve", "spectrum", "metadata"]
"""Which embeddings are compared, as people name them: of all that is known together, or of one modality."""
BY: Final[tuple[By, ...]] = get_args(By)
MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class SimilarObject:
    """A live object, and how similar it is."""

    survey: str
    object_id: str
    similarity: float
    """Cosine between the two embeddings, 1 for the same. Across modalities only the order means something."""
    class_name: str
    probability: float
    ra: float
    """ICRS degrees, as ``dec``."""
    dec: float
    magnitude: float | None
    """AB, of the median total flux."""
    detections: int
    modalities: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For JSON, by the names that annotations have."""
        found = {_JSON_NAMES.get(one.name, one.name): getattr(self, one.name) for one in fields(self)}
        return found | {"modalities": list(self.modalities)}

    @staticmethod
    def of_record(found: Mapping[str, Any]) -> SimilarObject:
        """The inverse of ``record``; raises KeyError where a field is missing."""
        values = {one.name: found[_JSON_NAMES.get(one.name, one.name)] for one in fields(SimilarObject)}
        return SimilarObject(**values | {"modalities": tuple(found["modalities"])})


_JSON_NAMES: Final = {"object_id": "objectId", "class_name": "class"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found, the most similar first."""

    matches: tuple[SimilarObject, ...]
    complete: bool
    """False where a filter left fewer than were asked for, and there may be more."""
