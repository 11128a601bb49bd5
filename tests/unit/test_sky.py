"""Cells, separations and motion against astropy and against random points."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

from broker import sky

RNG = np.random.default_rng(20261124)
COUNT = 20_000


def positions() -> tuple[sky.Array, sky.Array]:
    """All over the sky, and many at the poles, the origin and the corners of HEALPix's base cells."""
    ra, dec = RNG.uniform(0, 360, COUNT), np.degrees(np.arcsin(RNG.uniform(-1, 1, COUNT)))
    special = np.array([(0, 0), (359.9999, 0.0001), (10, 89.9999), (200, -89.9999), (45, 41.8103149), (90, -41.81)])
    near = special[RNG.integers(len(special), size=COUNT // 4)] + RNG.normal(0, 1e-3, (COUNT // 4, 2))
    return np.append(ra, near[:, 0] % 360), np.append(dec, np.clip(near[:, 1], -89.99999, 89.99999))


@pytest.mark.parametrize(("order", "radius"), [(8, 2.0), (10, 12.0), (13, 3.0)])
def test_the_cells_of_a_cone_hold_all_points_of_it(order: int, radius: float) -> None:
    ra, dec = positions()
    owner, cell = sky.cone_cells(ra, dec, radius, order)
    held = set(zip(owner.tolist(), cell.tolist(), strict=True))
    assert len(held) == len(owner)
    for _ in range(5):
        bearing, share = RNG.uniform(0, 2 * np.pi, len(ra)), np.sqrt(RNG.uniform(0, 1, len(ra)))
        motion = 1000 * radius * share
        point = sky.move(ra, dec, motion * np.sin(bearing), motion * np.cos(bearing), np.ones(len(ra)))
        inside = sky.cells(*point, order)
        assert held.issuperset(enumerate(inside.tolist()))


def test_separations_are_astropys() -> None:
    ra, dec = positions()
    other_ra, other_dec = np.roll(ra, 1), np.roll(dec, 1)
    expected = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(other_ra, other_dec, unit="deg")).arcsec
    np.testing.assert_allclose(sky.separation(ra, dec, other_ra, other_dec), expected, rtol=1e-9, atol=1e-6)


def test_motion_is_astropys() -> None:
    ra, dec = positions()
    # astropy's own motion is along a straight line in space: the same over so short an arc.
    pmra, pmdec = RNG.normal(0, 2000, (2, len(ra)))
    years = RNG.uniform(-15, 15, len(ra))
    start = SkyCoord(ra, dec, unit="deg")
    bearing = np.degrees(np.arctan2(pmra * years, pmdec * years))
    arc = np.hypot(pmra, pmdec) * np.abs(years) / 1000
    end = start.directional_offset_by(bearing * units.deg, arc * units.arcsec)
    moved = sky.move(ra, dec, pmra, pmdec, years)
    assert np.max(sky.separation(*moved, end.ra.deg, end.dec.deg)) < 1e-5
    still = sky.move(ra, dec, pmra * np.nan, pmdec, years * np.nan)
    assert np.max(sky.separation(*still, ra, dec)) < 1e-4


@pytest.mark.parametrize("order", [8, 12])
def test_a_path_stays_within_its_cells(order: int) -> None:
    ra, dec = (column[:500] for column in positions())
    pmra, pmdec = RNG.normal(0, 3000, (2, 500))
    pmra[:100] = pmdec[:100] = np.nan
    before, after = np.full(500, 26.0), np.full(500, 44.0)
    owner, cell = sky.track_cells(ra, dec, pmra, pmdec, before, after, 0.0, order)
    held = set(zip(owner.tolist(), cell.tolist(), strict=True))
    assert len(held) == len(owner)
    for years in np.linspace(-26, 44, 141):
        there = sky.cells(*sky.move(ra, dec, pmra, pmdec, np.full(500, years)), order)
        assert held.issuperset(enumerate(there.tolist()))
