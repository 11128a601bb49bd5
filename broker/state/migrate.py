"""Giving all state a home, beside workers that do the same with what they get alerts of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from broker.records import ObservedSpectrum
from broker.redis_client import CommandPipeline, RedisConnection
from broker.state.batch import Copy
from broker.state.encoding import NewerStateError, StateError, decode_object, decode_spectrum, of_later_release
from broker.state.keys import (
    HOMES,
    ObjectName,
    layout_key,
    named_spectra_key,
    object_key,
    sky_key,
    split_object_key,
    untagged_keys,
)
from broker.state.places import StoredPlace, own_cells
from broker.state.redis import RedisStore
from broker.state.scripts import REMOVE, removal
from broker.state.stored_spectra import put_spectra

LOG: Final = logging.getLogger(__name__)
_BATCH: Final = 256
_TRIES: Final = 20
_PASSES: Final = 5
_SPECTRA_OF: Final = ":sky:spectra:"

_Row = tuple[ObjectName, str, Copy, bytes | None]
"""Name, home, value and place of an object that is to be moved."""


@dataclass(slots=True)
class Counts:
    """What became of what."""

    moved: int = 0
    """Objects that have a home now."""
    spectra: int = 0
    """Spectra that have one now."""
    damaged: list[str] = field(default_factory=list)
    """Keys of objects and spectra that cannot be read: set aside under ``<key>:damaged``."""
    newer: list[str] = field(default_factory=list)
    """Keys that a later release has written: left as they are."""
    busy: list[str] = field(default_factory=list)
    """Keys that others wrote all the time: left for another run."""

    @property
    def complete(self) -> bool:
        """Whether no key is left."""
        return not self.newer and not self.busy


class Migration:
    """Moves objects and spectra from keys without a home, or from another Redis, to where this release keeps them.

    Each object is first merged into what its home has, then deleted where it was, unless somebody has written it there
    meanwhile. So it can be stopped anywhere and begun again, and nothing is lost.
    """

    def __init__(self, store: RedisStore, prefix: str = "trifid", source: RedisConnection | None = None) -> None:
        """``source`` is another Redis, in which everything stays; its keys may have homes or not."""
        self.counts: Final = Counts()
        self._store, self._prefix = store, prefix
        self._target = store.connection
        self._source = source or self._target
        self._copying = source is not None

    def todo(self) -> Iterator[str]:
        """What there is to do: keys of objects and of cells with spectra."""
        if not self._copying:
            yield from untagged_keys(self._target, self._prefix)
            return
        for pattern in (f"{self._prefix}:*:lc", f"{self._prefix}{_SPECTRA_OF}*", f"{self._prefix}:{{*}}{_SPECTRA_OF}*"):
            for key in self._source.scan(pattern):
                yield key.decode()

    def run(self) -> Iterator[int]:
        """Do it; says after each step how many keys it was about."""
        names = self._source.scan(f"{self._prefix}:spectrum-of:*")
        while some := list(islice(names, _BATCH)):
            self._named_spectra([key.decode()[len(self._prefix) + 13 :] for key in some])
        for _ in range(_PASSES):  # a worker of an earlier release may write while this goes on
            yield from self._pass()
            if self._copying or not self.counts.complete:
                return
            if next(self.todo(), None) is None:
                self._finish()
                return
        self.counts.busy += islice(self.todo(), _BATCH)

    def _pass(self) -> Iterator[int]:
        keys = self.todo()
        while found := list(islice(keys, _BATCH)):
            objects = [key for key in found if _SPECTRA_OF not in key]
            if objects:
                self._objects(objects)
            for key in found:
                if _SPECTRA_OF in key:
                    self._spectra(key)
            yield len(found)

    def _objects(self, keys: Sequence[str]) -> None:
        todo = dict.fromkeys(keys)
        for _ in range(_TRIES):
            found = self._read(list(todo))
            changed: set[ObjectName] = set()
            for rows in _one_copy_each(found.values()):
                changed |= self._store.move(
                    {name: copy for name, _, copy, _ in rows},
                    {name: place for name, _, _, place in rows if place is not None},
                )
            done = {key: row for key, row in found.items() if row[0] not in changed}
            left = [] if self._copying else self._delete(done)
            self.counts.moved += len(done) - len(left)
            todo = dict.fromkeys([*left, *(key for key, row in found.items() if row[0] in changed)])
            if not todo:
                return
        self.counts.busy += todo

    def _read(self, keys: Sequence[str]) -> dict[str, _Row]:
        """Name, home, value and place of the objects that can be read, by key."""
        names = [split_object_key(self._prefix, key) for key in keys]
        searches = [object_key(self._prefix, home, name, "ps") for home, name in names]
        values = self._source.get_many([*keys, *searches])
        found: dict[str, _Row] = {}
        for key, (home, name), value, search in zip(keys, names, values, values[len(keys) :], strict=False):
            if value is None:
                continue
            if of_later_release(value) is not None:
                self.counts.newer.append(key)
                continue
            try:
                _, latest = decode_object(value, *name)
            except StateError as error:
                LOG.error("stored value %s cannot be read and is set aside: %s", key, error)
                self.counts.damaged.append(key)
                if not self._copying:
                    self._target.commands([("SET", f"{key}:damaged", value)])
                    self._target.commands([("DEL", key)])
                continue
            found[key] = (name, home, Copy(value, own_cells([latest])[0], search), None)
        places = self._source.commands(
            ("HGET", sky_key(self._prefix, home, "objects", copy.cell or 0), ":".join(name))
            for name, home, copy, _ in found.values()
        )
        return {key: (*row[:3], place) for (key, row), place in zip(found.items(), places, strict=True)}

    def _delete(self, done: dict[str, _Row]) -> list[str]:
        """Delete objects where they were; returns the keys that somebody has written meanwhile."""
        if not done:
            return []
        together = not self._target.is_cluster
        rows = [removal(self._prefix, name, home, copy) for name, home, copy, _ in done.values()]

        def delete(pipeline: CommandPipeline) -> None:
            for keys, given in rows:
                pipeline.script(REMOVE, keys if together else keys[:1], given)

        deleted = self._target.execute(delete)
        if not together:  # keys without a home are anywhere in a cluster
            gone = [row for row, was in zip(rows, deleted, strict=True) if was]
            self._target.commands(("DEL", keys[1]) for keys, _ in gone)
            self._target.commands(("HDEL", keys[2], given[1]) for keys, given in gone)
        return [key for key, was in zip(done, deleted, strict=True) if not was]

    def _spectra(self, key: str) -> None:
        """Move the spectra of one cell."""
        places: dict[bytes, bytes] = self._source.call(lambda client: client.hgetall(key))
        start, _, cell = key.partition(_SPECTRA_OF)
        home = start[len(self._prefix) :].strip(":{}")
        here = f"at:{home}:{cell}" if home else f"at:{cell}"
        for name, place in places.items():
            spectrum_id = name.decode()
            stored = f"{start}:spectrum:{spectrum_id}"
            value, where = self._source.get_many([stored, f"{self._prefix}:where:{spectrum_id}"])
            if value is not None and where in (None, here.encode()):
                try:
                    spectrum = decode_spectrum(value)
                except NewerStateError:
                    self.counts.newer.append(stored)
                    continue
                except StateError as error:
                    LOG.error("spectrum %s cannot be read and is set aside: %s", spectrum_id, error)
                    self.counts.damaged.append(stored)
                    if not self._copying:
                        self._target.commands([("SET", f"{stored}:damaged", value)])
                else:
                    at = StoredPlace.unpack(place)
                    observed = ObservedSpectrum(spectrum_id, at.ra, at.dec, at.mjd, spectrum)
                    put_spectra(self._target, self._prefix, [observed])
                    self.counts.spectra += 1
            if not self._copying:
                self._target.commands([("HDEL", key, spectrum_id), ("DEL", stored)])

    def _named_spectra(self, names: Sequence[str]) -> None:
        """Spectra that are stored by name have no home: in the same Redis they stay, and it is noted that there are."""
        if not self._copying:
            self._target.commands([("SET", named_spectra_key(self._prefix), "1")])
            return
        ids = self._source.get_many([f"{self._prefix}:spectrum-of:{name}" for name in names])
        values = self._source.get_many([f"{self._prefix}:{name}:sp" for name in names])
        for name, spectrum_id, value in zip(names, ids, values, strict=True):
            if spectrum_id is not None and value is not None:
                survey, _, object_id = name.partition(":")
                try:
                    spectrum = decode_spectrum(value)
                except StateError as error:
                    LOG.error("the spectrum of %s cannot be read and stays where it is: %s", name, error)
                    self.counts.damaged.append(f"{self._prefix}:{name}:sp")
                    continue
                put_spectra(
                    self._target,
                    self._prefix,
                    [ObservedSpectrum(spectrum_id.decode(), 0.0, 0.0, float("nan"), spectrum, survey, object_id)],
                )
                self.counts.spectra += 1

    def _finish(self) -> None:
        """No key is left: say so, and delete the places that objects left behind."""
        for key in self._target.scan(f"{self._prefix}:sky:objects:*"):
            self._target.commands([("DEL", key)])
        self._target.commands([("SET", layout_key(self._prefix), HOMES)])


def _one_copy_each(rows: Iterable[_Row]) -> list[list[_Row]]:
    """The rows in groups that have each object once: the same object may be in two cells."""
    groups: list[dict[ObjectName, _Row]] = []
    for row in rows:
        group = next((group for group in groups if row[0] not in group), None)
        if group is None:
            groups.append(group := {})
        group[row[0]] = row
    return [list(group.values()) for group in groups]
