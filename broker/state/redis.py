"""The store in Redis: a value an object and kind, read and written a batch at a time.

A batch takes two round trips, whatever its size: ``read.lua`` finds on the server what lies near its alerts, beside
which the catalogues' cells are read, and ``write.lua`` writes. Only where very much lies there, reading takes more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
import redis

from broker.catalog.match import CatalogReader
from broker.metrics import CROWDED_SEARCHES
from broker.records import Alert, Catalogued, KeptSearch, ObjectState, ObservedSpectrum
from broker.redis_errors import redis_errors
from broker.sky import ARCSEC
from broker.state.encoding import (
    STAMP_BYTES,
    NewerStateError,
    StateError,
    decode_object,
    decode_search,
    decode_spectrum,
    encode_object,
    encode_search,
    encode_spectrum,
    is_current,
    of_later_release,
)
from broker.state.objects import Limits, ObjectName, Objects, StoredObject, has_no_object, is_moving
from broker.state.places import (
    BIN,
    BUDGET,
    CELL,
    CROWD,
    MARGIN,
    MAX_YEARS,
    NEAREST,
    Place,
    own_cells,
    search_cells,
)
from broker.state.watch import StoreWatch

LOG: Final = logging.getLogger(__name__)
DAY: Final = 86400
_READ: Final = resources.files(__package__).joinpath("read.lua").read_text("utf-8")
_WRITE: Final = (
    resources.files(__package__).joinpath("write.lua").read_text("utf-8").replace("STAMP_BYTES", str(STAMP_BYTES))
)
_SPECTRA: Final = resources.files(__package__).joinpath("spectra.lua").read_text("utf-8")
_SCAN: Final = 1000
_NOBODY: Final = ("", "")
T = TypeVar("T")


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
    ) -> None:
        """``url`` as redis-py takes it (``redis://``, ``rediss://``, with user and password where needed).

        Objects not seen for ``expiry_days`` are forgotten.
        """
        self._client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        self._limits = limits
        self._prefix = prefix
        self._expiry = max(1, int(expiry_days * DAY))
        self._catalogs = CatalogReader(prefix)
        self._watch = StoreWatch(self._client, prefix)
        self._primed = False

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.update``."""
        if not alerts:
            return []
        batch = _Batch(self._limits)
        names = [(alert.survey, alert.object_id) for alert in alerts]
        catalogued = self._read(batch, alerts, self._cells(alerts), names, self._limits.association_radius)
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
        """See ``Store.keep_searches``: one round trip, and none where there is nothing to keep."""
        if not searches:
            return

        def write() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for name, search in searches.items():
                pipeline.set(f"{self._prefix}:{':'.join(name)}:ps", encode_search(search), ex=self._expiry)
            pipeline.execute()

        self._call(write)

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """See ``Store.put_observed``; spectra do not expire."""

        arguments: list[str | bytes] = [self._prefix]
        for spectrum, cell in zip(spectra, own_cells(spectra), strict=True):
            arguments += [spectrum.spectrum_id, encode_spectrum(spectrum.spectrum)]
            if spectrum.survey and spectrum.object_id:
                arguments += ["", b"", f"{spectrum.survey}:{spectrum.object_id}"]
            else:
                arguments += [str(cell), Place(spectrum.ra, spectrum.dec, spectrum.mjd).pack(), ""]
        if spectra:
            self._call(lambda: self._client.eval(_SPECTRA, 0, *arguments))

    def objects_of(self, spectra: Sequence[ObservedSpectrum]) -> list[list[tuple[Alert, ObjectState]]]:
        """See ``Store.objects_of``."""
        if not spectra:
            return []
        cells = search_cells(spectra, self._limits.search_radius)
        batch = _Batch(self._limits)
        given = [(s.survey, s.object_id) if s.survey and s.object_id else _NOBODY for s in spectra]
        self._read(batch, spectra, cells, given, self._limits.spectrum_radius)
        names = [batch.objects.objects_of(spectrum) for spectrum in spectra]
        # The objects are known by now, but not yet what else is near to where they were seen last.
        wanted = list(dict.fromkeys(name for several in names for name in several))
        latest = [alert for name in wanted if (alert := batch.objects.known[name].latest) is not None]
        if not latest:
            return [[] for _ in spectra]
        batch = _Batch(self._limits)
        catalogued = self._read(batch, latest, self._cells(latest), wanted, self._limits.association_radius)
        states = dict(zip(wanted, batch.objects.latest_states(wanted, catalogued), strict=True))
        return [[states[name] for name in several if name in states] for several in names]

    def check(self) -> None:
        """See ``Store.check``."""
        self._prime()
        self._call(self._client.ping)
        self._call(self._watch.look)

    def close(self) -> None:
        """See ``Store.close``."""
        self._client.close()

    def migrate(self) -> Iterable[bool]:
        """Write objects of earlier versions in the present form; says of each object whether it was one.

        Safe while the service runs: an object that changes meanwhile is left to it, and so is one that cannot be
        read.
        """
        for key in self._client.scan_iter(f"{self._prefix}:*:lc", count=_SCAN):
            survey, _, object_id = key.decode()[len(self._prefix) + 1 : -3].partition(":")
            value = self._call(lambda key=key: self._client.get(key))  # type: ignore[misc]
            if not isinstance(value, bytes) or is_current(value):
                yield False
                continue
            try:
                curve, latest = decode_object(value, survey, object_id)
            except StateError as error:
                LOG.error("stored value %s cannot be read: %s", key.decode(), error)
                yield False
                continue
            place = b"" if is_moving(latest, curve) else Place(latest.ra, latest.dec, latest.mjd).pack()
            new = [f"{survey}:{object_id}", encode_object(curve, latest), value[:STAMP_BYTES], place]
            arguments = [self._prefix, self._expiry, *new, own_cells([latest])[0], ""]
            yield not self._call(lambda given=arguments: self._client.eval(_WRITE, 0, *given))  # type: ignore[misc]

    def _prime(self) -> None:
        """Learn which catalogues there are; afterwards each batch brings that along."""
        meta = self._call(lambda: self._client.get(self._catalogs.meta_key))
        assert meta is None or isinstance(meta, bytes)
        self._catalogs.prime(meta)
        self._primed = True

    def _cells(self, alerts: Sequence[Alert]) -> list[list[int]]:
        """Where to look for neighbours; nowhere for what has no object."""
        found = search_cells(alerts, self._limits.search_radius)
        return [[] if has_no_object(alert) else cells for alert, cells in zip(alerts, found, strict=True)]

    def _read(
        self,
        batch: _Batch,
        positions: Sequence[Alert | ObservedSpectrum],
        cells: Sequence[Sequence[int]],
        objects: Sequence[ObjectName],
        radius: float,
    ) -> list[Catalogued]:
        """Fill a batch, in one round trip but for crowded fields; returns what the catalogues have at each position.

        ``objects`` are one per position, _NOBODY where it has no object of its own; ``radius`` is how near others
        are, in arcsec.
        """
        settings: list[str | float] = [self._prefix]
        settings += [math.radians(r / ARCSEC) for r in (radius, self._limits.spectrum_radius, MARGIN)]
        settings += [MAX_YEARS, BIN, CROWD, NEAREST, CELL, BUDGET]
        wanted: list[list[str | float]] = [
            [survey, object_id, place.ra, place.dec, place.mjd, len(around), *around]
            for (survey, object_id), place, around in zip(objects, positions, cells, strict=True)
        ]
        wanted.sort(key=lambda row: row[6:])  # each cell is then read in one call only
        at = np.array([_place(p) for p in positions]).T
        if not self._primed:
            self._prime()
        request = self._catalogs.request(at[0], at[1])

        def read() -> tuple[Any, Any]:
            pipeline = self._client.pipeline(transaction=False)
            _eval(pipeline, settings, wanted)
            pipeline.mget(request.keys)
            return tuple(pipeline.execute())

        found, values = self._call(read)
        done = batch.add(found)
        while done < len(wanted):  # in a crowded field, so that Redis serves others in between
            rest = wanted[done:]
            done += batch.add(self._call(lambda rest=rest: _eval(self._client, settings, rest)))  # type: ignore[misc]
        # Where a catalogue came, went or was replaced meanwhile, one more trip.
        request, values = self._catalogs.read(at[0], at[1], self._mget, (request, values))
        return self._catalogs.match(request, values, *at)

    def _write(self, batch: _Batch, names: Iterable[ObjectName]) -> set[ObjectName]:
        """Write changed objects, renew the others' expiry, set damaged values aside, in one round trip.

        Returns the objects that were not written, since another worker has written them.
        """
        arguments: list[str | float | bytes] = [self._prefix, self._expiry]
        known = [
            (name, latest) for name in dict.fromkeys(names) if (latest := batch.objects.known[name].latest) is not None
        ]
        cells = own_cells([latest for _, latest in known])
        for (name, latest), cell in zip(known, cells, strict=True):
            before = batch.before.get(name, _Before(None, None))
            value = encode_object(batch.objects.known[name].light_curve, latest, before.value)
            if value == before.value:
                arguments += [":".join(name), b"", b"", b"", "", ""]
                continue
            stamp = (before.value or b"")[:STAMP_BYTES]
            place = batch.objects.places.place(name)
            left = "" if before.cell is None or before.cell == cell else before.cell
            arguments += [":".join(name), value, stamp, b"" if place is None else place.pack(), cell, left]

        def write() -> list[bytes]:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.eval(_WRITE, 0, *arguments)
            for key, value in batch.damaged.items():
                pipeline.set(f"{self._prefix}:{key}:damaged", value, ex=self._expiry)
                if not key.endswith(":lc"):
                    pipeline.delete(f"{self._prefix}:{key}")
            changed: list[bytes] = pipeline.execute()[0]
            return changed

        parts = (name.decode().partition(":") for name in self._call(write))
        return {(survey, object_id) for survey, _, object_id in parts}

    def _mget(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        client: Any = self._client
        values: Sequence[bytes | None] = self._call(lambda: client.mget(keys))
        return values

    @staticmethod
    def _call(action: Callable[[], T]) -> T:
        with redis_errors():
            return action()


def _eval(client: redis.Redis, settings: Sequence[str | float], wanted: Sequence[Sequence[str | float]]) -> Any:
    return client.eval(_READ, 0, *settings, *chain.from_iterable(wanted))


def _place(position: Alert | ObservedSpectrum) -> tuple[float, float, float]:
    """Where and when to look in catalogues: nowhere for what has no object."""
    if isinstance(position, Alert) and has_no_object(position):
        return math.nan, math.nan, math.nan
    return position.ra, position.dec, position.mjd


@dataclass(frozen=True, slots=True)
class _Before:
    """How an object was stored."""

    value: bytes | None
    cell: int | None
    """Where it was; None where it was not, or its value cannot be read."""


class _Batch:
    """Objects of one batch, with what was stored of them."""

    def __init__(self, limits: Limits) -> None:
        self.objects = Objects(limits)
        self.before: dict[ObjectName, _Before] = {}
        self.damaged: dict[str, bytes] = {}
        """Stored values that cannot be read, by key; they are set aside under ``<key>:damaged``, not lost."""
        self.newer: dict[ObjectName, str] = {}
        """Objects that a later release has written, and in which form; they are left as they are."""

    def add(self, found: tuple[Any, Any, int, int]) -> int:
        """Take in what ``read.lua`` found; returns for how many positions."""
        objects, spectra, done, crowded = found
        self.add_objects(objects)
        for row in spectra:
            self.add_spectrum(*row)
        CROWDED_SEARCHES.inc(crowded)
        return done

    def add_objects(self, rows: Sequence[Sequence[Any]]) -> None:
        """Objects that ``read.lua`` found: name, place, light curve, spectrum and period search of each."""
        seen: list[tuple[ObjectName, Alert, bytes]] = []
        for key, place, curve, spectrum, search in rows:
            text = key.decode()
            survey, _, object_id = text.partition(":")
            name = (survey, object_id)
            known = self.objects.known[name] = StoredObject()
            if (reason := of_later_release(curve)) is not None:
                LOG.warning("stored value %s:lc: %s", text, reason)
                self.newer[name] = reason
                continue
            read = self._read(f"{text}:lc", curve, partial(decode_object, survey=survey, object_id=object_id))
            if read is not None:
                known.light_curve, known.latest = read
                seen.append((name, known.latest, place))
            if curve is not None:
                self.before[name] = _Before(curve, None)
            known.spectrum = self._read(f"{text}:sp", spectrum, decode_spectrum)
            known.kept_search = self._read(f"{text}:ps", search, decode_search)
        for (name, latest, place), cell in zip(seen, own_cells([latest for _, latest, _ in seen]), strict=True):
            self.before[name] = replace(self.before[name], cell=cell)
            # An entry of another time is left from before the object moved, when its value could not be read.
            if place and (at := Place.unpack(place)).mjd == latest.mjd:
                self.objects.places.put(name, at, name[0])

    def add_spectrum(self, name: bytes, place: bytes, value: bytes | None) -> None:
        """One spectrum that ``read.lua`` found."""
        spectrum = self._read(f"spectrum:{name.decode()}", value, decode_spectrum)
        if spectrum is not None:
            at = Place.unpack(place)
            self.objects.add_spectra([ObservedSpectrum(name.decode(), at.ra, at.dec, at.mjd, spectrum)])

    def _read(self, key: str, value: bytes | None, decode: Callable[[bytes], T]) -> T | None:
        if value is None:
            return None
        try:
            return decode(value)
        except NewerStateError as error:
            LOG.warning("stored value %s is not used: %s", key, error)
            return None
        except StateError as error:
            LOG.error("stored value %s cannot be read and is set aside: %s", key, error)
            self.damaged[key] = value
            return None
