"""Writing what has changed of a batch, where no other worker has written meanwhile, in one round trip.

A second one deletes copies of objects that are stored elsewhere by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

from broker.records import Alert, KeptSearch
from broker.redis_client import CommandPipeline, RedisConnection
from broker.state.batch import Copy, StoredBatch
from broker.state.encoding import STAMP_BYTES, encode_object, encode_search
from broker.state.keys import NO_HOME, ObjectName, base, body_home, object_key
from broker.state.objects import has_no_object
from broker.state.places import near_homes, own_cells, own_homes
from broker.state.scripts import REMOVE, WRITE, Row, calls_of, removal

_MOST_HOMES: Final = 100_000
"""Objects whose home is remembered, for what is kept of them after their batch."""


class Writer:
    """Writes the objects of batches, and what is kept beside them later."""

    def __init__(self, connection: RedisConnection, prefix: str, expiry: int, moved: float) -> None:
        """``expiry``: seconds; ``moved``: arcsec that an object may be outside its home before it gets another."""
        self._connection, self._prefix, self._expiry, self._moved = connection, prefix, expiry, moved
        self._home_of: dict[ObjectName, str] = {}

    def write(self, batch: StoredBatch, names: Iterable[ObjectName], *, keep: bool = False) -> set[ObjectName]:
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
        calls = calls_of(rows, together=not self._connection.is_cluster)

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

        answers = self._connection.execute(write, write=True)[: len(calls)]
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

    def keep_searches(self, searches: Mapping[ObjectName, KeptSearch]) -> None:
        """One round trip, and none where there is nothing to keep.

        For objects that were written lately; of another the search is made again.
        """
        kept = [(name, search) for name, search in searches.items() if name in self._home_of]
        if not kept:
            return

        def queue(pipeline: CommandPipeline) -> None:
            for name, search in kept:
                key = object_key(self._prefix, self._home_of[name], name, "ps")
                pipeline.command("SET", key, encode_search(search), "EX", self._expiry)

        self._connection.execute(queue)

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

        self._connection.execute(queue)

    def _note_home(self, name: ObjectName, home: str) -> None:
        self._home_of.pop(name, None)
        self._home_of[name] = home
        if len(self._home_of) > _MOST_HOMES:
            del self._home_of[next(iter(self._home_of))]
