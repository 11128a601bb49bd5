"""Where remembered objects and spectra are on the sky, so that others at the same place find them."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

import numpy as np

from broker import sky
from broker.assemble.metadata import METADATA_FEATURES
from broker.records import Alert, ObservedSpectrum, SourceMetadata

ORDER: Final = 10
"""Of the HEALPix cells, which are 206 arcsec wide: few objects share one, and few cones reach out of one."""
MARGIN: Final = 10.0
"""Arcsec that an object may have moved since it was last seen and still be found in any case."""
MAX_YEARS: Final = 100.0
"""Longest time over which proper motion is followed: a mistaken date must not send an object across the sky."""
_PACKED: Final = struct.Struct("<ddddd")
_PM: Final = (METADATA_FEATURES.index("pmra"), METADATA_FEATURES.index("pmdec"))

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Place:
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
        years = (mjd - self.mjd) / sky.JULIAN_YEAR
        years = 0.0 if math.isnan(years) else min(max(years, -MAX_YEARS), MAX_YEARS)
        cos_dec = max(math.cos(math.radians(self.dec)), 1e-9)
        x, y, z = _vector(
            self.ra + self.pmra / 3.6e6 / cos_dec * years, min(max(self.dec + self.pmdec / 3.6e6 * years, -90.0), 90.0)
        )
        x0, y0, z0 = _vector(ra, dec)
        return math.degrees(math.sqrt((x - x0) ** 2 + (y - y0) ** 2 + (z - z0) ** 2)) * sky.ARCSEC


def place_of(alert: Alert, metadata: SourceMetadata | None) -> Place:
    """Where an alert's object is, with the proper motion among its catalogue values."""
    motion = [0.0, 0.0] if metadata is None else np.nan_to_num(metadata.values[list(_PM)]).tolist()
    return Place(alert.ra, alert.dec, alert.mjd, *motion)


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


def own_cells(positions: Sequence[Alert | ObservedSpectrum]) -> list[int]:
    """The cell of each position."""
    ra, dec = (np.array([getattr(p, name) for p in positions]) for name in ("ra", "dec"))
    found: list[int] = sky.cells(ra, dec, ORDER).tolist()
    return found


class Places(Generic[Name]):
    """Names by place."""

    def __init__(self) -> None:
        self._cells: defaultdict[int, dict[Name, Place]] = defaultdict(dict)
        self._cell_of: dict[Name, int] = {}

    def put(self, name: Name, place: Place, cell: int) -> None:
        """Say where something is; where it was before is forgotten."""
        before = self._cell_of.get(name)
        if before is not None and before != cell:
            del self._cells[before][name]
        self._cell_of[name] = cell
        self._cells[cell][name] = place

    def remove(self, name: Name) -> None:
        """Forget where something is."""
        cell = self._cell_of.pop(name, None)
        if cell is not None:
            del self._cells[cell][name]

    def place(self, name: Name) -> Place | None:
        """Where something is; None where nobody said."""
        cell = self._cell_of.get(name)
        return None if cell is None else self._cells[cell].get(name)

    def near(self, at: Alert | ObservedSpectrum, cells: Iterable[int], radius: float) -> list[tuple[float, Name]]:
        """Distances in arcsec and names of what is within ``radius`` arcsec, the nearest first."""
        found = [
            (distance, name)
            for cell in cells
            for name, place in self._cells.get(cell, {}).items()
            if (distance := place.distance(at.ra, at.dec, at.mjd)) <= radius
        ]
        return sorted(found, key=lambda item: item[0])


def _vector(ra: float, dec: float) -> tuple[float, float, float]:
    ra, dec = math.radians(ra), math.radians(dec)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)
