"""Leading classes and published periods never contradict each other."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.inference.physics import MIN_EVIDENCE, PERIODS, plausible_period, rule_out
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES


def light_curves(
    period: float, r_squared: float, detections: int, next_best: float = 0.0, std: float = 1.0, span: float = 1000.0
) -> LightCurveInputs:
    features = np.zeros((1, len(LIGHT_CURVE_FEATURES)), np.float32)
    features[0, LIGHT_CURVE_FEATURES.index("is_total_flux")] = 1.0
    features[0, LIGHT_CURVE_FEATURES.index("log10_std")] = np.log10(std)
    features[0, LIGHT_CURVE_FEATURES.index("log10_span")] = np.log10(span)
    features[0, LIGHT_CURVE_FEATURES.index("r2_period")] = r_squared
    features[0, LIGHT_CURVE_FEATURES.index("r2_second_period")] = next_best
    return LightCurveInputs(
        np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), bool), np.zeros((1, 1, 1), np.float32), features,
        np.ones(1, bool), np.array([period]), np.array([detections], np.int32),
        np.zeros((1, 1), np.float32),
    )  # fmt: skip


def row(**shares: float) -> np.ndarray:
    result = np.zeros((1, 10), np.float32)
    for name, share in shares.items():
        result[0, CLASS_INDEX[name]] = share
    return result


def test_a_firm_period_rules_out_a_mira_of_a_day() -> None:
    probabilities, period, _ = rule_out(row(M=0.61, EA=0.33, EB=0.06), light_curves(0.93, 0.8, 1100))
    assert CLASS_NAMES[probabilities[0].argmax()] == "EA"
    assert probabilities[0, CLASS_INDEX["EA"]] == pytest.approx(0.33 / 0.39, rel=1e-5)
    assert probabilities[0, CLASS_INDEX["M"]] == 0
    assert probabilities[0].sum() == pytest.approx(1, abs=1e-6)
    assert period[0] == 0.93


@pytest.mark.parametrize(
    ("share", "r_squared", "detections"),
    [(0.61, 0.8, 12), (0.61, 0.3, 1100), (0.95, 0.8, 1100)],
    ids=["few points", "a poor fit", "a sure class"],
)
def test_otherwise_the_period_goes(share: float, r_squared: float, detections: int) -> None:
    given = row(M=share, EA=1 - share)
    probabilities, period, _ = rule_out(given, light_curves(0.93, r_squared, detections))
    np.testing.assert_array_equal(probabilities, given)
    assert np.isnan(period[0])


@pytest.mark.parametrize(("lead", "period"), [("RRAB", 3.37), ("RRC", 1.9), ("HADS", 0.8), ("DSCT", 5.0)])
def test_a_cepheid_is_no_rr_lyrae_star(lead: str, period: float) -> None:
    """However sure the model is of the class: with 250 points ln(0.35 / 0.3) * 125 = 19.3 speaks against an alias."""
    given = row(**{lead: 0.98, "EW": 0.02})
    result = rule_out(given, light_curves(period, 0.7, 250, 0.65))
    assert result.none_of_ten[0]
    np.testing.assert_array_equal(result.probabilities, given)
    assert result.period[0] == period


def test_nor_is_a_faint_one_with_errors_as_large_as_its_amplitude() -> None:
    """ln(0.5 / 0.44) * 120 = 15.3: EROS-2's Cepheids are faint, and any other period fits much worse all the same."""
    result = rule_out(row(RRAB=0.98, EW=0.02), light_curves(2.91, 0.56, 240, 0.5))
    assert result.none_of_ten[0]
    assert result.period[0] == 2.91
    # For a class to be ruled out by its period more is asked for: there the evidence against an alias is not.
    probabilities, period, _ = rule_out(row(M=0.6, EA=0.4), light_curves(2.91, 0.56, 240, 0.5))
    assert probabilities[0, CLASS_INDEX["M"]] == np.float32(0.6)
    assert np.isnan(period[0])


@pytest.mark.parametrize(
    ("lead", "period", "r_squared", "detections", "next_best"),
    [
        ("RRAB", 3.37, 0.7, 250, 0.67),
        ("RRAB", 3.37, 0.7, 49, 0.1),
        ("RRAB", 3.37, 0.49, 250, 0.3),
        ("RRAB", 3.37, 0.7, 250, 0.0),
        ("RRAB", 0.05, 0.9, 250, 0.5),
        ("RRAB", 0.55, 0.9, 250, 0.5),
        ("EW", 33.0, 0.9, 250, 0.5),
        ("M", 1.003, 0.9, 250, 0.5),
    ],
    ids=["an alias fits nearly as well", "few points", "a poor fit", "nothing to compare with", "too short a one",
         "its own period", "an ellipsoidal star", "a daily alias of a Mira"],
)  # fmt: skip
def test_what_may_be_an_alias_makes_no_other(
    lead: str, period: float, r_squared: float, detections: int, next_best: float
) -> None:
    result = rule_out(row(**{lead: 1.0}), light_curves(period, r_squared, detections, next_best))
    assert not result.none_of_ten[0]


@pytest.mark.parametrize(
    ("std", "span", "detections", "lead"),
    [(0.06, 900.0, 60, "SR"), (0.16, 900.0, 60, "M"), (0.06, 150.0, 60, "M"), (0.06, 900.0, 49, "M")],
    ids=["hardly varies", "varies", "a part of a cycle", "few points"],
)
def test_a_mira_of_a_tenth_of_a_magnitude_is_semiregular(std: float, span: float, detections: int, lead: str) -> None:
    given = row(M=0.9, SR=0.05, ROT=0.05)
    result = rule_out(given, light_curves(300.0, 0.9, detections, std=std, span=span))
    assert CLASS_NAMES[result.probabilities[0].argmax()] == lead
    assert result.probabilities[0].sum() == pytest.approx(1.0)
    assert result.period[0] == 300.0
    assert given[0, CLASS_INDEX["M"]] == np.float32(0.9)


def test_the_evidence_is_the_ratio_of_likelihoods() -> None:
    just = 1.0 - 0.3 * np.exp(MIN_EVIDENCE / 125.0)
    for difference, expected in ((-1e-4, True), (1e-4, False)):
        result = rule_out(row(RRAB=1.0), light_curves(3.37, 0.7, 250, just + difference))
        assert result.none_of_ten[0] == expected


def test_what_agrees_stays_as_it_is() -> None:
    given = row(RRAB=0.7, M=0.3)
    probabilities, period, _ = rule_out(given, light_curves(0.55, 0.9, 300))
    np.testing.assert_array_equal(probabilities, given)
    assert period[0] == 0.55


def test_nothing_left_keeps_the_class_and_drops_the_period() -> None:
    given = row(M=0.6, SR=0.4)
    probabilities, period, _ = rule_out(given, light_curves(0.05, 0.9, 300))
    np.testing.assert_array_equal(probabilities, given)
    assert np.isnan(period[0])


def test_not_classified_and_no_period_pass() -> None:
    probabilities, period, _ = rule_out(row(), light_curves(0.93, 0.8, 100))
    assert not probabilities.any()
    assert period[0] == 0.93
    probabilities, period, _ = rule_out(row(M=1.0), light_curves(float("nan"), 0.8, 100))
    assert probabilities[0, CLASS_INDEX["M"]] == 1
    assert np.isnan(period[0])


def test_every_class_has_its_range() -> None:
    assert set(PERIODS) == set(CLASS_NAMES)
    assert not plausible_period("M", 0.9)
    assert not plausible_period("RRAB", 30)
    assert plausible_period("M", 332)
