"""Finding the catalogue sources that alerts are of, inside a read that is made anyway.

    reader = CatalogReader()
    request, values = reader.read(ra, dec, client.mget)
    matches = reader.match(request, values, ra, dec, mjd)

The index of the catalogues is the first key of every request: what was loaded since is noticed, and asked for again.
A request keeps the index that it was made from, so that threads may share a reader.
Everything is arrays over the batch; only cells, of which a batch has about as many as alerts, are looped over.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker import sky
from broker.catalog.known import NAME, PERIOD, TYPE
from broker.catalog.layout import (
    EPOCH,
    FIRST_YEAR,
    LAST_YEAR,
    CatalogError,
    CatalogLayout,
    cell_prefix,
    decode_index,
    index_key,
    unpack,
    unpack_columns,
)
from broker.catalog.types import known_type
from broker.records import SOURCE_FEATURES, Catalogued, KnownObject, SourceMetadata
from broker.sky import ARCSEC, Array
from broker.times import julian_year_of

LOG: Final = logging.getLogger(__name__)
ASSUMED_YEAR: Final = 2016.0
"""Of alerts whose time is unknown or outside: Gaia's epoch, so that its sources stay where they are."""
_MAS: Final = 1000.0
_MOST_READS: Final = 5
"""Of one batch, where catalogues are replaced all the time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The cells of one catalogue in a request."""

    name: str
    layout: CatalogLayout
    first: int
    """Where its keys begin."""
    count: int
    owner: NDArray[np.intp]
    """(m,) alerts, with"""
    cell: NDArray[np.intp]
    """(m,) the cells to look in for each, as numbers of this part's keys."""


@dataclass(frozen=True, slots=True)
class _Index:
    """The catalogues at one moment."""

    meta: bytes | None
    """The value of the index's key."""
    catalogs: tuple[tuple[str, CatalogLayout], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class CatalogRequest:
    """What to read for a batch of positions."""

    keys: list[str]
    """For MGET; the first is the index of the catalogues."""
    parts: tuple[_Part, ...]
    index: _Index
    """The catalogues that it asks for."""


@dataclass(frozen=True, slots=True)
class Match:
    """The source of one catalogue at one position."""

    catalog: str
    separation: float
    """Arcsec, after both were moved to the same time."""
    values: dict[str, float]
    """Those that are known, by the names of SOURCE_FEATURES."""
    known: KnownObject | None = None
    """The star, where it is a catalogue of known variable stars."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The nearest sources of one catalogue."""

    name: str
    layout: CatalogLayout
    alert: NDArray[np.intp]
    """(m,) alerts that have one, each once."""
    separation: Array
    """(m,) arcsec."""
    stored: NDArray[np.float32]
    """(m, words behind the position)."""

    def values(self) -> NDArray[np.float32]:
        """(m, SOURCE_FEATURES) catalogue values, NaN where unknown."""
        result = np.full((len(self.alert), len(SOURCE_FEATURES)), np.nan, np.float32)
        at, feature = self.layout.features
        result[:, feature] = self.stored[:, at]
        return result

    def known(self) -> list[KnownObject]:
        """(m,) the stars, where it is a catalogue of known variable stars."""
        columns = unpack_columns(self.layout, self.stored)
        names, types = (
            [text.decode("utf-8", "replace") for text in columns[column].tolist()]
            if column in columns
            else [""] * len(self.alert)
            for column in (NAME, TYPE)
        )
        periods = columns[PERIOD].tolist() if PERIOD in columns else [math.nan] * len(self.alert)
        return [
            KnownObject(
                self.name,
                name or None,
                kind,
                None if math.isnan(period) else period,
                separation,
                known_type(kind).class_name,
            )
            for name, kind, period, separation in zip(names, types, periods, self.separation.tolist(), strict=True)
        ]


class CatalogReader:
    """Matches positions with the catalogues of one Redis. Does no I/O itself. Threads may share it."""

    def __init__(self, prefix: str = "trifid") -> None:
        self.meta_key: Final = index_key(prefix)
        self._prefix = prefix
        self._index = _Index(None)
        self._reported: set[str] = set()

    def prime(self, meta: bytes | None) -> bool:
        """Take the value of ``meta_key``, for requests made from now on; returns whether it says something new."""
        if meta == self._index.meta:
            return False
        catalogs: tuple[tuple[str, CatalogLayout], ...] = ()
        try:
            catalogs = tuple((entry.name, entry.current) for entry in decode_index(meta) if entry.current is not None)
        except CatalogError as error:
            self._report(str(error))
        self._index = _Index(meta, catalogs)
        return True

    def request(self, ra: Array, dec: Array) -> CatalogRequest:
        """What to read for positions (n,) in ICRS degrees; those that are none are left out."""
        index = self._index  # once: another thread may take a newer one meanwhile
        keys = [self.meta_key]
        parts = []
        valid = np.flatnonzero(np.isfinite(ra) & (np.abs(dec) <= 90.0))
        for name, layout in index.catalogs if len(valid) else ():
            owner, cell = sky.cone_cells(ra[valid], dec[valid], layout.search_radius, layout.order)
            cells, number = np.unique(cell, return_inverse=True)
            parts.append(_Part(name, layout, len(keys), len(cells), valid[owner], number))
            start = cell_prefix(self._prefix, name, layout.generation)
            keys += [f"{start}{cell}" for cell in cells.tolist()]
        return CatalogRequest(keys, tuple(parts), index)

    def read(
        self,
        ra: Array,
        dec: Array,
        mget: Callable[[list[str]], Sequence[bytes | None]],
        asked: tuple[CatalogRequest, Sequence[bytes | None]] | None = None,
    ) -> tuple[CatalogRequest, Sequence[bytes | None]]:
        """A request for positions (n,) in ICRS degrees and the values of its keys, of the catalogues as they are.

        ``asked`` is a request that was read already, with its values. Where catalogues came, went or were replaced
        since a request was made, whose cells may be gone by now, it is made and read again.
        """
        request, values = asked if asked is not None else (self.request(ra, dec), None)
        for _ in range(_MOST_READS):
            if values is None:
                values = mget(request.keys)
            if values[0] == request.index.meta:
                return request, values
            self.prime(values[0])
            request, values = self.request(ra, dec), None
        return request, mget(request.keys)

    def match(
        self, request: CatalogRequest, values: Sequence[bytes | None], ra: Array, dec: Array, mjd: Array
    ) -> list[Catalogued]:
        """What the catalogues know of each position (n,), ICRS degrees at times (n,) MJD.

        ``values`` are those of ``request.keys``. Of each catalogue the nearest source within its radius counts,
        each moved to the alert's time. Values of several catalogues fill each other up, the first loaded first;
        of catalogues of known variable stars each gives its star.
        """
        merged = np.full((len(ra), len(SOURCE_FEATURES)), np.nan, np.float32)
        matched = np.zeros(len(ra), np.bool_)
        stars: dict[int, list[KnownObject]] = defaultdict(list)
        for one in self._found(request, values, ra, dec, mjd):
            if one is None:
                continue
            if one.layout.known:
                for alert, star in zip(one.alert.tolist(), one.known(), strict=True):
                    stars[alert].append(star)
                continue
            before = merged[one.alert]
            merged[one.alert] = np.where(np.isnan(before), one.values(), before)
            matched[one.alert] = True
        return [
            Catalogued(SourceMetadata(row) if has_values else None, tuple(stars.get(number, ())))
            for number, (row, has_values) in enumerate(zip(merged, matched.tolist(), strict=True))
        ]

    def matches(
        self, request: CatalogRequest, values: Sequence[bytes | None], ra: Array, dec: Array, mjd: Array
    ) -> list[Match]:
        """The source of each catalogue at one position (1,), as ``match`` finds it."""
        found = self._found(request, values, ra, dec, mjd)
        return [
            Match(one.name, float(one.separation[0]), {}, one.known()[0])
            if one.layout.known
            else Match(
                one.name,
                float(one.separation[0]),
                {n: v for n, v in zip(SOURCE_FEATURES, one.values()[0].tolist(), strict=True) if v == v},
            )
            for one in found
            if one is not None
        ]

    def _found(
        self, request: CatalogRequest, values: Sequence[bytes | None], ra: Array, dec: Array, mjd: Array
    ) -> list[_Found | None]:
        """What each catalogue of a request has."""
        year = julian_year_of(mjd)
        year = np.where((year >= FIRST_YEAR) & (year <= LAST_YEAR), year, ASSUMED_YEAR)
        motion = np.full((len(ra), 2), np.nan)
        found: list[_Found | None] = [None] * len(request.parts)
        # Those with proper motions first: theirs say where the star was when the others saw it.
        for number in sorted(range(len(found)), key=lambda n: not request.parts[n].layout.moves):
            found[number] = self._nearest(request.parts[number], values, ra, dec, year, motion)
        return found

    def _nearest(
        self, part: _Part, values: Sequence[bytes | None], ra: Array, dec: Array, year: Array, motion: Array
    ) -> _Found | None:
        """The nearest source to each alert; what is unknown of ``motion`` (n, 2), mas a year, is filled in."""
        layout = part.layout
        cells = [self._rows(part, value) for value in values[part.first : part.first + part.count]]
        rows = np.array([len(cell) for cell in cells]) // layout.row_bytes
        words = np.frombuffer(b"".join(cells), "<u4").reshape(-1, layout.words)
        # Pairs of an alert and a row: each row of each cell of the alert.
        count = rows[part.cell]
        alert = np.repeat(part.owner, count)
        first = (np.cumsum(rows) - rows)[part.cell] - (np.cumsum(count) - count)
        row = np.repeat(first, count) + np.arange(len(alert))
        source_ra, source_dec, stored = unpack(words)
        # Most pairs are far apart, which their declinations tell without trigonometry: farther than a source can have
        # moved, by its own motion or by that which another catalogue has.
        path = _length(motion)[alert]
        years = year[alert] - layout.epoch
        if layout.moves:
            pm = stored[:, [layout.columns.index("pmra"), layout.columns.index("pmdec")]].astype(np.float64)
            path = path + _length(pm)[row]
        if EPOCH in layout.columns:
            seen = stored[:, layout.columns.index(EPOCH)].astype(np.float64)
            years = year[alert] - np.where(np.isnan(seen), layout.epoch, seen)[row]
        near = np.abs(source_dec[row] - dec[alert]) * ARCSEC <= 1.001 * (layout.radius + path * np.abs(years))
        alert, row, years = alert[near], row[near], years[near]
        moved = motion[alert]
        if layout.moves:
            moved = np.where(np.isnan(pm[row]), moved, pm[row])
        pmra, pmdec = moved.T
        at_ra, at_dec = sky.move(source_ra[row], source_dec[row], pmra, pmdec, years)
        distance = sky.separation(ra[alert], dec[alert], at_ra, at_dec)
        within = np.flatnonzero(distance <= layout.radius)
        if not len(within):
            return None
        alert, row, distance = alert[within], row[within], distance[within]
        faintness = np.zeros(len(row), np.float32)
        if layout.brightness is not None:
            faintness = np.nan_to_num(stored[row, layout.columns.index(layout.brightness)], nan=np.inf)
        # Positions are kept to a fraction of a mas: what is as near to that goes by brightness.
        order = np.lexsort((faintness, np.rint(distance * _MAS), alert))
        alert, best = np.unique(alert[order], return_index=True)
        row, distance = row[order][best], distance[order][best]
        if layout.moves:
            motion[alert] = np.where(np.isnan(motion[alert]), pm[row], motion[alert])
        return _Found(part.name, layout, alert, distance, stored[row])

    def _rows(self, part: _Part, value: bytes | None) -> bytes:
        """The bytes of a cell; none where they are no whole number of rows."""
        if value is None:
            return b""
        if len(value) % part.layout.row_bytes:
            self._report(f"catalogue {part.name}: stored rows are not of {part.layout.row_bytes} bytes")
            return b""
        return value

    def _report(self, problem: str) -> None:
        if problem not in self._reported:
            self._reported.add(problem)
            LOG.error("%s; what cannot be read is left out", problem)


def _length(motion: Array) -> Array:
    """Arcsec a year of motions (n, 2) in mas a year, 0 where unknown."""
    length: Array = np.hypot(*np.nan_to_num(motion).T) / _MAS
    return length
