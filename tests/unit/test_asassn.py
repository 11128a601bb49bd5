"""V and g of ASAS-SN, told apart where the table does not: simulated stars whose filters are known, and real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from broker.bands import BAND_CODE, BANDS
from broker.lightcurves.asassn import FIRST_G, LAST_V, UNNAMED, G, V, bands_of_cameras, is_asassn, split_filters
from broker.lightcurves.files import read_light_curves

Array = NDArray[np.float64]


def season(rng: np.random.Generator, first: float, last: float, size: int) -> Array:
    """Times of half a year in each year."""
    time = rng.uniform(first, last, 2 * size)
    return np.sort(time[np.mod(time, 365.25) < 220.0][:size])


def star(variation: Callable[[Array], Array], offset: float, noise: float = 0.02) -> tuple[Array, Array, Array]:
    """Times, magnitudes and true bands of a star whose magnitude in g is ``offset`` fainter than in V."""
    rng = np.random.default_rng(3)
    v, g = season(rng, 56_600.0, 58_440.0, 400), season(rng, 58_020.0, 60_800.0, 900)
    time = np.concatenate([v, g])
    band = np.repeat([V, G], [len(v), len(g)])
    magnitude = 14.0 + variation(time) + rng.normal(0.0, noise, len(time)) + offset * (band == G)
    order = np.argsort(time)
    return time[order], magnitude[order], band[order]


def eclipses(time: Array) -> Array:
    return 0.5 * np.exp(-0.5 * ((np.mod(time / 2.37, 1.0) - 0.5) / 0.015) ** 2)


def mira(time: Array) -> Array:
    return 1.2 * np.sin(2 * np.pi * time / 390.0)


def contact(time: Array) -> Array:
    return 0.2 * np.cos(4 * np.pi * time / 0.37)


@pytest.mark.parametrize(
    ("variation", "offset", "undecided"),
    [(eclipses, 0.2, 0.1), (mira, 0.8, 0.05), (contact, 0.6, 0.1), (np.zeros_like, 0.15, 0.02)],
)
def test_filters_of_the_overlap(variation: Callable[[Array], Array], offset: float, undecided: float) -> None:
    time, magnitude, band = star(variation, offset)
    found = split_filters(time, magnitude, np.full(len(time), UNNAMED, np.uint8))
    assert np.array_equal(found[time < FIRST_G], band[time < FIRST_G])
    assert np.array_equal(found[time > LAST_V], band[time > LAST_V])
    both = (time >= FIRST_G) & (time <= LAST_V)
    assert min(np.sum(band[both] == V), np.sum(band[both] == G)) > 50
    decided = both & (found != UNNAMED)
    assert np.sum(both & ~decided) <= undecided * np.sum(both)
    assert np.mean(found[decided] == band[decided]) > 0.98


def test_what_cannot_be_told_is_left_out_whole() -> None:
    """With levels closer than the variation, faint points would be taken for g and bright ones for V."""
    time, magnitude, _ = star(contact, 0.15)
    found = split_filters(time, magnitude, np.full(len(time), UNNAMED, np.uint8))
    both = (time >= FIRST_G) & (time <= LAST_V)
    assert (found[both] == UNNAMED).all()
    assert (found[~both] != UNNAMED).all()


@pytest.mark.parametrize("only", [V, G])
def test_one_filter_alone_is_not_split(only: int) -> None:
    time, magnitude, band = star(mira, 0.8)
    time, magnitude = time[band == only], magnitude[band == only]
    found = split_filters(time, magnitude, np.full(len(time), UNNAMED, np.uint8))
    assert (found == only).all()


def test_bands_that_are_known_stay() -> None:
    time, magnitude, band = star(eclipses, 0.2)
    given = band.astype(np.uint8)
    given[::2] = UNNAMED
    found = split_filters(time, magnitude, given)
    assert np.array_equal(found[1::2], band[1::2])


def test_cameras() -> None:
    early, late = 58_200.0, 59_000.0
    found = bands_of_cameras(["ba", "bh", "bi", "bt", "ba", "bA", "c1", None], np.array([early] * 4 + [late] * 4))
    assert found.tolist() == [V, V, G, G, G, G, UNNAMED, UNNAMED]


@pytest.mark.parametrize(
    ("text", "named"), [("asassn_lc_gaia.parquet", True), ("ASAS-SN Sky Patrol", True), ("ASASSN-V J1", True),
                        ("asas_v.parquet", False), ("ztf", False)],
)  # fmt: skip
def test_recognised(text: str, named: bool) -> None:
    assert is_asassn(text) == named


def write(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def bands_read(path: Path) -> tuple[set[str], list[str]]:
    said: list[str] = []
    curves = list(read_light_curves(path, said.append))
    return {BANDS[code] for curve in curves for code in curve.light_curve.band}, said


def test_a_table_without_filters(tmp_path: Path) -> None:
    time, magnitude, _ = star(eclipses, 0.2)
    columns: dict[str, object] = {"mjd": time, "mag": magnitude, "mag_err": np.full(len(time), 0.02)}
    found, said = bands_read(write(tmp_path / "asassn.parquet", columns))
    assert found == {"asassn:V", "asassn:g"}
    assert sum("no column for the filter: ASAS-SN's V and g are told apart by date" in line for line in said) == 1
    assert any("of ASAS-SN in V or in g, and nothing tells which" in line for line in said)
    # By the objects' names, and by cameras.
    names = {"name": ["ASASSN-V J000216.80+595807.5"] * len(time)}
    assert bands_read(write(tmp_path / "a.parquet", names | columns))[0] == {"asassn:V", "asassn:g"}
    cameras = {"camera": np.where(np.arange(len(time)) % 2, "ba", "bk")}
    assert bands_read(write(tmp_path / "b.parquet", cameras | columns))[0] == {"asassn:V", "asassn:g"}
    # A table of some other survey is taken as one band, and that is said.
    bands, remarks = bands_read(write(tmp_path / "c.parquet", columns))
    assert bands == {"asas:V"}
    assert remarks[0] == said[0].replace("asassn", "c")
    assert remarks[1].endswith("no column for the band: taken as asas:V (trifid classify --band, if another)")


def test_real_stars(shared: Path) -> None:
    """The Mira J000216.80+595807.5: 0.8 mag between the filters, and both follow its 390 days."""
    path = shared / "data" / "multiband" / "asassn_lc_gaia.parquet"
    if not path.exists():
        pytest.skip(f"no {path}")
    curve = next(curve for curve in read_light_curves(path) if curve.name == "J000216.80+595807.5").light_curve
    magnitude = -2.5 * np.log10(curve.flux.astype(np.float64))
    left = []
    for band in ("asassn:V", "asassn:g"):
        own = curve.band == BAND_CODE[band]
        phase = 2 * np.pi * curve.mjd[own] / 390.01
        terms = np.stack([np.ones(own.sum()), *(f(k * phase) for k in (1, 2) for f in (np.sin, np.cos))], axis=1)
        fit = np.linalg.lstsq(terms, magnitude[own], rcond=None)[0]
        left.append((fit[0], np.std(magnitude[own] - terms @ fit) / np.std(magnitude[own])))
    assert 0.5 < left[1][0] - left[0][0] < 1.5
    assert max(ratio for _, ratio in left) < 0.7
