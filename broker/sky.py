"""Positions on the sky: HEALPix cells (Gorski et al. 2005, ApJ 622, 759), separations, motion.

Arrays of ICRS degrees; cells are numbered in HEALPix's nested scheme.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import hpgeom
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ARCSEC: Final = 3600.0
"""Arcseconds a degree."""
_DIRECTIONS: Final = 16
_SIZE: Final = ARCSEC * float(np.degrees(np.sqrt(np.pi / 3.0)))
"""Arcsec, of a cell of order 0."""


def _at_edge() -> NDArray[np.bool_]:
    """(256,) whether the cell of such a number is at the edge of the one four orders above.

    Its x and y are every other bit of the number.
    """
    number = np.arange(256)
    x, y = (sum(((number >> 2 * bit + shift) & 1) << bit for bit in range(4)) for shift in (0, 1))
    return np.asarray((x == 0) | (x == 15) | (y == 0) | (y == 15), np.bool_)


_AT_EDGE: Final = _at_edge()


def cells(ra: Array, dec: Array, order: int) -> NDArray[np.int64]:
    """The cell (n,) of each position (n,)."""
    if not len(ra):
        return np.empty(0, np.int64)
    return np.asarray(hpgeom.angle_to_pixel(1 << order, np.mod(ra, 360.0), dec), np.int64)


def cone_cells(ra: Array, dec: Array, radius: float, order: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """All cells that a point within ``radius`` arcsec of each position (n,) can be in.

    Returns the index of the position and the cell, both (m,) with m >= n. A cone that stays in one cell, as most
    do where cells are much larger, gives that one; any other gives the cell and its eight neighbours. The radius
    must be smaller than a cell.
    """
    own = cells(ra, dec, order)
    # Points on a circle a little wider: each straight edge that cuts the cone has one of them behind it, since
    # 1.05 cos(180 deg / 16) > 1, and a corner within the cone has two such edges.
    angle = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    around_ra, around_dec = _offset(ra[:, None], dec[:, None], 1.05 * radius * np.exp(1j * angle))
    around = cells(around_ra.ravel(), around_dec.ravel(), order).reshape(-1, _DIRECTIONS)
    split = np.flatnonzero(np.any(around != own[:, None], axis=1))
    if not len(split):
        return np.arange(len(own)), own
    neighbours = np.asarray(hpgeom.neighbors(1 << order, own[split]), np.int64)
    owner = np.concatenate([np.arange(len(own)), np.repeat(split, neighbours.shape[1])])
    cell = np.concatenate([own, neighbours.ravel()])
    exists = cell >= 0  # some cells have seven neighbours only
    return owner[exists], cell[exists]


def disc_cells(ra: Array, dec: Array, radius: float, order: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The cells that a disc of ``radius`` arcsec around each position (n,) reaches into, and few that it does not.

    As ``cone_cells``, for cells that are costly to look into: it gives those that have a point of a circle half as wide
    again, and not all neighbours of the position's cell. The radius must be smaller than half a cell.
    """
    fine = cells(ra, dec, order + 4)
    own = fine >> 8
    # Whoever is not among the outermost sixteenths of a cell is far enough from its edge, for a small radius.
    small = radius < _SIZE / (30 << order)
    near = np.flatnonzero(_AT_EDGE[fine & 255]) if small else np.arange(len(own))
    if not len(near):
        return np.arange(len(own)), own
    around = _circle_cells(ra[near], dec[near], 1.05 * radius, _DIRECTIONS, order)  # as in cone_cells
    near = near[np.any(around != own[near, None], axis=1)]
    # The corner of a cell at the edge of the disc, of the 50 degrees that the sharpest have, spans 17 degrees of this
    # circle, and its points are 15 degrees apart.
    around = _circle_cells(ra[near], dec[near], 1.5 * radius, 24, order)
    factor = 12 << 2 * order  # more than the greatest cell
    pairs = np.unique(np.repeat(near, around.shape[1]) * factor + around.ravel())
    pairs = pairs[pairs % factor != own[pairs // factor]]
    return np.concatenate([np.arange(len(own)), pairs // factor]), np.concatenate([own, pairs % factor])


def _circle_cells(ra: Array, dec: Array, radius: float, directions: int, order: int) -> NDArray[np.int64]:
    """(n, directions) the cells of points on a circle around each position (n,)."""
    angle = 2 * np.pi * np.arange(directions) / directions
    around_ra, around_dec = _offset(ra[:, None], dec[:, None], radius * np.exp(1j * angle))
    return cells(around_ra.ravel(), around_dec.ravel(), order).reshape(-1, directions)


def track_cells(
    ra: Array, dec: Array, pmra: Array, pmdec: Array, before: Array, after: Array, radius: float, order: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The cells on the path of each source (n,), from ``before`` years ago to ``after`` years from now.

    Proper motion as ``move`` takes it. Returns the index of the source and the cell, both (m,), each pair once.
    Positions within ``radius`` arcsec of the path are in these cells, too.
    """
    pmra, pmdec = np.nan_to_num(pmra), np.nan_to_num(pmdec)
    length = np.hypot(pmra, pmdec) / 1000.0 * (before + after)  # arcsec
    size = _SIZE / (1 << order)
    # Steps of an eighth of a cell, with cones of that width around each: nothing lies between two.
    step = size / 8.0
    steps = np.ceil(length / step).astype(np.intp) + 1
    owner = np.repeat(np.arange(len(ra)), steps)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = number / np.maximum(steps[owner] - 1, 1)
    years = share * (before + after)[owner] - before[owner]
    path_ra, path_dec = move(ra[owner], dec[owner], pmra[owner], pmdec[owner], years)
    still = steps == 1
    if still.all():
        row, cell = cone_cells(path_ra, path_dec, radius, order) if radius else (owner, cells(path_ra, path_dec, order))
        return owner[row], cell
    row, cell = cone_cells(path_ra, path_dec, radius + step, order)
    pairs = np.unique(np.stack([owner[row], cell]), axis=1)
    return pairs[0].astype(np.intp), pairs[1]


def move(ra: Array, dec: Array, pmra: Array, pmdec: Array, years: Array) -> tuple[Array, Array]:
    """Positions after so many Julian years of proper motion in mas a year (``pmra`` with cos dec); NaN is none.

    Along a great circle, without the change of perspective: after 100 years that is below 0.1 arcsec for all
    stars but Barnard's.
    """
    motion = np.nan_to_num(pmra) + 1j * np.nan_to_num(pmdec)
    return _offset(ra, dec, motion * np.nan_to_num(years) / 1000.0)


def separation(ra: Array, dec: Array, other_ra: Array, other_dec: Array) -> Array:
    """Angles between positions in arcsec, by the haversine formula, which is exact for small ones."""
    half_dec = np.radians(other_dec - dec) / 2.0
    half_ra = np.radians(other_ra - ra) / 2.0
    h = np.sin(half_dec) ** 2 + np.cos(np.radians(dec)) * np.cos(np.radians(other_dec)) * np.sin(half_ra) ** 2
    result: Array = np.degrees(2.0 * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))) * ARCSEC
    return result


def unit_vector(ra: float, dec: float) -> tuple[float, float, float]:
    """A position (degrees) on the unit sphere; ``separation`` and others take arrays."""
    ra, dec = math.radians(ra), math.radians(dec)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)


def angle(text: str, *, hours: bool) -> float | None:
    """Degrees of a number in degrees or a sexagesimal text (``17:57:48.5``, ``17h57m48.5s``, ``+4 41 36``).

    A sexagesimal one is in hours where ``hours``, as right ascensions are. None for what is no angle.
    """
    from astropy import units
    from astropy.coordinates import Angle

    text = text.strip()
    try:
        degrees = float(text)
    except ValueError:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of 24 hours and 60 seconds, which are angles all the same
                degrees = float(Angle(text, units.hourangle if hours else units.deg).deg)
        except (ValueError, TypeError, units.UnitsError):
            return None
    return degrees if np.isfinite(degrees) else None


def _offset(ra: Array, dec: Array, offset: NDArray[Any]) -> tuple[Array, Array]:
    """Positions at a complex ``offset`` in arcsec, east + i north, along a great circle."""
    distance = np.radians(np.abs(offset) / ARCSEC)
    bearing = np.arctan2(offset.real, offset.imag)  # from north over east
    sin_dec, cos_dec = np.sin(np.radians(dec)), np.cos(np.radians(dec))
    new_sin = sin_dec * np.cos(distance) + cos_dec * np.sin(distance) * np.cos(bearing)
    east = np.sin(bearing) * np.sin(distance) * cos_dec
    shift = np.arctan2(east, np.cos(distance) - sin_dec * new_sin)
    new_dec = np.degrees(np.arcsin(np.clip(new_sin, -1.0, 1.0)))
    return np.mod(ra + np.degrees(shift), 360.0), new_dec
