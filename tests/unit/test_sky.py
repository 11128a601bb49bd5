"""Cells, separations and motion against astropy and against random points."""

from __future__ import annotations

import hpgeom
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


@pytest.mark.parametrize(("order", "radius"), [(7, 24.0), (8, 24.0), (8, 80.0)])
def test_the_cells_of_a_disc_are_all_that_it_reaches_into(order: int, radius: float) -> None:
    """Against a fine grid of points within the disc, at edges and corners everywhere, poles and RA 0 among them."""
    rng = np.random.default_rng(3)
    pixels = np.concatenate([rng.choice(12 << 2 * order, 100, replace=False), [0, (12 << 2 * order) - 1]])
    ra, dec = (np.concatenate([x, y]) for x, y in zip(
        (b.ravel() for b in hpgeom.boundaries(1 << order, pixels, 1)),
        (b.ravel() for b in hpgeom.boundaries(1 << order, pixels, 3)),
        strict=True,
    ))  # fmt: skip
    ra = np.concatenate([ra, rng.uniform(0, 360, 40), [0.0, 0.0, 359.99999]])
    dec = np.concatenate([dec, np.full(20, 89.9999), np.full(20, -89.9999), [90.0, -90.0, 0.0]])
    # Moved away from the corner by up to the radius, so that the corner is anywhere within the disc.
    ra, dec = sky.move(ra, dec, *(1000 * radius * rng.uniform(-0.75, 0.75, (2, len(ra)))), np.ones(len(ra)))
    owner, cell = sky.disc_cells(ra, dec, radius, order)
    assert len(set(zip(owner.tolist(), cell.tolist(), strict=True))) == len(owner)
    found: dict[int, set[int]] = {}
    for row, number in zip(owner.tolist(), cell.tolist(), strict=True):
        found.setdefault(row, set()).add(number)
    angle, size = rng.uniform(0, 2 * np.pi, 1500), radius * np.sqrt(rng.uniform(0, 1, 1500))
    angle, size = np.append(angle, np.linspace(0, 2 * np.pi, 500)), np.append(size, np.full(500, radius))
    motion = 1000 * size * np.sin(angle), 1000 * size * np.cos(angle)
    beyond = []
    for row in range(len(ra)):
        inside = sky.cells(*sky.move(np.full(2000, ra[row]), np.full(2000, dec[row]), *motion, np.ones(2000)), order)
        assert set(inside.tolist()) <= found[row], (ra[row], dec[row])
        beyond.append(len(found[row]) - len(set(inside.tolist())))
    assert np.mean(beyond) < 0.5
    # In the middle of cells there is one.
    middle = hpgeom.pixel_to_angle(1 << order, pixels)
    assert len(sky.disc_cells(*middle, radius, order)[0]) == len(pixels)
