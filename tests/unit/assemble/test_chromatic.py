"""What each band has of its own, against light curves made of known amplitudes, phases and offsets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.assemble.chromatic import AMPLITUDE_EXPONENT, LAG_DEVIATION, SLOPE_DEVIATION, fit_bands, log_wavelength
from broker.assemble.harmonics import band_means, turn_fraction
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.bands import BAND_CODE, WAVELENGTH
from broker.records import LightCurve

FEATURE = {name: i for i, name in enumerate(LIGHT_CURVE_FEATURES)}
BANDS = ("ztf:g", "ztf:r", "ztf:i")


def star(
    points: int, exponent: float, lag: float, seed: int = 0, bands: tuple[str, ...] = BANDS, noise: float = 0.01
) -> LightCurve:
    """A star of 0.5 mag in V, period 0.61 d, with a colour; every band in turn."""
    rng = np.random.default_rng(seed)
    mjd = 58000 + np.sort(rng.uniform(0, 200, points))
    code = np.array([BAND_CODE[name] for name in bands], np.uint8)[np.arange(points) % len(bands)]
    x = np.log(WAVELENGTH[code] / 547.0)
    phase = mjd / 0.61 - lag * x
    wave = np.cos(2 * np.pi * phase) + 0.4 * np.cos(4 * np.pi * phase + 1.0)
    magnitude = 16.0 - 1.5 * x + 0.25 * (WAVELENGTH[code] / 547.0) ** -exponent * wave + rng.normal(0, noise, points)
    flux = 3631e9 * 10 ** (-0.4 * magnitude)
    return LightCurve(
        mjd, flux.astype(np.float32), (flux * noise).astype(np.float32), np.zeros(points, np.float32), code,
        np.zeros(points, np.uint8),
    )  # fmt: skip


def features(curve: LightCurve) -> dict[str, float]:
    row = assemble_light_curves([curve]).features[0]
    return {name: float(row[i]) for name, i in FEATURE.items()}


@pytest.mark.parametrize(("exponent", "lag"), [(1.3, 0.02), (0.0, 0.0), (0.9, -0.05)])
def test_amplitude_and_phase_by_wavelength_are_found(exponent: float, lag: float) -> None:
    found = features(star(300, exponent, lag))
    assert 10 ** -abs(found["log10_period"] - np.log10(0.61)) == pytest.approx(1.0, abs=1e-4)
    # Amplitudes were brought to V by AMPLITUDE_EXPONENT before: what is left is the difference.
    assert found["chromatic_slope"] == pytest.approx(AMPLITUDE_EXPONENT - exponent, abs=0.08)
    assert found["phase_lag"] == pytest.approx(lag, abs=0.006)
    assert found["chromatic_slope_error"] < 0.1
    assert found["phase_lag_error"] < 0.01
    assert found["bands"] == 3


def test_errors_are_those_of_many_stars() -> None:
    own = [features(star(60, 1.3, 0.0, seed, noise=0.03)) for seed in range(40)]
    scatter = np.std([f["chromatic_slope"] for f in own])
    assert np.mean([f["chromatic_slope_error"] for f in own]) == pytest.approx(scatter, rel=0.5)


def test_one_band_says_nothing_of_colour() -> None:
    found = features(star(200, 1.3, 0.05, bands=("ztf:r",)))
    assert found["chromatic_slope"] == found["phase_lag"] == 0.0
    assert found["chromatic_slope_error"] == pytest.approx(SLOPE_DEVIATION)
    assert found["phase_lag_error"] == pytest.approx(LAG_DEVIATION)
    assert found["bands"] == 1


@pytest.mark.parametrize("exponent", [0.0, 1.3])
def test_light_curves_are_brought_to_v(exponent: float) -> None:
    """The range is that of V, whichever bands the star was seen in and whatever its exponent."""
    in_v = 10 ** features(star(400, exponent, 0.0, bands=("johnson:V",)))["log10_range_90"]
    several = 10 ** features(star(400, exponent, 0.0))["log10_range_90"]
    assert several == pytest.approx(in_v, rel=0.03)


def test_offsets_of_bands_are_fitted_not_medians() -> None:
    """Of a band that has only seen the star bright, the median is not the mean."""
    curve = star(240, 0.0, 0.0)
    mjd = curve.mjd
    bright = np.cos(2 * np.pi * mjd / 0.61) < -0.3  # magnitudes: small is bright
    kept = curve.take(np.flatnonzero((curve.band != BAND_CODE["ztf:i"]) | bright))
    whole, partial = features(curve), features(kept)
    assert partial["r2_period"] > 0.98
    assert partial["log10_std"] == pytest.approx(whole["log10_std"], abs=0.06)


def test_the_shape_itself_is_returned_without_offsets() -> None:
    rng = np.random.default_rng(1)
    time = rng.uniform(0, 50, 90)
    start = np.array([0, 30, 90], np.intp)
    offset = np.where(np.arange(90) < 30, 2.0, -1.0)
    shape = 0.8 * np.cos(2 * np.pi * 0.37 * time)
    tone = log_wavelength(np.where(np.arange(90) < 30, 475.0, 637.0))
    weight: NDArray[np.float64] = np.full(90, 1 / 90)
    fit = fit_bands(time, shape + offset, weight, start, tone, 0.37, np.array([0.8, 0.0]))
    np.testing.assert_allclose(fit.value - fit.value.mean(), shape - shape.mean(), atol=1e-6)
    assert fit.slope == pytest.approx(0.0, abs=1e-6)


def by_numpy(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    tone: NDArray[np.float64],
    frequency: float,
    coefficients: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float, float, float, float]:
    """As ``fit_bands``, in array operations and with NumPy's inverse."""
    harmonics = len(coefficients) // 2
    order = np.arange(1, harmonics + 1)
    angle = 2 * np.pi * turn_fraction(np.outer(order, frequency * time))
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = coefficients[:harmonics], coefficients[harmonics:]
    shape = first @ cosine + second @ sine
    # Of the shape by phase in cycles.
    rise = 2 * np.pi * ((second * order) @ cosine - (first * order) @ sine)
    residual = value - shape
    residual -= band_means(residual, weight, band_start)

    def of_tone(x: NDArray[np.float64], strength: NDArray[np.float64]) -> NDArray[np.float64]:
        middle = np.sum(strength * x) / max(float(np.sum(strength)), 1e-30)
        return x - middle

    swing = shape - band_means(shape, weight, band_start)
    rise -= band_means(rise, weight, band_start)
    by_amplitude = swing * of_tone(tone, weight * swing**2)
    by_phase = -rise * of_tone(tone, weight * rise**2)
    # The variance that the mean of all points would have, were each as far from the fit as they are on average.
    noise = (float(np.sum(weight * residual**2)) + 0.02) / max(len(time) - 2 * harmonics - len(band_start) + 1, 1)
    a, b = np.sum(weight * by_amplitude**2), np.sum(weight * by_phase**2)
    both = np.sum(weight * by_amplitude * by_phase)
    matrix = np.array([[a / noise + SLOPE_DEVIATION**-2, both / noise], [both / noise, b / noise + LAG_DEVIATION**-2]])
    right = np.array([np.sum(weight * by_amplitude * residual), np.sum(weight * by_phase * residual)]) / noise
    covariance = np.linalg.inv(matrix)
    slope, lag = covariance @ right
    slope = float(np.clip(slope, -3, 3))
    # The offsets are those under the corrected shape, not under the first one.
    fitted = shape + slope * by_amplitude + lag * by_phase
    offset = band_means(value - fitted, weight, band_start)
    return (
        (value - offset) * np.exp(-slope * tone),
        slope,
        float(np.sqrt(covariance[0, 0])),
        float(lag),
        float(np.sqrt(covariance[1, 1])),
    )


@pytest.mark.parametrize("points", [10, 11, 57, 400])
@pytest.mark.parametrize("bands", [1, 2, 5])
@pytest.mark.parametrize("harmonics", [1, 4])
def test_the_compiled_fit_is_that_of_array_operations(points: int, bands: int, harmonics: int) -> None:
    rng = np.random.default_rng([points, bands, harmonics])
    start = np.concatenate([[0], np.sort(rng.choice(np.arange(1, points), bands - 1, replace=False)), [points]])
    time, value = rng.uniform(0, 3000, points), rng.normal(0, 1, points)
    weight = rng.exponential(1, points)
    weight[start[-2] : start[-2] + 1] = 0.0  # a point that says nothing, in a band of one point perhaps
    weight /= weight.sum()
    tone = np.repeat(rng.normal(0, 0.3, bands), np.diff(start))
    arguments = time, value, weight, start.astype(np.intp), tone, 1.7, rng.normal(0, 0.5, 2 * harmonics)
    fit, (corrected, *numbers) = fit_bands(*arguments), by_numpy(*arguments)
    np.testing.assert_allclose(fit.value, corrected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([fit.slope, fit.slope_error, fit.lag, fit.lag_error], numbers, rtol=1e-9, atol=1e-12)
