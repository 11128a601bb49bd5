"""The training tables, their split and what catalogues call stars, on files of a few stars written here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time

from broker.errors import InputFileError
from broker.taxonomy import CLASS_INDEX
from tests.unit.training.test_star_groups import table as positions
from training.datasets.confusion import catalogue_confusion, name_counts
from training.datasets.splits import part_of_each, split
from training.datasets.tables import ObjectTable, load_objects

EW, EA, EB = (CLASS_INDEX[name] for name in ("EW", "EA", "EB"))
NOTHING = [None, None]
ASAS: dict[str, Any] = {
    "name": ["a1", "a2"], "css_id": [None, "c2"], "ra": [10.0, 20.0], "dec": [-5.0, -6.0], "label": ["EA", "EW"],
    "label_quality": ["gold", "weak"],
    "hjd": [[2_452_000.5, 2_452_001.25, 2_452_002.0], [2_452_010.5, 2_452_011.5]],
    "vmag": [[12.5, 12.75, 13.5], [11.0, float("nan")]], "vmag_err": [[0.05, 0.1, 0.2], [0.02, 0.02]],
    "gaia_g": [12.0, None], "gaia_pmra": [12.5, None], "gaia_pmdec": [11.5, None], "hip_plx": NOTHING,
    "hip_e_plx": NOTHING, "hip_bv": [0.5, None], "hip_vi": NOTHING,
}  # fmt: skip
CSS: dict[str, Any] = {
    "css_id": ["c1", "c2"], "ra": [30.0, 20.0], "dec": [-7.0, -6.0], "label": ["EW", "RRAB"],
    "mjd": [[53_600.0, 53_650.0], [53_700.0, 53_701.0]], "vmag": [[15.0, 15.5], [14.0, 14.1]],
    "vmag_err": [[0.1, 0.0], [0.1, 0.1]],
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> ObjectTable:
    numbers = dict.fromkeys(("gaia_g", "gaia_pmra", "gaia_pmdec", "hip_plx", "hip_e_plx", "hip_bv", "hip_vi"))
    columns = {name: pa.array(v, pa.float64() if name in numbers else None) for name, v in ASAS.items()}
    pq.write_table(pa.table(columns), tmp_path / "asas_v.parquet")
    pq.write_table(pa.table(CSS), tmp_path / "css_v.parquet")
    return load_objects(tmp_path, against_vsx=False)


def test_names_labels_and_places(table: ObjectTable) -> None:
    assert len(table) == 4
    assert table.object_id.tolist() == ["asas:a1", "asas:a2", "css:c1", "css:c2"]
    assert table.star_id.tolist() == ["asas:a1", "css:c2", "css:c1", "css:c2"]
    assert table.survey.tolist() == ["asas", "asas", "css", "css"]
    assert table.label.tolist() == ["EA", "EW", "EW", "RRAB"]
    assert table.label_quality.tolist() == ["gold", "weak", "std", "std"]
    assert table.label_is_coarse.tolist() == [False, False, True, False]  # Catalina's EW, not that of ASAS
    assert table.ra.tolist() == [10.0, 20.0, 30.0, 20.0]
    assert table.dec.tolist() == [-5.0, -6.0, -7.0, -6.0]


def test_magnitudes_become_fluxes_and_what_is_no_number_is_left_out(table: ObjectTable) -> None:
    first, second, third, _ = table.light_curves
    assert first.mjd.tolist() == [52_000.0, 52_000.75, 52_001.5]  # heliocentric, as the file has them
    np.testing.assert_allclose(first.flux, 3631e9 * 10 ** (-0.4 * np.array([12.5, 12.75, 13.5])), rtol=1e-6)
    np.testing.assert_allclose(first.flux_error / first.flux, np.array([0.05, 0.1, 0.2]) * 0.4 * np.log(10), rtol=1e-5)
    assert first.reference_flux.tolist() == [0.0] * 3
    assert len(second) == 1
    assert len(third) == 1  # an error of 0 is none
    assert table.mean_magnitude.tolist() == [12.75, 11.0, 15.0, 14.0]


def test_catalinas_times_become_barycentric(table: ObjectTable) -> None:
    star = SkyCoord(20.0 * u.deg, -6.0 * u.deg)
    centre = EarthLocation.from_geocentric(0.0, 0.0, 0.0, unit=u.m)
    for mjd, found in zip((53_700.0, 53_701.0), table.light_curves[3].mjd, strict=True):
        delay = Time(mjd, format="mjd", scale="utc", location=centre).light_travel_time(star).to_value("day")
        assert abs(delay) > 1e-4
        assert found == pytest.approx(mjd + delay, abs=1e-7)


def test_the_columns_called_proper_motion_are_magnitudes(table: ObjectTable) -> None:
    assert [table.measured[name][0] for name in ("gaia_g", "gaia_bp", "gaia_rp", "hip_bv")] == [12.0, 12.5, 11.5, 0.5]
    assert np.isnan([table.measured[name][1:] for name in table.measured]).all()


def test_a_folder_without_the_tables_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="training light curves"):
        load_objects(tmp_path)


def stars(size: int) -> ObjectTable:
    """So many stars, each seen by both surveys."""
    ra = np.repeat(np.linspace(0, 350, size), 2)
    return positions(ra.tolist(), [0.0] * (2 * size), [f"s{i // 2}" for i in range(2 * size)])


def test_stars_keep_their_part_whatever_the_order_and_the_seed_only_divides_the_rest() -> None:
    table = stars(2000)
    parts = part_of_each(4000, split(table, seed=3))
    assert np.array_equal(parts[::2], parts[1::2])  # both rows of a star
    # Standard deviations of shares of 2,000 stars are 0.7 to 1.0 %.
    assert [np.mean(parts == part) for part in range(3)] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    order = np.random.default_rng(0).permutation(4000)
    shuffled = replace(table, star_id=table.star_id[order], ra=table.ra[order], dec=table.dec[order])
    assert np.array_equal(part_of_each(4000, split(shuffled, seed=3)), parts[order])
    other = part_of_each(4000, split(table, seed=4))
    assert np.array_equal(other == 2, parts == 2)
    assert not np.array_equal(other, parts)
    half = part_of_each(4000, split(table, seed=3, fractions=(0.5, 0.25)))
    assert [np.mean(half == part) for part in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_what_another_catalogue_calls_the_stars_of_a_class() -> None:
    """Stars 0 to 5 are EB, EB, EB, EA, EA and without a label by asas; css calls them EW, EA, EW, EA, nothing, EW."""
    names = [f"s{i}" for i in range(6)]
    table = positions([10.0 * i for i in range(12)], [0.0] * 12, [*names, *names])
    table = replace(table, survey=np.array(["asas"] * 6 + ["css"] * 6, object))
    index = np.array([EB, EB, EB, EA, EA, -1, EW, EA, EW, EA, -1, EW])
    usable = np.array([True, True, False, True, True, False] + [True] * 6)
    counts = name_counts(table, index, usable, np.arange(12), "asas", "css")
    expected = np.zeros((10, 10), int)
    expected[EB, EW], expected[EB, EA], expected[EA, EA] = 1, 1, 1
    np.testing.assert_array_equal(counts, expected)
    fewer = name_counts(table, index, usable, np.array([0, 1, 3, 6]), "asas", "css")
    assert fewer.sum() == fewer[EB, EW] == 1
    # EB of css: 20 stars are taken to be named EB, one each was named EW and EA. Only EB is lumped by css.
    confusion = catalogue_confusion(counts, "css")
    assert confusion[EB, [EB, EW, EA]].tolist() == pytest.approx([20 / 22, 1 / 22, 1 / 22])
    others = [number for number in range(10) if number != EB]
    np.testing.assert_array_equal(confusion[others], np.eye(10)[others])
    np.testing.assert_array_equal(catalogue_confusion(counts, "asas"), np.eye(10))
