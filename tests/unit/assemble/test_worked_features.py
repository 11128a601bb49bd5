"""Inputs made of light curves against numbers worked out by hand, by numpy and by scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, PHASE_BINS, assemble_light_curves
from broker.assemble.usable import usable_points
from broker.bands import BAND_CODE, WAVELENGTH
from broker.records import LightCurve, PhotometryKind

FEATURE = {name: i for i, name in enumerate(LIGHT_CURVE_FEATURES)}
Values = Sequence[float] | NDArray[np.float64]
V = "asas:V"
DAYS = np.array([0.0, 1.0, 3.0, 4.5, 7.0, 8.0, 10.0, 11.0, 14.0])
MAGNITUDES = np.array([15.0, 15.3, 14.9, 15.1, 15.8, 15.05, 14.7, 15.2, 15.4])
ERRORS = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09])


def curve(
    days: Values, magnitude: Values, error: Values, band: str | Sequence[str] = V, kind: int = 0, reference: float = 0.0
) -> LightCurve:
    """Total AB magnitudes and their errors as flux less ``reference``."""
    size = len(days)
    flux = 3631e9 * 10 ** (-0.4 * np.asarray(magnitude))
    bands = [band] * size if isinstance(band, str) else band
    return LightCurve(
        59000.0 + np.asarray(days, np.float64), (flux - reference).astype(np.float32),
        # A relative error of flux of 1 % is one of 0.01086 mag: ln 10 / 2.5 = 0.921.
        (flux * np.asarray(error) * 0.4 * np.log(10)).astype(np.float32), np.full(size, reference, np.float32),
        np.array([BAND_CODE[b] for b in bands], np.uint8), np.full(size, kind, np.uint8),
    )  # fmt: skip


def features(inputs: LightCurveInputs, row: int = 0) -> dict[str, float]:
    return dict(zip(LIGHT_CURVE_FEATURES, inputs.features[row].tolist(), strict=True))


def test_the_wavelength_of_asas_is_that_of_the_reference() -> None:
    """So that nothing is scaled in the examples of one band below."""
    assert WAVELENGTH[BAND_CODE[V]] == 547.0


def test_points_are_magnitudes_in_units_of_their_mad_brighter_larger() -> None:
    points = assemble_light_curves([curve(DAYS, MAGNITUDES, ERRORS)]).points[0, :9]
    mad = float(stats.median_abs_deviation(MAGNITUDES))
    assert mad == pytest.approx(0.2)  # of 0.1 0.2 0.2 0 0.7 0.05 0.4 0.1 0.3 about 15.1
    np.testing.assert_allclose(points[:, 0], DAYS / 14.0, atol=1e-6)
    np.testing.assert_allclose(points[:, 1], -(MAGNITUDES - MAGNITUDES.mean()) / mad, atol=1e-4)
    np.testing.assert_allclose(points[:, 2], ERRORS / mad, rtol=1e-4)
    np.testing.assert_allclose(points[:, 3], 0.0)  # no phase without a period
    np.testing.assert_allclose(points[:, 4], 0.0)


def test_features_that_need_no_period_are_scipys() -> None:
    inputs = assemble_light_curves([curve(DAYS, MAGNITUDES, ERRORS)])
    found = features(inputs)
    y = -MAGNITUDES
    low, high = np.quantile(y, [0.05, 0.95])
    middle = np.quantile(y, [0.25, 0.75, 0.4, 0.6, 0.01, 0.99, 0.5, 0.025, 0.975])
    expected = {
        "log10_mad": np.log10(stats.median_abs_deviation(y)),
        "log10_std": np.log10(np.std(y)),
        "log10_span": np.log10(14.0),
        "log10_points": np.log10(9),
        "is_total_flux": 1.0,
        "noise_to_std": 0.05 / np.std(y),
        "skewness": stats.skew(y),
        "kurtosis": np.log10(stats.kurtosis(y, fisher=False)),
        "log10_range_90": np.log10(high - low),
        "log10_range_95": np.log10(middle[8] - middle[7]),
        "bright_share_90": (high - middle[6]) / (high - low),
        "range_50_to_90": (middle[1] - middle[0]) / (high - low),
        "range_20_to_90": (middle[3] - middle[2]) / (high - low),
        "range_98_to_90": (middle[5] - middle[4]) / (high - low),
        "von_neumann_time": np.mean(np.diff(y) ** 2) / np.var(y),
        "bands": 1.0,
        "chromatic_slope_error": 0.7,
        "phase_lag_error": 0.1,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-4), name
    assert all(value == 0.0 for name, value in found.items() if name not in expected)  # of a period, or several bands
    assert inputs.detections.tolist() == [9]
    assert inputs.present.tolist() == [True]
    assert np.isnan(inputs.period).all()


def test_each_band_has_its_own_median_and_the_amplitude_that_v_would_have() -> None:
    bands = ["ztf:g", "ztf:r"] * 3
    days, magnitude = np.arange(6.0), np.array([15.0, 14.0, 15.2, 14.1, 15.6, 13.7])
    inputs = assemble_light_curves([curve(days, magnitude, [0.1] * 6, bands)])
    tone = np.array([np.log(WAVELENGTH[BAND_CODE[b]] / 547.0) for b in bands])
    scale = np.exp(0.9 * tone)  # ztf:g is bluer than V and varies more, ztf:r redder and less
    assert scale[0] < 1 < scale[1]
    y = np.array([0.2, 0.0, 0.0, -0.1, -0.4, 0.3]) * scale
    found = features(inputs)
    mad = float(np.median(np.abs(y - np.median(y))))
    np.testing.assert_allclose(inputs.points[0, :6, 1], (y - y.mean()) / mad, atol=1e-4)
    np.testing.assert_allclose(inputs.points[0, :6, 2], 0.1 * scale / mad, rtol=1e-4)
    np.testing.assert_allclose(inputs.points[0, :6, 4], tone, atol=1e-6)
    assert found["log10_std"] == pytest.approx(np.log10(np.std(y)), abs=1e-4)
    assert found["bands"] == 2
    assert found["tone"] == pytest.approx(tone.mean(), abs=1e-5)
    assert found["tone_spread"] == pytest.approx(np.std(tone), abs=1e-5)


def test_difference_flux_is_in_units_of_its_largest_value() -> None:
    """1.0857 stands for that value, as if it were a small change of magnitude; no rule scales it by its band."""
    flux, error = np.array([50.0, -200.0, 100.0, 0.0, 150.0]), np.array([2.0, 4.0, 6.0, 8.0, 10.0])
    of = LightCurve(
        59000.0 + np.arange(5), flux.astype(np.float32), error.astype(np.float32), np.full(5, np.nan, np.float32),
        np.full(5, BAND_CODE["ztf:g"], np.uint8), np.zeros(5, np.uint8),
    )  # fmt: skip
    inputs = assemble_light_curves([of])
    pogson = 2.5 / np.log(10)
    y = pogson * (flux - 50.0) / 200.0
    mad = float(np.median(np.abs(y)))
    np.testing.assert_allclose(inputs.points[0, :5, 1], (y - y.mean()) / mad, atol=1e-4)
    np.testing.assert_allclose(inputs.points[0, :5, 2], pogson * error / 200.0 / mad, rtol=1e-4)
    assert features(inputs)["is_total_flux"] == 0.0
    assert features(inputs)["log10_std"] == pytest.approx(np.log10(np.std(y)), abs=1e-4)


@pytest.mark.parametrize(("known", "total"), [(6, True), (5, False)])
def test_half_of_the_points_with_a_reference_make_it_total_flux(known: int, total: bool) -> None:
    """Of twelve; those without one are then left out, and so are those whose total flux is not positive."""
    of = curve(np.arange(12.0), 15.0 + 0.1 * np.arange(12), [0.05] * 12, reference=1e6)
    of.reference_flux[known:] = np.nan
    of.flux[0] = -2e6
    inputs = assemble_light_curves([of])
    assert features(inputs)["is_total_flux"] == float(total)
    assert inputs.detections[0] == (known - 1 if total else 12)


def test_errors_are_neither_absurdly_small_nor_large() -> None:
    inputs = assemble_light_curves([curve(DAYS, MAGNITUDES, [1e-9] * 4 + [0.1] * 4 + [50.0])])
    np.testing.assert_allclose(inputs.points[0, :9, 2], np.array([1e-4] * 4 + [0.1] * 4 + [1.0]) / 0.2, rtol=1e-3)


def test_which_points_can_be_used() -> None:
    """One that is a limit, one each without time, flux and error, of no error, of the far future; the rest stays."""
    good = curve([0.0, 1.0, 2.0], [15.0, 15.1, 15.2], [0.01] * 3)
    nan, one = np.nan, 1.0
    bad = LightCurve(
        np.array([59000.5, nan, 59003.0, 59004.0, 59005.0, 200_001.0]),
        np.array([nan, one, nan, one, one, one], np.float32), np.array([one, one, one, nan, 0.0, one], np.float32),
        np.zeros(6, np.float32), np.zeros(6, np.uint8), np.array([2, 0, 0, 0, 0, 0], np.uint8),
    )  # fmt: skip
    names = ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
    both = LightCurve(*(np.concatenate([getattr(bad, n), getattr(good, n)]) for n in names))
    points = usable_points([LightCurve.empty(), both])
    assert points.size == 2
    assert points.time.tolist() == [59000.0, 59001.0, 59002.0]
    assert points.row.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(points.flux, good.flux)
    np.testing.assert_array_equal(points.error, good.flux_error)
    assert points.band.tolist() == [BAND_CODE[V]] * 3
    assert points.limits.tolist() == [0, 1]


def test_a_forced_measurement_yields_to_the_detection_of_the_same_exposure_and_band() -> None:
    kinds = [PhotometryKind.DETECTION, PhotometryKind.FORCED]
    several = [
        curve([0.0, 1.0], [15.0, 15.1], [0.01] * 2, kind=kinds[0]),
        # The first is 0.4 s later, the second 1.7 s: another exposure; the third is of another band.
        curve([5e-6, 1.00002], [16.0, 16.1], [0.01] * 2, kind=kinds[1]),
        curve([0.0], [17.0], [0.01], "ztf:r", kind=kinds[1]),
    ]
    names = ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
    both = LightCurve(*(np.concatenate([getattr(c, n) for c in several]) for n in names))
    magnitude = -2.5 * np.log10(usable_points([both]).flux / 3631e9)
    assert sorted(magnitude.round(3).tolist()) == [15.0, 15.1, 16.1, 17.0]


def test_more_than_two_hundred_points_are_thinned_to_every_so_many() -> None:
    days = np.cumsum(np.random.default_rng(1).uniform(0.5, 1.5, 517))
    magnitude = 15 + np.random.default_rng(2).normal(0, 0.1, 517)
    inputs = assemble_light_curves([curve(days, magnitude, [0.02] * 517)])
    chosen = np.array([(slot * 516) // 199 for slot in range(200)])
    np.testing.assert_allclose(inputs.points[0, :, 0], (days[chosen] - days[0]) / (days[-1] - days[0]), atol=1e-6)
    mad = stats.median_abs_deviation(magnitude)
    np.testing.assert_allclose(inputs.points[0, :, 1], (magnitude.mean() - magnitude[chosen]) / mad, atol=1e-3)


PERIOD = 0.7351
HARMONICS = ((0.3, 0.4), (0.12, 1.9), (0.06, -0.5))
"""Amplitude and phase of cos(2 pi k t / P + phase), k from 1."""
TIMES = np.sort(np.random.default_rng(3).uniform(0, 90, 180))


def pulsation(days: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness in magnitudes, brighter larger, of three harmonics."""
    turn = 2 * np.pi * (days - days[0]) / PERIOD
    return np.sum([a * np.cos(k * turn + p) for k, (a, p) in enumerate(HARMONICS, 1)], axis=0)


def explained(y: NDArray[np.float64], period: float) -> float:
    """Share of the variance that a constant and four harmonics explain, by numpy's least squares."""
    turns = 2 * np.pi * np.outer(TIMES / period, np.arange(1, 5))
    columns = np.concatenate([np.ones((len(TIMES), 1)), np.cos(turns), np.sin(turns)], axis=1)
    left = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(1 - np.var(left) / np.var(y))


def test_amplitudes_and_phases_of_the_harmonics() -> None:
    """Those of Simon & Lee (1981): phi_21 = phi_2 - 2 phi_1 of cosines, which the beginning of time does not change."""
    y = pulsation(TIMES)
    inputs = assemble_light_curves([curve(TIMES, 15 - y, [0.01] * 180)])
    found = features(inputs)
    assert inputs.period[0] == pytest.approx(PERIOD, rel=2e-4)
    phase_21, phase_31 = 1.9 - 2 * 0.4, -0.5 - 3 * 0.4
    expected = {
        "has_period": 1.0,
        "log10_period": np.log10(PERIOD),
        "log10_period_to_span": np.log10(PERIOD / np.ptp(TIMES)),
        "r2_period": 1.0,
        "r2_double_period": explained(y, 2 * PERIOD),
        "r2_half_period": explained(y, PERIOD / 2),
        "amplitude_1_to_std": 0.3 / np.std(y),
        "amplitude_21": 0.4,
        "amplitude_31": 0.2,
        "amplitude_41": 0.0,
        "cos_phase_21": np.cos(phase_21),
        "sin_phase_21": np.sin(phase_21),
        "cos_phase_31": np.cos(phase_31),
        "sin_phase_31": np.sin(phase_31),
        "odd_even_13": 0.0,
    }
    tolerance = {"odd_even_13": 0.05, "log10_period": 1e-4, "log10_period_to_span": 1e-4}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance.get(name, 0.02)), name


def test_the_fold_is_at_twice_the_period_from_the_faintest_phase_on() -> None:
    y = pulsation(TIMES)
    inputs = assemble_light_curves([curve(TIMES, 15 - y, [0.01] * 180)])
    phase = inputs.points[0, :180, 3].astype(np.float64)
    turns = (TIMES - TIMES[0]) / (2 * inputs.period[0])
    apart = np.mod(phase - phase[0] - turns + 0.5, 1.0) - 0.5
    np.testing.assert_allclose(apart, 0.0, atol=1e-5)
    standard = (y - y.mean()) / y.std()
    # Phase 0 is the faintest phase, and half a turn of the fold later comes the same phase again.
    faint = np.minimum(np.mod(2 * phase, 1.0), 1 - np.mod(2 * phase, 1.0)) < 0.03
    assert faint.sum() >= 5
    assert standard[faint].max() < np.quantile(standard, 0.15)

    def binned(of: NDArray[np.float64], bins: int, statistic: str) -> NDArray[np.float64]:
        return np.asarray(stats.binned_statistic(of, standard, statistic, bins, (0, 1)).statistic)

    count = binned(phase, PHASE_BINS, "count")
    filled = count > 0
    assert 0 < (~filled).sum() < 60
    mean, scatter, log_count, single = inputs.folded[0]
    np.testing.assert_allclose(log_count, np.log10(1 + count), atol=1e-6)
    expected = binned(phase, PHASE_BINS, "mean")
    np.testing.assert_allclose(mean[filled], expected[filled], atol=2e-3)
    np.testing.assert_allclose(scatter[filled], binned(phase, PHASE_BINS, "std")[filled], atol=2e-3)
    # Between the bins that have points, round the circle, a line.
    at = np.arange(PHASE_BINS) + 0.5
    np.testing.assert_allclose(mean, np.interp(at, at[filled], expected[filled], period=PHASE_BINS), atol=2e-3)
    once = binned(np.mod(2 * phase, 1.0), PHASE_BINS // 2, "mean")
    np.testing.assert_allclose(single[: PHASE_BINS // 2][~np.isnan(once)], once[~np.isnan(once)], atol=2e-3)
    np.testing.assert_array_equal(single[: PHASE_BINS // 2], single[PHASE_BINS // 2 :])
    ordered = standard[np.argsort(phase)]
    assert features(inputs)["von_neumann_phase"] == pytest.approx(np.mean(np.diff(ordered) ** 2), abs=2e-3)


def test_two_like_minima_are_found_at_half_the_orbit_and_folded_at_the_whole() -> None:
    """An eclipsing binary: what is found is the time between its minima, and the fold shows both."""
    orbit = 1.7
    phase = np.mod(TIMES / orbit, 1.0)
    y = np.where(np.minimum(np.abs(phase - 0.25), np.abs(phase - 0.75)) < 0.06, -0.5, 0.0)
    inputs = assemble_light_curves([curve(TIMES, 15 - y, [0.01] * 180)])
    assert inputs.period[0] == pytest.approx(orbit / 2, rel=1e-3)
    mean = inputs.folded[0, 0]
    assert mean[0] < -1.5
    assert mean[PHASE_BINS // 2] < -1.5
    assert mean[PHASE_BINS // 4] > 0
    assert mean[3 * PHASE_BINS // 4] > 0
