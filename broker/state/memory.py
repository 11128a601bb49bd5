"""The store in this process's memory, for the classification of files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from broker.records import Alert, ObjectState, SourceMetadata, Spectrum
from broker.state.merge import MAX_POINTS
from broker.state.objects import RememberedObject


class MemoryStore:
    """Remembers objects as RedisStore does, and forgets them with the process."""

    def __init__(self, *, max_points: int = MAX_POINTS) -> None:
        self._objects: defaultdict[tuple[str, str], RememberedObject] = defaultdict(RememberedObject)
        self._max_points = max_points

    def remember(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.remember``."""
        return [self._objects[alert.survey, alert.object_id].merge(alert, self._max_points) for alert in alerts]

    def put_spectra(self, survey: str, spectra: Mapping[str, Spectrum]) -> None:
        """See ``Store.put_spectra``."""
        for object_id, spectrum in spectra.items():
            self._objects[survey, object_id].spectrum = spectrum

    def put_metadata(self, survey: str, metadata: Mapping[str, SourceMetadata]) -> None:
        """See ``Store.put_metadata``."""
        for object_id, values in metadata.items():
            self._objects[survey, object_id].metadata = values

    def ready(self) -> bool:
        """See ``Store.ready``."""
        return True

    def close(self) -> None:
        """See ``Store.close``."""
        self._objects.clear()
