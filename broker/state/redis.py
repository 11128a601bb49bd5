"""The store in Redis, one server or a cluster: a value an object and kind, read and written a batch at a time.

A batch takes two round trips, whatever its size: ``read.lua`` finds on the server what lies near its alerts, beside
which the catalogues' cells are read, and ``write.lua`` writes. On a single Redis each is called once, in a cluster once
for each coarse cell of the sky that the batch has alerts in, all at the same time (``reading``, ``writing``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from broker.records import Alert, KeptSearch, ObjectState, ObservedSpectrum
from broker.redis_client import RedisConnection
from broker.state.batch import Copy, StoredBatch
from broker.state.encoding import StateError
from broker.state.keys import NO_HOME, ObjectName, body_home
from broker.state.objects import Limits, is_moving
from broker.state.places import StoredPlace, wide_homes
from broker.state.reading import NOBODY, Reader, moved
from broker.state.stored_spectra import put_spectra
from broker.state.watch import StoreWatch
from broker.state.writing import Writer

DAY: Final = 86400


class RedisStore:
    """Keeps the state of objects in Redis, as docs/state.md says.

    Without a lock: an object that another worker has written in the meantime is read and merged again.
    """

    def __init__(
        self,
        url: str,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        *,
        prefix: str = "trifid",
        expiry_days: float = 1000.0,
        timeout: float = 5.0,
        wait_replicas: int = 0,
        read_only: bool = False,
    ) -> None:
        """``url`` as ``RedisConnection`` takes it (``redis://``, ``rediss://``, with user and password where needed).

        Objects not seen for ``expiry_days`` are forgotten. A write counts once ``wait_replicas`` have it. With
        ``read_only`` nothing is written by ``check`` and ``objects_of``, no marker and no layout either, and a loss of
        state is left for the workers to count.
        """
        self.connection: Final = RedisConnection(url, timeout=timeout, connect_timeout=timeout, replicas=wait_replicas)
        self._limits = limits
        self._prefix = prefix
        self._watch = None if read_only else StoreWatch(self.connection, prefix)
        self._reader = Reader(self.connection, limits, prefix, may_write=not read_only)
        self._writer = Writer(self.connection, prefix, max(1, int(expiry_days * DAY)), moved(limits))

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.update``."""
        if not alerts:
            return []
        batch = StoredBatch(self._limits, self._prefix)
        names = [(alert.survey, alert.object_id) for alert in alerts]
        catalogued = self._reader.read(
            batch, alerts, self._reader.where(alerts), names, self._limits.association_radius
        )
        _refuse_newer(batch, names)
        states = batch.objects.merge(alerts, catalogued)
        changed = self._writer.write(batch, names)
        if changed:
            again = [row for row, name in enumerate(names) if name in changed]
            for row, state in zip(again, self.update([alerts[row] for row in again]), strict=True):
                states[row] = state
        return states

    def absorb(self, alerts: Sequence[Alert]) -> None:
        """See ``Store.absorb``: neither counterparts nor spectra are looked for."""
        while alerts:
            batch = StoredBatch(self._limits, self._prefix)
            names = [(alert.survey, alert.object_id) for alert in alerts]
            where: list[tuple[list[str], list[int]]] = [(homes, []) for homes in self._reader.homes_around(alerts)]
            catalogued = self._reader.read(batch, alerts, where, names, 0.0)
            _refuse_newer(batch, names)
            batch.objects.absorb(alerts, catalogued)
            changed = self._writer.write(batch, names)
            alerts = [alert for alert, name in zip(alerts, names, strict=True) if name in changed]

    def keep_searches(self, searches: Mapping[ObjectName, KeptSearch]) -> None:
        """See ``Store.keep_searches``, for objects that this store has updated lately."""
        self._writer.keep_searches(searches)

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """See ``Store.put_observed``; spectra do not expire."""
        put_spectra(self.connection, self._prefix, spectra)

    def objects_of(self, spectra: Sequence[ObservedSpectrum]) -> list[list[tuple[Alert, ObjectState]]]:
        """See ``Store.objects_of``."""
        if not spectra:
            return []
        batch = StoredBatch(self._limits, self._prefix)
        given = [(s.survey, s.object_id) if s.survey and s.object_id else NOBODY for s in spectra]
        where = self._reader.where(spectra)
        for row, (spectrum, name) in enumerate(zip(spectra, given, strict=True)):
            if name is not NOBODY:
                # A telescope's header may say where it pointed, which is not quite where the object is.
                homes, cells = where[row]
                where[row] = (list(dict.fromkeys([*homes, *wide_homes(spectrum), body_home(name)])), cells)
        self._reader.read(batch, spectra, where, given, self._limits.spectrum_radius)
        names = [batch.objects.objects_of(spectrum) for spectrum in spectra]
        # The objects are known by now, but not yet what else is near to where they were seen last.
        wanted = list(dict.fromkeys(name for several in names for name in several))
        latest = [alert for name in wanted if (alert := batch.objects.known[name].latest) is not None]
        if not latest:
            return [[] for _ in spectra]
        batch = StoredBatch(self._limits, self._prefix)
        catalogued = self._reader.read(
            batch, latest, self._reader.where(latest), wanted, self._limits.association_radius
        )
        states = dict(zip(wanted, batch.objects.latest_states(wanted, catalogued), strict=True))
        return [[states[name] for name in several if name in states] for several in names]

    @property
    def generation(self) -> str:
        """Another one after Redis, or one primary of a cluster, has lost what it held, as ``check`` found it last."""
        return "" if self._watch is None else self._watch.generation

    def check(self) -> None:
        """See ``Store.check``."""
        self._reader.prime()
        if not self.connection.is_cluster:
            self.connection.call(lambda client: client.ping())
        if self._watch is not None:
            self._watch.look()

    def close(self) -> None:
        """See ``Store.close``."""
        self.connection.close()

    def move(self, objects: Mapping[ObjectName, Copy], places: Mapping[ObjectName, bytes]) -> set[ObjectName]:
        """Merge objects that are stored somewhere else, as under keys without a home, into what their homes have.

        ``places`` are theirs, as far as they have any. Returns the objects that were not written, since another worker
        has written them meanwhile: they are to be tried again. Values that cannot be read are passed over.
        """
        batch = StoredBatch(self._limits, self._prefix)
        batch.add_objects(
            (":".join(name).encode(), NO_HOME, places.get(name, b""), copy.value, None, copy.search)
            for name, copy in objects.items()
        )
        batch.damaged.clear()
        latest = {name: a for name in objects if name not in batch.newer and (a := batch.objects.known[name].latest)}
        if not latest:
            return set()
        self._reader.homes_only()
        alerts = list(latest.values())
        where: list[tuple[list[str], list[int]]] = [(homes, []) for homes, _ in self._reader.where(alerts)]
        self._reader.read(batch, alerts, where, list(latest), self._limits.association_radius)
        for name, alert in latest.items():
            known = batch.objects.known[name]
            if batch.objects.places.place(name) is None and not is_moving(alert, known.light_curve):
                batch.objects.places.put(name, StoredPlace(alert.ra, alert.dec, alert.mjd), name[0])
        return self._writer.write(batch, [name for name in latest if name not in batch.newer], keep=True)


def _refuse_newer(batch: StoredBatch, names: Iterable[ObjectName]) -> None:
    for name in names:
        if name in batch.newer:
            # Its alerts become dead letters, to be replayed by a release that can read it.
            raise StateError(f"state of {':'.join(name)}: {batch.newer[name]}")
