"""Orbital periods of eclipsing binaries, from light curves of known orbits."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.lightcurve import assemble_light_curves
from broker.inference.orbital import Periods, orbital_periods
from broker.records import BAND_CODE, LightCurve
from broker.taxonomy import CLASS_INDEX


def binary(
    period: float,
    primary: float,
    secondary: float,
    width: float = 0.08,
    points: int = 400,
    noise: float = 0.01,
    seed: int = 0,
) -> LightCurve:
    """V magnitudes of two Gaussian minima of these depths each orbit, ``width`` of it wide, over four years."""
    rng = np.random.default_rng(seed)
    mjd = 55_000 + np.sort(rng.uniform(0, 1500, points))
    phase = (mjd / period) % 1.0

    def minimum(at: float) -> np.ndarray:
        apart = (phase - at + 0.5) % 1.0 - 0.5
        return np.exp(-0.5 * (apart / (width / 2.355)) ** 2)

    magnitude = 14 + primary * minimum(0.0) + secondary * minimum(0.5) + rng.normal(0, noise, points)
    flux = (3631e9 * 10 ** (-0.4 * magnitude)).astype(np.float32)
    return LightCurve(
        mjd, flux, (noise * flux).astype(np.float32), np.zeros(points, np.float32),
        np.full(points, BAND_CODE["asas:V"], np.uint8), np.zeros(points, np.uint8),
    )  # fmt: skip


def published(curve: LightCurve, class_name: str, use: bool = True) -> tuple[float, Periods]:
    """The period that was found, and what is published of it."""
    inputs = assemble_light_curves([curve])
    leading = np.array([CLASS_INDEX[class_name]])
    return float(inputs.period[0]), orbital_periods(inputs, inputs.period, leading, np.array([use]))


def test_minima_of_different_depth_are_one_orbit_apart() -> None:
    found, periods = published(binary(2.7, 0.8, 0.4, width=0.1), "EA")
    assert found == pytest.approx(1.35, rel=1e-3)
    assert periods.period[0] == pytest.approx(2.7, rel=1e-3)
    assert not periods.ambiguous[0]


def test_minima_alike_are_taken_for_two_of_an_orbit_and_said_to_be_ambiguous() -> None:
    found, periods = published(binary(0.35, 0.6, 0.6, width=0.3, noise=0.03), "EW")
    assert found == pytest.approx(0.175, rel=1e-3)
    assert periods.period[0] == pytest.approx(0.35, rel=1e-3)
    assert periods.ambiguous[0]


def test_an_orbit_that_was_found_stays() -> None:
    found, periods = published(binary(2.7, 0.9, 0.2, width=0.12), "EA")
    assert found == pytest.approx(2.7, rel=1e-3)  # a second minimum of a fifth: the search tells
    assert periods.period[0] == found
    assert not periods.ambiguous[0]


def test_one_minimum_leaves_both_possible() -> None:
    found, periods = published(binary(2.7, 0.8, 0.0, width=0.12), "EA")
    assert found == pytest.approx(2.7, rel=1e-3)
    assert periods.period[0] == 2 * found  # two like minima of an orbit of 5.4 d look the same
    assert periods.ambiguous[0]


@pytest.mark.parametrize("points", [10, 12, 20])
def test_few_points_tell_no_minima_apart(points: int) -> None:
    found, periods = published(binary(0.35, 0.6, 0.5, width=0.3, noise=0.03, points=points), "EW")
    assert periods.period[0] == 2 * found
    assert periods.ambiguous[0]


@pytest.mark.parametrize(("class_name", "use"), [("RRAB", True), ("ROT", True), ("EA", False)])
def test_the_period_of_other_stars_is_the_one_found(class_name: str, use: bool) -> None:
    found, periods = published(binary(2.7, 0.8, 0.4), class_name, use)
    assert periods.period[0] == found
    assert not periods.ambiguous[0]


def test_no_period_that_the_class_cannot_have() -> None:
    found, periods = published(binary(30.0, 0.5, 0.45, width=0.3), "EW")
    assert found == pytest.approx(15.0, rel=1e-3)
    assert periods.period[0] == found  # no contact binary has 30 d
    assert periods.ambiguous[0]


def test_no_light_curve_no_period() -> None:
    found, periods = published(LightCurve.empty(), "EA")
    assert np.isnan(found)
    assert np.isnan(periods.period[0])
    assert not periods.ambiguous[0]
