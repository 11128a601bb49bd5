"""Codes for unknown values, in every column, and what must not be taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from broker.catalog.plausible import plausible
from broker.records import METADATA_FEATURES

NAN = float("nan")
CODES = [-9.99, -99.99, -99.999, -999.0, -9999.0, 999.0, 9999.0, 999999.0, 1e20, -1e20, 1e30, NAN, float("inf")]
"""That are a measurement in no column."""
COLOURS = ("bp_rp", "j_k", "w1_w2", "w3_w4")
MAY_BE_ZERO = (*COLOURS, "pmra", "pmdec", "parallax_over_error", "cos_l", "sin_b")
LARGE = ("pmra", "pmdec", "parallax_over_error")


def value(name: str, number: float) -> float:
    return float(plausible({name: np.array([number])})[0][name][0])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", METADATA_FEATURES)
def test_codes_are_unknown_in_every_column(name: str, single: bool) -> None:
    codes = [c for c in CODES if not (name in LARGE and c == -9.99)]  # alone it may be a motion of 10 mas a year
    for code in (*codes, *(() if name in LARGE else (99.99, 99.999)), *(() if name in MAY_BE_ZERO else (0.0,))):
        number = float(np.float32(code)) if single else code
        found, counts = plausible({name: np.array([number])})
        assert np.isnan(found[name][0]), (name, code)
        assert sum(counts[name].values()) == 1
        [reason] = counts[name]
        assert (reason == "blank") == np.isnan(code)
        assert (reason == "not a number") == np.isinf(code)


REAL = {
    "mean_vmag": (-1.46, 0.03, 9.99, 9.998, 10.0, 22.5),
    "phot_g_mean_mag": (1.73, 9.9, 21.3),
    "k_mag": (-4.05, 9.99, 9.9985, 15.0),
    "w4_mag": (-8.9, 9.0),
    "e_k_mag": (0.001, 0.999, 1.0, 4.0),
    "parallax": (768.07, -120.3, -0.999, 9.99, 0.01, 99.0),
    "parallax_error": (0.01, 9.9),
    "parallax_over_error": (-9.9, 15000.0, 100.0),
    "pmra": (-798.58, 0.0, -9.99, 100.0, 99.9, -99.9, 1000.0),
    "pmdec": (10328.12, 0.0),
    "pmra_error": (0.02, 1.0, 99.0),
    "pm": (10358.0, 100.0),
    "ruwe": (0.8, 1.0, 100.0),
    "bp_rp": (0.0, -0.6, 8.5),
    "cos_l": (-1.0, 1.0, 0.0),
}


@pytest.mark.parametrize("name", REAL)
def test_measurements_stay(name: str) -> None:
    for number in REAL[name]:
        assert value(name, number) == number


@pytest.mark.parametrize("code", [0.0, -9.99, -99.9, 9.999, 99.9])
def test_both_components_of_a_motion_the_same_are_a_code(code: float) -> None:
    found, counts = plausible({"pmra": np.array([code, code]), "pmdec": np.array([code, 1.0])})
    np.testing.assert_array_equal(found["pmra"], [NAN, code])
    np.testing.assert_array_equal(found["pmdec"], [NAN, 1.0])
    assert counts["pmra"] == counts["pmdec"] == {"a code such as -9.99 or 0": 1}


def test_what_is_made_of_an_unknown_value_is_unknown() -> None:
    one, code = np.array([1.0]), np.array([99.99])
    found, counts = plausible(
        {"phot_bp_mean_mag": code, "phot_rp_mean_mag": code, "bp_rp": 0.0 * one, "e_phot_bp_mean_mag": 0.1 * one,
         "parallax": -999.0 * one, "parallax_error": one, "parallax_over_error": -99.0 * one,
         "pmra": 5e6 * one, "pmdec": 3.0 * one, "pm": 100.0 * one, "k_mag": NAN * one, "e_k_mag": 0.1 * one}
    )  # fmt: skip
    assert [name for name, column in found.items() if np.isfinite(column[0])] == ["e_k_mag"]  # a blank is no code
    for name in ("bp_rp", "e_phot_bp_mean_mag", "parallax_error", "parallax_over_error", "pmdec", "pm"):
        assert counts[name] == {"of an unknown value": 1}
    assert counts["pmra"] == {"not in -10500 to 10500": 1}
    assert counts["k_mag"] == {"blank": 1}
