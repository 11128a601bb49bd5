"""Which rows are one star: by name, or within 5 arcsec on the sky."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from training.datasets.splits import same_star_groups
from training.datasets.tables import ObjectTable


def table(ra: list[float], dec: list[float], star_id: list[str] | None = None) -> ObjectTable:
    size = len(ra)
    names = np.array(star_id or [f"star {i}" for i in range(size)], object)
    nothing = np.full(size, None, object)
    return ObjectTable(
        names, names, nothing, np.array(ra), np.array(dec), nothing, nothing, np.zeros(size, np.bool_), [],
        np.zeros(size), {},
    )  # fmt: skip


@pytest.mark.parametrize("dec", [0.0, 60.0, -85.0])
@pytest.mark.parametrize("bearing", [0.0, 90.0, 225.0])
@pytest.mark.parametrize(("arcsec", "one"), [(4.9, True), (5.1, False), (60.0, False), (290.0, False)])
def test_five_arcsec_on_the_sky(dec: float, bearing: float, arcsec: float, one: bool) -> None:
    there = SkyCoord(10.0 * u.deg, dec * u.deg).directional_offset_by(bearing * u.deg, arcsec * u.arcsec)
    first, second = same_star_groups(table([10.0, float(there.ra.deg)], [dec, float(there.dec.deg)])).tolist()
    assert (first == second) is one


def test_a_name_and_a_chain_of_neighbours_make_one_star() -> None:
    step = 4.0 / 3600
    ra = [10.0, 10.0 + step, 10.0 + 2 * step, 200.0, 359.9999, 0.0001, 50.0]
    groups = same_star_groups(table(ra, [0.0] * 7, ["a", "b", "c", "a", "d", "e", "f"])).tolist()
    assert groups[0] == groups[1] == groups[2] == groups[3]
    assert groups[4] == groups[5]  # 0.7 arcsec apart, over the meridian
    assert len(set(groups)) == 3
