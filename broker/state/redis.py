"""The store in Redis, one server or a cluster: a value an object and kind, read and written a batch at a time.

A batch takes two round trips, whatever its size: ``read.lua`` finds on the server what lies near its alerts, beside
which the catalogues' cells are read, and ``write.lua`` writes. On a single Redis each is called once, in a cluster once
for each coarse cell of the sky that the batch has alerts in, all at the same time. Reading takes more trips where very
much lies there, and in a cluster for spectra that were stored by the names of objects.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np

from broker.catalog.match import CatalogReader
from broker.errors import ConfigurationError
from broker.records import Alert, Catalogued, KeptSearch, ObjectState, ObservedSpectrum
from broker.redis_client import CommandPipeline, RedisConnection
from broker.sky import ARCSEC
from broker.state.batch import Copy, StoredBatch, catalogue_position
from broker.state.encoding import STAMP_BYTES, StateError, encode_object, encode_search
from broker.state.keys import (
    NO_HOME,
    ObjectName,
    base,
    body_home,
    layout_key,
    named_spectra_key,
    object_key,
    untagged_keys,
)
from broker.state.objects import Limits, has_no_object, is_moving
from broker.state.places import (
    BIN,
    BUDGET,
    CELL,
    CROWD,
    MARGIN,
    MAX_YEARS,
    NEAREST,
    StoredPlace,
    near_homes,
    own_cells,
    own_homes,
    search_cells,
    wide_homes,
)
from broker.state.scripts import READ, REMOVE, WRITE, Call, Row, calls_of, left_of, removal
from broker.state.stored_spectra import put_spectra
from broker.state.watch import MARKER, StoreWatch

LOG: Final = logging.getLogger(__name__)
DAY: Final = 86400
_NOBODY: Final = ("", "")
HOMES: Final = b"homes"
"""What the layout key says where no key is of before."""
_MOST_HOMES: Final = 100_000
"""Objects whose home is remembered, for what is kept of them after their batch."""


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
        self._expiry = max(1, int(expiry_days * DAY))
        self._catalogs = CatalogReader(prefix)
        self._watch = None if read_only else StoreWatch(self.connection, prefix)
        self._primed = False
        self._untagged = False
        """Whether there are, or may be, keys of before state was kept by cell of the sky."""
        self._named = False
        """Whether a cluster has spectra that were stored by an object's name."""
        self._home_of: dict[ObjectName, str] = {}

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.update``."""
        if not alerts:
            return []
        batch = StoredBatch(self._limits, self._prefix)
        names = [(alert.survey, alert.object_id) for alert in alerts]
        catalogued = self._read(batch, alerts, self._where(alerts), names, self._limits.association_radius)
        for name in names:
            if name in batch.newer:
                # Its alerts become dead letters, to be replayed by a release that can read it.
                raise StateError(f"state of {':'.join(name)}: {batch.newer[name]}")
        states = batch.objects.merge(alerts, catalogued)
        changed = self._write(batch, names)
        if changed:
            again = [row for row, name in enumerate(names) if name in changed]
            for row, state in zip(again, self.update([alerts[row] for row in again]), strict=True):
                states[row] = state
        return states

    def keep_searches(self, searches: Mapping[ObjectName, KeptSearch]) -> None:
        """See ``Store.keep_searches``: one round trip, and none where there is nothing to keep.

        For objects that this store has updated lately; of another the search is made again.
        """
        kept = [(name, search) for name, search in searches.items() if name in self._home_of]
        if not kept:
            return

        def queue(pipeline: CommandPipeline) -> None:
            for name, search in kept:
                key = object_key(self._prefix, self._home_of[name], name, "ps")
                pipeline.command("SET", key, encode_search(search), "EX", self._expiry)

        self.connection.execute(queue)

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """See ``Store.put_observed``; spectra do not expire."""
        put_spectra(self.connection, self._prefix, spectra)

    def objects_of(self, spectra: Sequence[ObservedSpectrum]) -> list[list[tuple[Alert, ObjectState]]]:
        """See ``Store.objects_of``."""
        if not spectra:
            return []
        batch = StoredBatch(self._limits, self._prefix)
        given = [(s.survey, s.object_id) if s.survey and s.object_id else _NOBODY for s in spectra]
        where = self._where(spectra)
        for row, (spectrum, name) in enumerate(zip(spectra, given, strict=True)):
            if name is not _NOBODY:
                # A telescope's header may say where it pointed, which is not quite where the object is.
                homes, cells = where[row]
                where[row] = (list(dict.fromkeys([*homes, *wide_homes(spectrum), body_home(name)])), cells)
        self._read(batch, spectra, where, given, self._limits.spectrum_radius)
        names = [batch.objects.objects_of(spectrum) for spectrum in spectra]
        # The objects are known by now, but not yet what else is near to where they were seen last.
        wanted = list(dict.fromkeys(name for several in names for name in several))
        latest = [alert for name in wanted if (alert := batch.objects.known[name].latest) is not None]
        if not latest:
            return [[] for _ in spectra]
        batch = StoredBatch(self._limits, self._prefix)
        catalogued = self._read(batch, latest, self._where(latest), wanted, self._limits.association_radius)
        states = dict(zip(wanted, batch.objects.latest_states(wanted, catalogued), strict=True))
        return [[states[name] for name in several if name in states] for several in names]

    def check(self) -> None:
        """See ``Store.check``."""
        self._prime()
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
        self._primed, self._untagged = True, False  # whatever there is, homes alone are looked at
        alerts = list(latest.values())
        where: list[tuple[list[str], list[int]]] = [(homes, []) for homes, _ in self._where(alerts)]
        self._read(batch, alerts, where, list(latest), self._limits.association_radius)
        for name, alert in latest.items():
            known = batch.objects.known[name]
            if batch.objects.places.place(name) is None and not is_moving(alert, known.light_curve):
                batch.objects.places.put(name, StoredPlace(alert.ra, alert.dec, alert.mjd), name[0])
        return self._write(batch, [name for name in latest if name not in batch.newer], keep=True)

    def _prime(self) -> None:
        """Learn which catalogues there are, and which keys; afterwards each batch brings the first along."""
        meta, layout, marker, named = self.connection.get_many(
            [
                self._catalogs.meta_key,
                layout_key(self._prefix),
                f"{self._prefix}:{MARKER}",
                named_spectra_key(self._prefix),
            ]
        )
        self._catalogs.prime(meta)
        self._named = named is not None
        if layout == HOMES:
            self._untagged = False
        elif not self._untagged and not (self._primed and self._watch is None):
            self._untagged = self._find_untagged(marker is not None)
            if not self._untagged and self._watch is not None:
                self.connection.call(lambda client: client.set(layout_key(self._prefix), HOMES))
        if self._untagged and self.connection.is_cluster:
            raise ConfigurationError(
                "this Redis Cluster has state of an earlier release, in keys that a cluster cannot read together: run "
                "`trifid state migrate` first (docs/state.md)"
            )
        self._primed = True

    def _find_untagged(self, marked: bool) -> bool:
        """Whether there is state of before; ``marked`` is whether a worker was here that said nothing of homes."""
        try:
            return next(untagged_keys(self.connection, self._prefix), None) is not None
        except ConfigurationError as error:  # the ACL has no SCAN
            LOG.warning(
                "cannot look for state of an earlier release, taken for %s: %s", "there" if marked else "none", error
            )
            return marked

    def _where(self, positions: Sequence[Alert | ObservedSpectrum]) -> list[tuple[list[str], list[int]]]:
        """Homes and fine cells in which to look around positions; for what has no object its own home alone."""
        radius = self._limits.search_radius
        cells = search_cells(positions, radius)
        # What is near is at most radius + MARGIN from here, and its home at most _moved from that.
        homes = near_homes(positions, radius + MARGIN + self._moved)
        return [
            ([body_home((p.survey, p.object_id))], []) if isinstance(p, Alert) and has_no_object(p) else (near, around)
            for p, near, around in zip(positions, homes, cells, strict=True)
        ]

    @property
    def _moved(self) -> float:
        """Arcsec that an object may be outside its home before it gets another."""
        return self._limits.search_radius + MARGIN

    def _read(
        self,
        batch: StoredBatch,
        positions: Sequence[Alert | ObservedSpectrum],
        where: Sequence[tuple[Sequence[str], Sequence[int]]],
        objects: Sequence[ObjectName],
        radius: float,
    ) -> list[Catalogued]:
        """Fill a batch, in one round trip but for crowded fields; returns what the catalogues have at each position.

        ``objects`` are one per position, _NOBODY where it has no object of its own; ``radius`` is how near others
        are, in arcsec.
        """
        if not self._primed:
            self._prime()
        single = not self.connection.is_cluster
        settings: list[str | float] = [self._prefix if single else ""]
        settings += [math.radians(r / ARCSEC) for r in (radius, self._limits.spectrum_radius, MARGIN)]
        settings += [MAX_YEARS, BIN, CROWD, NEAREST, CELL, BUDGET, 0 if self._watch is None else 1]
        wanted: list[tuple[str, Row]] = [
            (home, [survey, object_id, struct.pack(f"<ddd{len(around)}I", place.ra, place.dec, place.mjd, *around)])
            for (survey, object_id), place, (homes, around) in zip(objects, positions, where, strict=True)
            for home in ([*homes, NO_HOME] if self._untagged else homes)
        ]
        wanted.sort(key=lambda row: (row[0], row[1][2][24:]))  # each cell is then read in one call only
        calls = calls_of(wanted, together=single)
        at = np.array([catalogue_position(p) for p in positions]).T
        request = self._catalogs.request(at[0], at[1])
        named = named_spectra_key(self._prefix)

        def first(pipeline: CommandPipeline) -> None:
            self._ask(pipeline, settings, calls)
            pipeline.get_many(request.keys)
            if not single:
                pipeline.command("GET", named)

        answers = self.connection.execute(first)
        flag = None if single else answers.pop()
        *found, values = answers
        while calls := left_of(batch, calls, found):  # in a crowded field, so that Redis serves others in between
            left = calls
            found = self.connection.execute(lambda pipeline: self._ask(pipeline, settings, left))  # noqa: B023
        if flag is not None:
            self._read_named_spectra(batch)
        # Where a catalogue came, went or was replaced meanwhile, one more trip.
        request, values = self._catalogs.read(at[0], at[1], self._mget, (request, values))
        return self._catalogs.match(request, values, *at)

    def _ask(self, pipeline: CommandPipeline, settings: Sequence[str | float], calls: Sequence[Call]) -> None:
        for homes, rows in calls:
            pipeline.script(READ, [base(self._prefix, h) for h in homes], [*settings, *chain.from_iterable(rows)])

    def _read_named_spectra(self, batch: StoredBatch) -> None:
        names = list(batch.objects.known)
        values = self._mget([f"{self._prefix}:{':'.join(name)}:sp" for name in names])
        for name, value in zip(names, values, strict=True):
            if value is not None:
                batch.add_named_spectrum(name, value)

    def _write(self, batch: StoredBatch, names: Iterable[ObjectName], *, keep: bool = False) -> set[ObjectName]:
        """Write changed objects, renew the others' expiry, set damaged values aside, in one round trip.

        Copies that are elsewhere by now are deleted in a second one, but with ``keep`` those without a home. Returns
        the objects that were not written, since another worker has written them.
        """
        known = [
            (name, latest) for name in dict.fromkeys(names) if (latest := batch.objects.known[name].latest) is not None
        ]
        homes = self._homes(batch, known)
        rows: list[tuple[str, Row]] = []
        cells = own_cells([latest for _, latest in known])
        searches: list[tuple[str, bytes]] = []
        for (name, latest), home, cell in zip(known, homes, cells, strict=True):
            copies = batch.copies.get(name, {})
            before = copies.get(home, Copy(None))
            value = encode_object(batch.objects.known[name].light_curve, latest, before.value)
            if value == before.value:
                rows.append((home, [":".join(name), b"", b"", b"", "", ""]))
            else:
                stamp = (before.value or b"")[:STAMP_BYTES]
                place = batch.objects.places.place(name)
                left = "" if before.cell is None or before.cell == cell else before.cell
                rows.append((home, [":".join(name), value, stamp, b"" if place is None else place.pack(), cell, left]))
            if before.search is None:
                moved = next((copy.search for copy in copies.values() if copy.search is not None), None)
                if moved is not None:
                    searches.append((object_key(self._prefix, home, name, "ps"), moved))
            self._note_home(name, home)
        rows.sort(key=lambda row: row[0])
        calls = calls_of(rows, together=not self.connection.is_cluster)

        def write(pipeline: CommandPipeline) -> None:
            for of, objects in calls:
                keys = [base(self._prefix, home) for home in of]
                pipeline.script(WRITE, keys, [self._expiry, *chain.from_iterable(objects)])
            for key, search in searches:
                pipeline.command("SET", key, search, "EX", self._expiry)
            for key, value in batch.damaged.items():
                pipeline.command("SET", f"{key}:damaged", value, "EX", self._expiry)
                if not key.endswith(":lc"):
                    pipeline.command("DEL", key)

        answers = self.connection.execute(write, write=True)[: len(calls)]
        parts = (name.decode().partition(":") for name in chain.from_iterable(answers))
        changed = {(survey, object_id) for survey, _, object_id in parts}
        gone = [
            (name, home, copy)
            for (name, _), kept in zip(known, homes, strict=True)
            if name not in changed
            for home, copy in batch.copies.get(name, {}).items()
            if home != kept and not (keep and home == NO_HOME)
        ]
        if gone:
            self._remove(gone)
        return changed

    def _homes(self, batch: StoredBatch, known: Sequence[tuple[ObjectName, Alert]]) -> list[str]:
        """Where each object is to be: where it is, as long as its latest position is in or near that cell."""
        homes = own_homes([latest for _, latest in known])
        elsewhere = []
        for row, (name, latest) in enumerate(known):
            if has_no_object(latest):
                homes[row] = body_home(name)
            elif (copies := batch.copies.get(name)) and homes[row] not in copies and any(copies):
                elsewhere.append(row)
        near = near_homes([known[row][1] for row in elsewhere], self._moved)
        for row, around in zip(elsewhere, near, strict=True):
            copies = batch.copies[known[row][0]]
            homes[row] = next((home for home in around if home in copies), homes[row])
        return homes

    def _remove(self, gone: Sequence[tuple[ObjectName, str, Copy]]) -> None:
        """Delete copies that were merged into another, unless they were written meanwhile."""

        def queue(pipeline: CommandPipeline) -> None:
            for name, home, copy in gone:
                pipeline.script(REMOVE, *removal(self._prefix, name, home, copy))

        self.connection.execute(queue)

    def _note_home(self, name: ObjectName, home: str) -> None:
        self._home_of.pop(name, None)
        self._home_of[name] = home
        if len(self._home_of) > _MOST_HOMES:
            del self._home_of[next(iter(self._home_of))]

    def _mget(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return self.connection.get_many(keys)
