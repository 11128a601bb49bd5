"""Leading classes and published periods never contradict each other."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.inference.physics import PERIODS, plausible_period, rule_out
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES


def light_curves(period: float, r_squared: float, detections: int) -> LightCurveInputs:
    features = np.zeros((1, len(LIGHT_CURVE_FEATURES)), np.float32)
    features[0, LIGHT_CURVE_FEATURES.index("r2_period")] = r_squared
    return LightCurveInputs(
        np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), bool), np.zeros((1, 1, 1), np.float32), features,
        np.ones(1, bool), np.array([period]), np.array([detections], np.int32),
    )  # fmt: skip


def row(**shares: float) -> np.ndarray:
    result = np.zeros((1, 10), np.float32)
    for name, share in shares.items():
        result[0, CLASS_INDEX[name]] = share
    return result


def test_a_firm_period_rules_out_a_mira_of_a_day() -> None:
    probabilities, period = rule_out(row(M=0.61, EA=0.33, EB=0.06), light_curves(0.93, 0.8, 1100))
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
    probabilities, period = rule_out(given, light_curves(0.93, r_squared, detections))
    np.testing.assert_array_equal(probabilities, given)
    assert np.isnan(period[0])


def test_what_agrees_stays_as_it_is() -> None:
    given = row(RRAB=0.7, M=0.3)
    probabilities, period = rule_out(given, light_curves(0.55, 0.9, 300))
    np.testing.assert_array_equal(probabilities, given)
    assert period[0] == 0.55


def test_nothing_left_keeps_the_class_and_drops_the_period() -> None:
    given = row(M=0.6, SR=0.4)
    probabilities, period = rule_out(given, light_curves(0.05, 0.9, 300))
    np.testing.assert_array_equal(probabilities, given)
    assert np.isnan(period[0])


def test_not_classified_and_no_period_pass() -> None:
    probabilities, period = rule_out(row(), light_curves(0.93, 0.8, 100))
    assert not probabilities.any()
    assert period[0] == 0.93
    probabilities, period = rule_out(row(M=1.0), light_curves(float("nan"), 0.8, 100))
    assert probabilities[0, CLASS_INDEX["M"]] == 1
    assert np.isnan(period[0])


def test_every_class_has_its_range() -> None:
    assert set(PERIODS) == set(CLASS_NAMES)
    assert not plausible_period("M", 0.9)
    assert not plausible_period("RRAB", 30)
    assert plausible_period("M", 332)
