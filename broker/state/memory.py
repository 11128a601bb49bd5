"""The store in this process's memory, for the classification of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.catalog.memory import MemoryCatalogs
from broker.records import Alert, KeptSearch, ObjectState, ObservedSpectrum
from broker.state.keys import ObjectName
from broker.state.objects import Limits, Objects


class MemoryStore:
    """Keeps objects as RedisStore does, and forgets them with the process."""

    def __init__(self, limits: Limits = Limits(), catalogs: MemoryCatalogs | None = None) -> None:  # noqa: B008 - immutable
        self._objects = Objects(limits)
        self._catalogs = catalogs or MemoryCatalogs()

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.update``."""
        return self._objects.merge(alerts, self._catalogs.of_alerts(alerts))

    def absorb(self, alerts: Sequence[Alert]) -> None:
        """See ``Store.absorb``."""
        self._objects.absorb(alerts, self._catalogs.of_alerts(alerts))

    def keep_searches(self, searches: Mapping[ObjectName, KeptSearch]) -> None:
        """See ``Store.keep_searches``."""
        for name, search in searches.items():
            self._objects.known[name].kept_search = search

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """See ``Store.put_observed``."""
        self._objects.add_spectra(spectra)

    def objects_of(self, spectra: Sequence[ObservedSpectrum]) -> list[list[tuple[Alert, ObjectState]]]:
        """See ``Store.objects_of``."""
        found = [self._objects.objects_of(spectrum) for spectrum in spectra]
        latest = [[alert for name in names if (alert := self._objects.known[name].latest)] for names in found]
        return [
            self._objects.latest_states(names, self._catalogs.of_alerts(alerts))
            for names, alerts in zip(found, latest, strict=True)
        ]

    def check(self) -> None:
        """See ``Store.check``."""

    def close(self) -> None:
        """See ``Store.close``."""
        self._objects = Objects(self._objects.limits)
