"""The training tables and their split, on the real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.confusion import catalogue_confusion, name_counts
from training.datasets.splits import same_star_groups, split
from training.datasets.tables import ObjectTable, load_objects


@pytest.fixture(scope="module")
def table(shared: Path) -> ObjectTable:
    return load_objects(shared / "data")


def test_light_curves_are_the_files_own(table: ObjectTable, shared: Path) -> None:
    row = pq.read_table(shared / "data" / "asas_v.parquet").slice(1234, 1).to_pylist()[0]
    curve = table.light_curves[1234]
    assert table.object_id[1234] == f"asas:{row['name']}"
    np.testing.assert_allclose(curve.mjd, np.array(row["hjd"]) - 2400000.5)
    magnitude = -2.5 * np.log10(curve.flux.astype(np.float64) / 3631e9)
    np.testing.assert_allclose(magnitude, row["vmag"], atol=1e-4)
    np.testing.assert_allclose(curve.flux_error / curve.flux * 1.0857, row["vmag_err"], rtol=1e-3)
    assert table.mean_magnitude[1234] == pytest.approx(np.median(row["vmag"]), abs=0.02)


def test_gaia_columns_are_the_magnitudes_that_they_hold(table: ObjectTable) -> None:
    """The file calls them proper motions; both are positive, and their difference is a colour."""
    g, bp, rp, b_v = (table.measured[name] for name in ("gaia_g", "gaia_bp", "gaia_rp", "hip_bv"))
    color = bp - rp
    assert np.isfinite(color).sum() == np.isfinite(g).sum() == 1234
    assert np.mean((bp > g) & (g > rp), where=np.isfinite(g)) > 0.9
    # Miras are the reddest stars; alpha2 CVn stars are of types B8 to A7 (BP - RP up to 0.29: Pecaut & Mamajek 2013).
    assert 4.0 < np.nanmedian(color[(table.label == "M") & (table.survey == "asas")]) < 6.0
    assert np.nanmedian(color[(table.label == "ROT") & (table.survey == "asas")]) < 0.3
    # Of stars with B - V from 0 to 1 BP - RP is about 1.2 times as large (the Sun: 0.65 and 0.82).
    normal = (b_v > 0.1) & (b_v < 1.0) & np.isfinite(color)
    assert normal.sum() > 150
    assert np.median(color[normal] - 1.25 * b_v[normal]) == pytest.approx(0.0, abs=0.1)


def test_counts_and_labels(table: ObjectTable) -> None:
    assert len(table) == 11129 + 22791 == len(table.light_curves)
    assert np.sum((table.label == "EA") & (table.survey == "asas")) == 2017
    assert np.sum(table.label_is_coarse) == 7000
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    asas = table.survey == "asas"
    assert np.sum(labels.scored & asas) == 4014 + 4377 - 305  # whose label VSX disputes
    assert not np.any(labels.weight[table.label_quality == "conflict"])
    # A coarse EW may be EW or EB.
    naming = labels.confusions[labels.naming[table.label_is_coarse]]
    assert np.all(naming[:, :, CLASS_NAMES.index("EW")].sum(axis=1) == 2)


def test_no_star_is_in_two_parts(table: ObjectTable) -> None:
    parts = split(table, seed=3)
    assert sum(len(p) for p in parts) == len(table)
    group = same_star_groups(table)
    stars = [set(group[p].tolist()) for p in parts]
    assert not stars[0] & stars[1]
    assert not stars[0] & stars[2]
    assert not stars[1] & stars[2]
    both = len(table) - len(np.unique(group))
    assert both >= 950  # stars of both surveys: 951 by catalogue number, a few more by position
    assert len(parts[0]) / len(table) == pytest.approx(0.7, abs=0.02)
    others = split(table, seed=4)
    assert np.array_equal(parts[2], others[2])
    assert not np.array_equal(parts[1], others[1])


def test_what_catalina_calls_the_stars_of_asas(table: ObjectTable) -> None:
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    train, _, test = split(table, seed=0)
    counts = name_counts(table, labels.index, labels.named, train, "asas", "css")
    named = dict(zip(CLASS_NAMES, counts.tolist(), strict=True))
    ea, eb, ew = (CLASS_NAMES.index(name) for name in ("EA", "EB", "EW"))
    assert named["EB"][ea] > 15
    assert named["EB"][ew] > 8
    assert named["EA"][ea] > 0.95 * sum(named["EA"])
    # Test stars have no say in it.
    without = labels.index.copy()
    without[test] = -1
    np.testing.assert_array_equal(name_counts(table, without, labels.named, train, "asas", "css"), counts)
    confusion = catalogue_confusion(counts, "css")
    np.testing.assert_allclose(confusion.sum(axis=1), 1, atol=1e-6)
    assert confusion[eb, eb] == pytest.approx((20 + counts[eb, eb]) / (20 + counts[eb].sum()))
    others = [c for c in range(10) if c != eb]
    np.testing.assert_array_equal(confusion[others], np.eye(10)[others])
    corrected = labels.with_confusion(table.survey == "css", confusion)
    catalina = table.survey == "css"
    np.testing.assert_array_equal(corrected.confusions[np.unique(corrected.naming[catalina])], confusion[None])
    np.testing.assert_array_equal(corrected.naming[~catalina], labels.naming[~catalina])
