"""Resampled and scaled spectra, and the prior of the bands' fit, against numbers worked out by hand or by scipy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from broker.assemble.chromatic import fit_bands
from broker.assemble.grouped import group_median, group_quantiles
from broker.assemble.metadata import MODEL_FEATURES, raw_values, widened
from broker.assemble.spectrum import GRID, MIN_COVERAGE, normalise, resample
from broker.records import SOURCE_FEATURES, SourceMetadata, Spectrum


def test_pixels_wider_than_a_step_by_hand() -> None:
    """Pixels from 3848.5 to 3851.5, 3856 and 3862; a step of the grid is 2 wide, the first from 3849 to 3851."""
    spectrum = Spectrum(
        np.array([3850.0, 3853.0, 3859.0]),
        np.array([1.0, 4.0, 10.0], np.float32),
        np.array([0.1, 0.2, 0.3], np.float32),
    )
    flux, error = resample(spectrum)
    # Step 3852 has half an Angstrom of the first pixel and one and a half of the second; 3862 half a step of the last.
    np.testing.assert_allclose(flux[:7], [1.0, 3.25, 4.0, 7.0, 10.0, 10.0, 10.0], rtol=1e-6)
    variance = [0.01, (0.5 * 0.01 + 1.5 * 0.04) / 2, 0.04, (0.04 + 0.09) / 2, 0.09, 0.09, 0.09]
    np.testing.assert_allclose(error[:7], np.sqrt(variance), rtol=1e-6)
    assert np.isnan(flux[7:]).all()
    assert np.isnan(error[7:]).all()


def test_pixels_finer_than_a_step_average_their_noise_and_bad_ones_are_left_out() -> None:
    wavelength = np.arange(3849.25, 3857.0, 0.5)  # four pixels in each of the first four steps
    flux, error = np.arange(16.0), np.full(16, 0.4)
    flux[5], error[6], error[7] = np.nan, np.inf, 0.0
    error[12:15] = -1.0  # a quarter of the last step is left, more than a fifth
    found, noise = resample(Spectrum(wavelength, flux.astype(np.float32), error.astype(np.float32)))
    np.testing.assert_allclose(found[:4], [1.5, 4.0, 9.5, 15.0], rtol=1e-6)
    # The error of a mean of n pixels falls with the root of n.
    np.testing.assert_allclose(noise[:4], [0.2, 0.4, 0.2, 0.4], rtol=1e-6)
    assert np.isnan(found[4:]).all()


@pytest.mark.parametrize(("last", "known"), [(3849.3, False), (3849.5, True)])
def test_a_step_needs_a_fifth_of_its_width(last: float, known: bool) -> None:
    """Two pixels that end at 3849.3 and 3849.5, 0.3 and 0.5 into the first step."""
    width = 1.0
    middle = np.array([last - 1.5 * width, last - 0.5 * width])
    flux, _ = resample(Spectrum(middle, np.ones(2, np.float32), np.ones(2, np.float32)))
    assert np.isfinite(flux[0]) == known


def test_scaling_is_by_median_mean_and_mad() -> None:
    rng = np.random.default_rng(4)
    flux, error = rng.normal(40.0, 5.0, (2, len(GRID))), rng.uniform(0.5, 1.5, (2, len(GRID)))
    flux[:, 100:400] = np.nan
    error[1, 500:700], error[1, 700] = np.inf, 0.0
    error[1, 701] = 1e9
    inputs = normalise(flux, error)
    for row, bad in enumerate((slice(100, 400), np.r_[100:400, 500:701])):
        good = np.ones(len(GRID), np.bool_)
        good[bad] = False
        unit = np.median(flux[row, good])
        value = flux[row] / unit
        mad = stats.median_abs_deviation(value[good])
        np.testing.assert_allclose(inputs.spectra[row, 0, good], (value[good] - value[good].mean()) / mad, atol=1e-4)
        np.testing.assert_allclose(
            inputs.spectra[row, 1, good], np.minimum(error[row, good] / unit / mad, 1e3), rtol=1e-4
        )
        np.testing.assert_allclose(inputs.spectra[row, 2], np.log10(mad), rtol=1e-5)
        assert set(inputs.spectra[row, 0, ~good].tolist()) == {0.0}
        assert set(inputs.spectra[row, 1, ~good].tolist()) == {1000.0}


@pytest.mark.parametrize(("pixels", "used"), [(257, False), (258, True)])
def test_a_tenth_of_the_grid_is_enough(pixels: int, used: bool) -> None:
    assert len(GRID) * MIN_COVERAGE == 257.5
    flux = np.full((1, len(GRID)), np.nan)
    flux[0, :pixels] = np.linspace(1, 2, pixels)
    assert normalise(flux, np.ones_like(flux)).present.tolist() == [used]


def test_quantiles_of_groups_are_numpys() -> None:
    rng = np.random.default_rng(5)
    group, value = rng.integers(0, 6, 90), rng.normal(size=90)
    group[group == 3] = 2  # nothing in the fourth
    levels = (0.0, 0.05, 0.5, 0.77, 1.0)
    found = group_quantiles(value, group, 7, levels)
    for number in (0, 1, 2, 4, 5):
        np.testing.assert_allclose(found[:, number], np.quantile(value[group == number], levels), rtol=1e-12)
    assert not found[:, [3, 6]].any()
    np.testing.assert_allclose(group_median(value, group, 7), found[2])


def test_values_of_sources_and_histories_in_their_columns() -> None:
    history = np.arange(30.0).reshape(2, 15) + 100
    found = raw_values([SourceMetadata(np.array([1.5, 2.5], np.float32)), None], history)
    assert found[0, :2].tolist() == [1.5, 2.5]
    assert np.isnan(found[0, 2 : len(SOURCE_FEATURES)]).all()
    assert np.isnan(found[1, : len(SOURCE_FEATURES)]).all()
    np.testing.assert_array_equal(found[:, len(SOURCE_FEATURES) :], history)
    wide = widened(np.array([[1.0, 2.0, 3.0]]))
    assert wide.shape == (1, len(MODEL_FEATURES))
    assert wide[0, :3].tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(wide[0, 3:]).all()


def test_the_bands_fit_is_least_squares_with_a_prior() -> None:
    """Slope and lag by numpy: the residuals' rows beside one row for each prior, each divided by its error."""
    rng = np.random.default_rng(6)
    sizes, frequency = (25, 15), 1.3
    time = np.concatenate([np.sort(rng.uniform(0, 20, size)) for size in sizes])
    tone = np.repeat([-0.14, 0.15], sizes)
    weight = rng.uniform(0.5, 1.5, 40)
    weight /= weight.sum()
    start = np.array([0, 25, 40])
    coefficients = np.array([1.1, 0.3, -0.5, 0.2])
    angle = 2 * np.pi * frequency * time
    shape = 1.1 * np.cos(angle) + 0.3 * np.cos(2 * angle) - 0.5 * np.sin(angle) + 0.2 * np.sin(2 * angle)
    by_cycle = (
        2 * np.pi * (-1.1 * np.sin(angle) - 0.6 * np.sin(2 * angle) - 0.5 * np.cos(angle) + 0.4 * np.cos(2 * angle))
    )
    value = shape * np.exp(0.4 * tone) - 0.03 * tone * by_cycle + np.repeat([0.3, -0.2], sizes)
    value += rng.normal(0, 0.1, 40)

    def centred(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        for first, last in pairwise(start):
            out[first:last] -= np.average(x[first:last], weights=weight[first:last])
        return out

    residual, swing, rise = centred(value - shape), centred(shape), centred(by_cycle)
    columns = np.stack(
        [
            swing * (tone - np.average(tone, weights=weight * swing**2)),
            -rise * (tone - np.average(tone, weights=weight * rise**2)),
        ],
        axis=1,
    )
    # Points less four coefficients and two offsets; a fiftieth of the variance at least is not explained.
    noise = (np.sum(weight * residual**2) + 0.02) / (40 - 4 - 2)
    root = np.sqrt(weight / noise)
    rows = np.concatenate([columns * root[:, None], np.diag([1 / 0.7, 1 / 0.1])])
    (slope, lag), *_ = np.linalg.lstsq(rows, np.concatenate([residual * root, [0.0, 0.0]]), rcond=None)
    errors = np.sqrt(np.diag(np.linalg.inv(rows.T @ rows)))
    found = fit_bands(time, value, weight, start, tone, frequency, coefficients)
    assert (found.slope, found.lag) == pytest.approx((slope, lag), rel=1e-6)
    assert (found.slope_error, found.lag_error) == pytest.approx(tuple(errors), rel=1e-6)
    assert found.slope == pytest.approx(0.4, abs=3 * found.slope_error)
    assert found.lag == pytest.approx(0.03, abs=3 * found.lag_error)
    left = value - (shape + slope * columns[:, 0] + lag * columns[:, 1])
    np.testing.assert_allclose(found.value, (value - (left - centred(left))) * np.exp(-slope * tone), rtol=1e-6)
