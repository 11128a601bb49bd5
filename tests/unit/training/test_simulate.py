"""What is simulated for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.assemble.spectrum import GRID
from broker.records import METADATA_FEATURES
from broker.taxonomy import CLASS_NAMES
from training.datasets.splits import split
from training.datasets.tables import ObjectTable, load_objects
from training.simulate.metadata import Donors, Provenance, fit_scaler, load_donors, simulate_metadata
from training.simulate.spectra import (
    SPECTRAL_TYPES,
    draw_types,
    extinction,
    load_templates,
    simulate_spectra,
    type_code,
)

COLUMN = {name: i for i, name in enumerate(METADATA_FEATURES)}


@pytest.mark.parametrize(
    ("name", "code"), [("A0", 20.0), ("G2V", 42.0), ("M9III", 69.0), ("K34II", 53.5), ("O5V", 5.0)]
)
def test_type_codes(name: str, code: float) -> None:
    assert type_code(name) == code


def test_extinction_follows_the_published_curve() -> None:
    transmission = extinction(np.array([0.0, 1.0]))
    assert np.all(transmission[0] == 1)
    a_v = -2.5 * np.log10(np.interp(1e4 / 1.82, GRID, transmission[1]))
    assert a_v == pytest.approx(3.1, rel=0.01)  # A(V) = R_V E(B-V)
    assert np.all(np.diff(transmission[1]) > 0)  # bluer light suffers more


def test_spectra_look_like_their_types(shared: Path) -> None:
    templates = load_templates(shared / "data")
    classes = [c for c in CLASS_NAMES for _ in range(20)]
    rng = np.random.default_rng(0)
    code = draw_types(classes, ["css"] * len(classes), rng)
    spectra = simulate_spectra(templates, classes, ["css"] * len(classes), code, np.zeros(len(classes), bool), rng)
    assert spectra.shape == (200, 3, 2575)
    assert np.isfinite(spectra).all()
    assert (spectra[:, 1] > 0).all()
    red = np.median(spectra[:, 0, GRID > 8500], axis=1) - np.median(spectra[:, 0, GRID < 4500], axis=1)
    by_class = {c: np.median(red[np.array(classes) == c]) for c in CLASS_NAMES}
    assert by_class["M"] > by_class["ROT"] > by_class["DSCT"]
    for name in CLASS_NAMES:
        own = code[np.array(classes) == name]
        assert SPECTRAL_TYPES[name].earliest <= own.min() <= own.max() <= SPECTRAL_TYPES[name].latest


@pytest.fixture(scope="module")
def simulated(shared: Path) -> tuple[ObjectTable, Donors, np.ndarray, np.ndarray, np.ndarray]:
    table = load_objects(shared / "data")
    donors = load_donors(shared / "data")
    part = np.zeros(len(table), int)
    for which, rows in enumerate(split(table, 0)):
        part[rows] = which
    rng = np.random.default_rng(0)
    code = np.full(len(table), 21.0)
    values, provenance = simulate_metadata(table, donors, code, np.full(len(table), np.nan), part, rng)
    return table, donors, part, values, provenance


def test_real_values_are_kept_and_every_value_has_a_provenance(
    simulated: tuple[ObjectTable, Donors, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    table, _, _, values, provenance = simulated
    assert np.array_equal(np.isfinite(values), provenance != Provenance.UNKNOWN)
    gaia = np.isfinite(table.measured["gaia_g"])
    np.testing.assert_array_equal(values[gaia, COLUMN["phot_g_mean_mag"]], table.measured["gaia_g"][gaia])
    assert np.all(provenance[gaia, COLUMN["phot_g_mean_mag"]] == Provenance.REAL)
    color = table.measured["gaia_bp"] - table.measured["gaia_rp"]
    np.testing.assert_array_equal(values[gaia, COLUMN["bp_rp"]], color[gaia])
    assert np.all(provenance[gaia, COLUMN["bp_rp"]] == Provenance.REAL)
    # The file's columns called proper motions are magnitudes: no star's motion is real.
    assert not np.any(provenance[:, [COLUMN["pmra"], COLUMN["pmdec"]]] == Provenance.REAL)
    unlabelled = np.array([label is None for label in table.label])
    assert not np.any(provenance[unlabelled] == Provenance.DONOR)


def test_training_validation_and_test_stars_share_no_donors(
    simulated: tuple[ObjectTable, Donors, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, donors, part, values, provenance = simulated
    column = COLUMN["ruwe"]  # passed on as it is, so that it tells the donor
    for which in range(3):
        allowed = np.unique(donors.values[donors.part == which, column])
        rows = (part == which) & (provenance[:, column] == Provenance.DONOR)
        assert rows.sum() > 1000
        assert np.isin(values[rows, column], allowed).all()


def test_donors_keep_their_absolute_magnitude(
    simulated: tuple[ObjectTable, Donors, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    table, donors, _, values, provenance = simulated

    def absolute(v: np.ndarray) -> np.ndarray:
        return v[:, COLUMN["mean_vmag"]] + 5 * np.log10(np.maximum(v[:, COLUMN["parallax"]], 1e-3) / 100)

    rows = (table.label == "EW") & (provenance[:, COLUMN["parallax"]] == Provenance.DONOR)
    ours, theirs = absolute(values[rows]), absolute(donors.values[donors.class_name == "EW"])
    assert np.median(ours) == pytest.approx(np.median(theirs), abs=0.5)


def test_scaler_leaves_out_columns_nobody_has(
    simulated: tuple[ObjectTable, Donors, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scaler = fit_scaler(simulated[3])
    assert np.isnan(scaler.std[COLUMN["h_mag"]])
    assert np.isfinite(scaler.std[COLUMN["bp_rp"]])
