"""Where stored objects and spectra are on the sky, so that others at the same place find them."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final, Generic, Self, TypeVar

import numpy as np

from broker import sky
from broker.metrics import CROWDED_SEARCHES
from broker.records import METADATA_FEATURES, Alert, ObservedSpectrum, SourceMetadata
from broker.sky import unit_vector
from broker.times import JULIAN_YEAR

ORDER: Final = 10
"""Of the HEALPix cells, which are 206 arcsec wide: few objects share one, and few cones reach out of one."""
HOME_ORDER: Final = 8
"""Of the coarse cells, 825 arcsec wide, whose number is the hash tag of the keys of what is in them: all of one cell is
in one slot of a cluster, and so on one node. There are 48 cells for each of its 16,384 slots (docs/state.md)."""
MARGIN: Final = 10.0
"""Arcsec that an object may have moved since it was last seen and still be found in any case."""
MAX_YEARS: Final = 100.0
"""Longest time over which proper motion is followed: a mistaken date must not send an object across the sky."""
BIN: Final = math.radians(24.0 / sky.ARCSEC)
"""Edge of the bins of space, on the unit sphere, in which places are looked up: a cone of the usual radius reaches into
eight of them at most, and the densest fields have some hundred objects in each."""
CROWD: Final = 256
"""So many places of each survey in one bin are looked at, and no more: 5 million a square degree, which no survey of
alerts has. A stream with mistakes in it may have any number at one place."""
NEAREST: Final = 8
"""So many objects of each other survey near an alert are read, the nearest, and so many spectra, the latest. One of
each counts; the others are there in case that it moves while the batch is handled."""
CELL: Final = 20_000
"""So many entries of a cell are looked at, and no more: as many as fill its bins with CROWD each would be less."""
BUDGET: Final = 20_000
"""Entries after which ``read.lua`` leaves the other alerts of a batch to another call: Redis serves nobody else while
it runs, some 20 ms for so many."""
WIDE: Final = 800.0
"""Arcsec within which an object is looked for by the name that a spectrum has: nearly a coarse cell, so that the cone
reaches out of one from wherever in it. Names are not looked up all over the sky, since keys are by place."""
_PACKED: Final = struct.Struct("<ddddd")
_PM: Final = (METADATA_FEATURES.index("pmra"), METADATA_FEATURES.index("pmdec"))

Name = TypeVar("Name", str, tuple[str, str])
_Bin = tuple[int, int, int]
_Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """A position at a time, and how it moves."""

    ra: float
    """ICRS degrees."""
    dec: float
    mjd: float
    """MJD UTC."""
    pmra: float = 0.0
    """mas a year, with cos dec; 0 where unknown."""
    pmdec: float = 0.0

    def pack(self) -> bytes:
        """40 bytes, as ``read.lua`` reads them."""
        return _PACKED.pack(self.ra, self.dec, self.mjd, self.pmra, self.pmdec)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse of ``pack``; raises struct.error for bytes of another length."""
        return cls(*_PACKED.unpack(data))

    def distance(self, ra: float, dec: float, mjd: float) -> float:
        """Arcsec to a position at another time, after moving there."""
        years = (mjd - self.mjd) / JULIAN_YEAR
        years = 0.0 if math.isnan(years) else min(max(years, -MAX_YEARS), MAX_YEARS)
        cos_dec = max(math.cos(math.radians(self.dec)), 1e-9)
        x, y, z = unit_vector(
            self.ra + self.pmra / 3.6e6 / cos_dec * years, min(max(self.dec + self.pmdec / 3.6e6 * years, -90.0), 90.0)
        )
        x0, y0, z0 = unit_vector(ra, dec)
        return math.degrees(math.sqrt((x - x0) ** 2 + (y - y0) ** 2 + (z - z0) ** 2)) * sky.ARCSEC


def place_of(alert: Alert, metadata: SourceMetadata | None) -> StoredPlace:
    """Where an alert's object is, with the proper motion among its catalogue values."""
    motion = [0.0, 0.0] if metadata is None else np.nan_to_num(metadata.values[list(_PM)]).tolist()
    return StoredPlace(alert.ra, alert.dec, alert.mjd, *motion)


def search_cells(positions: Sequence[Alert | ObservedSpectrum], radius: float) -> list[list[int]]:
    """For each position the cells in which to look for what is within ``radius`` arcsec of it."""
    if not positions:
        return []
    ra, dec = (np.array([getattr(p, name) for p in positions]) for name in ("ra", "dec"))
    owner, cell = sky.cone_cells(ra, dec, radius + MARGIN, ORDER)
    found: list[list[int]] = [[] for _ in positions]
    for row, number in zip(owner.tolist(), cell.tolist(), strict=True):
        found[row].append(number)
    return found


def own_homes(positions: Sequence[Alert | ObservedSpectrum]) -> list[str]:
    """The coarse cell of each position."""
    ra, dec = (np.array([getattr(p, name) for p in positions]) for name in ("ra", "dec"))
    return list(map(str, sky.cells(ra, dec, HOME_ORDER).tolist()))


def near_homes(positions: Sequence[Alert | ObservedSpectrum], radius: float) -> list[list[str]]:
    """For each position the coarse cells that reach within ``radius`` arcsec of it."""
    if not positions:
        return []
    ra, dec = (np.array([getattr(p, name) for p in positions]) for name in ("ra", "dec"))
    owner, cell = sky.disc_cells(ra, dec, radius, HOME_ORDER)
    found: list[list[str]] = [[] for _ in positions]
    for row, number in zip(owner.tolist(), cell.tolist(), strict=True):
        found[row].append(str(number))
    return found


def wide_homes(position: ObservedSpectrum) -> list[str]:
    """The coarse cell of a position and all around it."""
    _, cell = sky.cone_cells(np.array([position.ra]), np.array([position.dec]), WIDE, HOME_ORDER)
    return list(map(str, cell.tolist()))


def own_cells(positions: Sequence[Alert | ObservedSpectrum]) -> list[int]:
    """The cell of each position."""
    ra, dec = (np.array([getattr(p, name) for p in positions]) for name in ("ra", "dec"))
    found: list[int] = sky.cells(ra, dec, ORDER).tolist()
    return found


class SkyIndex(Generic[Name]):
    """Names by place, in bins of space, in groups that can be left out of a search: a survey's objects.

    The cost of a search does not depend on how many places there are, nor on how many are at the same one.
    """

    def __init__(self) -> None:
        self._bins: defaultdict[_Bin, defaultdict[str, dict[Name, tuple[StoredPlace, _Vector]]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self._where: dict[Name, tuple[_Bin, str]] = {}
        self._groups: defaultdict[str, int] = defaultdict(int)
        """How many there are of each group."""

    def put(self, name: Name, place: StoredPlace, group: str = "") -> None:
        """Say where something is; where it was before is removed."""
        x, y, z = vector = unit_vector(place.ra, place.dec)
        where = (math.floor(x / BIN), math.floor(y / BIN), math.floor(z / BIN)), group
        before = self._where.get(name)
        if before is not None and before != where:
            del self._bins[before[0]][before[1]][name]
        if before is None or before[1] != group:
            self._groups[group] += 1
            if before is not None:
                self._groups[before[1]] -= 1
        self._where[name] = where
        self._bins[where[0]][group][name] = place, vector

    def remove(self, name: Name) -> None:
        """Forget where something is."""
        where = self._where.pop(name, None)
        if where is not None:
            del self._bins[where[0]][where[1]][name]
            self._groups[where[1]] -= 1

    def place(self, name: Name) -> StoredPlace | None:
        """Where something is; None where it is not known."""
        where = self._where.get(name)
        return None if where is None else self._bins[where[0]][where[1]][name][0]

    def near(self, at: Alert | ObservedSpectrum, radius: float, without: str | None = None) -> list[tuple[float, Name]]:
        """Distances in arcsec and names of what is within ``radius`` arcsec, the nearest first, equals by name.

        Nothing of the group ``without``. What has moved by more than MARGIN since it was put may be missed, and so may
        be what is beyond the first CROWD of a group in a bin, which a metric counts.
        """
        found: list[tuple[float, Name]] = []
        if not any(number for group, number in self._groups.items() if group != without):
            return found
        crowded = False
        x, y, z = centre = unit_vector(at.ra, at.dec)
        limit = math.radians(radius / sky.ARCSEC) * (1 + 1e-9)
        for bin_ in _bins_around(centre, math.radians((radius + MARGIN) / sky.ARCSEC)):
            for group, places in self._bins[bin_].items() if bin_ in self._bins else ():
                if group == without:
                    continue
                crowded |= len(places) > CROWD
                for name, (place, (x0, y0, z0)) in islice(places.items(), CROWD):
                    still = place.pmra == place.pmdec == 0.0
                    if still and (x - x0) ** 2 + (y - y0) ** 2 + (z - z0) ** 2 > limit**2:
                        continue
                    distance = place.distance(at.ra, at.dec, at.mjd)
                    if distance <= radius:
                        found.append((distance, name))
        if crowded:
            CROWDED_SEARCHES.inc()
        return sorted(found)


def _bins_around(centre: _Vector, radius: float) -> Iterator[_Bin]:
    """The bins that a position's surroundings reach into; ``radius`` in radians."""
    x, y, z = (range(math.floor((value - radius) / BIN), math.floor((value + radius) / BIN) + 1) for value in centre)
    return product(x, y, z)
