"""What makes statistics comparable: those of stars that the model was not trained on, in the file beside the set.

One file for each reference set, ``reference_set.scores.npz`` for ``reference_set.npz``; it names the set's version, and
with it the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import MIN_CALIBRATION, ReferenceSet
from broker.anomaly.shape import SHAPE, Shapes
from broker.anomaly.statistics import DISTANCES, OTHERS, SPACES, ClassCentres, class_centres
from broker.anomaly.tails import Tail
from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from broker.npz import from_npz, to_npz

FORMAT: Final = 3
"""Of the file; 1, without shapes, and 2, without the stars of each class and their density, were those of earlier
releases."""
COMBINED: Final = ("combined", "combined with catalogue")
COLUMNS: Final = (*(f"all.{name}" for name in DISTANCES), *OTHERS)
"""Statistics that are calibrated in the stratum of all modalities of an object; those of one modality of several are
calibrated in the stratum of that modality alone, where they are ``all``."""
NOT_COUNTED: Final = ("mahalanobis", "centroid")
"""Of DISTANCES: shown, but no part of the combined score, since they tell a class left out no better."""
REMAKE: Final = "make both again with `python -m training reference-set`"
_ARRAYS: Final = (
    "format", "model", "reference_version", "columns", "whitening", "strata", "values", "shape_strata", "shapes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Calibration:
    """Statistics of m calibration stars, and the axes that the Mahalanobis distance is measured along."""

    model: str
    reference_version: str
    whitening: NDArray[np.float32]
    """(7, p, d) for each subset of the modalities, by its code less one: scatter within classes to a unit matrix."""
    strata: NDArray[np.int32]
    """(m,) numbers of ``strata_of``."""
    values: NDArray[np.float32]
    """(m, COLUMNS and COMBINED); NaN where a star has no such statistic."""
    shapes: Shapes = field(default_factory=Shapes.none)
    """Of known stars, from which ``shape`` is measured."""
    tails: Mapping[int, Mapping[str, Tail]] = field(init=False)
    """By stratum and column, where there are MIN_CALIBRATION stars."""

    def __post_init__(self) -> None:
        """Sort by stratum."""
        tails: dict[int, dict[str, Tail]] = {}
        for number in np.unique(self.strata).tolist():
            own = self.values[self.strata == number]
            columns = {
                name: column[~np.isnan(column)] for name, column in zip((*COLUMNS, *COMBINED), own.T, strict=True)
            }
            tails[number] = {name: Tail(c) for name, c in columns.items() if len(c) >= MIN_CALIBRATION}
        object.__setattr__(self, "tails", tails)

    def check(self, reference: ReferenceSet) -> None:
        """Raise ConfigurationError unless it was made for this reference set."""
        if (self.model, self.reference_version) != (reference.model, reference.version):
            raise ConfigurationError(
                f"the calibration of anomaly scores is that of reference set {self.reference_version} of {self.model}, "
                f"the reference set is {reference.version} of {reference.model}: scores of two spaces have nothing in "
                f"common; {REMAKE}"
            )
        if self.whitening.shape[2] != reference.embeddings.shape[1]:
            raise ConfigurationError(
                f"the calibration of anomaly scores is of embeddings of {self.whitening.shape[2]} values, the "
                f"reference set of {reference.embeddings.shape[1]}; {REMAKE}"
            )

    def to_bytes(self) -> bytes:
        """As one .npz file."""
        return to_npz(
            format=np.array(FORMAT, np.int32),
            model=self.model,
            reference_version=self.reference_version,
            columns=(*COLUMNS, *COMBINED),
            whitening=self.whitening.astype(np.float16),
            strata=self.strata.astype(np.int32),
            values=self.values.astype(np.float32),
            shape_strata=self.shapes.strata,
            shapes=self.shapes.values,
        )

    @staticmethod
    def from_bytes(data: bytes, origin: str) -> Calibration:
        """The inverse of ``to_bytes``; raises ConfigurationError, naming ``origin``, for anything else."""
        refusal = f"{origin} is no calibration of anomaly scores"
        arrays = from_npz(data, None, refusal, f"; {REMAKE}")
        if "reference_version" in arrays and "shapes" not in arrays:
            raise ConfigurationError(f"{origin} is a calibration of anomaly scores of an earlier release; {REMAKE}")
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise ConfigurationError(f"{refusal}: there is no {', '.join(missing)}; {REMAKE}")
        return _checked(arrays, origin)


def _checked(arrays: dict[str, NDArray[Any]], origin: str) -> Calibration:
    def refuse(problem: str) -> ConfigurationError:
        return ConfigurationError(f"{origin} cannot be used as a calibration of anomaly scores: {problem}; {REMAKE}")

    if arrays["format"].shape or int(arrays["format"]) != FORMAT:
        raise refuse(f"format {arrays['format']}, this release reads {FORMAT}")
    columns = [*COLUMNS, *COMBINED]
    if arrays["columns"].astype(str).tolist() != columns:
        raise refuse(f"columns {arrays['columns'].tolist()}, expected {columns}")
    whitening, strata, values = arrays["whitening"].astype(np.float32), arrays["strata"], arrays["values"]
    if whitening.ndim != 3 or len(whitening) != (1 << len(MODALITIES)) - 1 or not np.isfinite(whitening).all():
        raise refuse(f"axes of shape {whitening.shape}, or not finite")
    if strata.ndim != 1 or strata.dtype.kind not in "iu" or values.shape != (len(strata), len(columns)):
        raise refuse(f"values of shape {values.shape} in strata of shape {strata.shape}")
    if np.isinf(values).any():
        raise refuse("values that are infinite")
    shape_strata, shapes = arrays["shape_strata"], arrays["shapes"]
    if shape_strata.dtype.kind not in "iu" or shapes.shape != (shape_strata.size, len(SHAPE)) or shape_strata.ndim != 1:
        raise refuse(f"shapes of the shape {shapes.shape} in strata of shape {shape_strata.shape}")
    if not np.isfinite(shapes).all():
        raise refuse("shapes that are not finite")
    known = Shapes(shape_strata.astype(np.int32), shapes.astype(np.float32))
    return Calibration(str(arrays["model"]), str(arrays["reference_version"]), whitening, strata, values, known)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scorer:
    """A reference set and what calibrates its scores; one space, one model."""

    reference: ReferenceSet
    calibration: Calibration
    base: Scorer | None = None
    """Scores the strata that this one's calibration does not have; None: these have no score."""
    centres: Mapping[int, ClassCentres] = field(init=False)

    def __post_init__(self) -> None:
        """Raise ConfigurationError where the two do not belong together; find the middle of each class."""
        self.calibration.check(self.reference)
        object.__setattr__(self, "centres", class_centres(self.reference, self.calibration.whitening))

    @staticmethod
    def of(reference: ReferenceSet) -> Scorer | None:
        """What scores by a set, and by its base where that has what it has not; None where nothing calibrates it."""
        base = None if reference.base is None else Scorer.of(reference.base)
        return base if reference.scores is None else Scorer(reference, reference.scores, base)

    @property
    def own(self) -> list[int]:
        """The strata that its own calibration has."""
        return [number for number, tails in self.calibration.tails.items() if COMBINED[0] in tails]


def calibration_path(reference_set: Path) -> Path:
    """Where the calibration of the reference set in the file ``reference_set`` is."""
    return reference_set.with_suffix(".scores.npz")


def with_scores(reference: ReferenceSet, path: Path) -> ReferenceSet:
    """The set, read from the file ``path``, with the calibration in the file beside it; as it is where there is none.

    Raises ConfigurationError where that is damaged, or of another set.
    """
    file = calibration_path(path)
    if not file.exists():
        return reference
    calibration = Calibration.from_bytes(file.read_bytes(), str(file))
    calibration.check(reference)
    return replace(reference, scores=calibration)


def spaces_and_distances() -> list[str]:
    """The names of the distances that the combined score counts: ``all.neighbours``, ..., ``metadata.neighbours``."""
    return [f"{space}.{name}" for space in SPACES for name in DISTANCES if name not in NOT_COUNTED]
