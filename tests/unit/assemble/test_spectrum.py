"""Spectra to model inputs."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.spectrum import BAD_PIXEL_ERROR, GRID, assemble_spectra, resample
from broker.records import Spectrum


def spectrum(wavelength: np.ndarray, flux: np.ndarray, error: float = 0.1) -> Spectrum:
    return Spectrum(wavelength, flux.astype(np.float32), np.full(len(flux), error, np.float32))


def line(wavelength: np.ndarray) -> np.ndarray:
    return 1 + 1e-4 * (wavelength - 6000) - 0.6 * np.exp(-0.5 * ((wavelength - 6563) / 12) ** 2)


@pytest.mark.parametrize("step", [0.7, 2.0, 4.9])
def test_resampling_keeps_a_smooth_spectrum_and_its_flux(step: float) -> None:
    wavelength = np.arange(3800.0, 9050.0, step)
    flux, error = resample(spectrum(wavelength, line(wavelength)))
    assert np.isfinite(flux).all()
    np.testing.assert_allclose(flux, line(GRID), atol=0.05 if step > 2 else 0.01)
    # Pixels finer than the grid average their noise down; coarser ones must not gain certainty.
    assert np.median(error) == pytest.approx(0.1 * np.sqrt(min(step, 2.0) / 2.0), rel=0.05)


def test_channels_are_scaled_by_mean_and_mad() -> None:
    wavelength = np.arange(3800.0, 9050.0, 2.0)
    inputs = assemble_spectra([spectrum(wavelength, 50 * line(wavelength), error=0.5)])
    flux, error, log_mad = inputs.spectra[0]
    assert inputs.present[0]
    assert flux.mean() == pytest.approx(0, abs=1e-4)
    assert np.median(np.abs(flux - np.median(flux))) == pytest.approx(1, abs=1e-3)
    assert np.all(log_mad == log_mad[0])
    assert np.median(error) == pytest.approx(0.5 / 50 / 10 ** log_mad[0], rel=0.05)


def test_the_unit_of_flux_does_not_matter() -> None:
    wavelength = np.arange(3800.0, 9050.0, 1.3)
    flux = line(wavelength)
    first = assemble_spectra([spectrum(wavelength, flux)])
    second = assemble_spectra([spectrum(wavelength, 1e-3 * flux, error=1e-4)])
    np.testing.assert_allclose(first.spectra, second.spectra, rtol=1e-3, atol=1e-3)


def test_bad_pixels_are_flagged_and_do_not_reach_the_flux() -> None:
    wavelength = np.arange(3800.0, 9050.0, 1.0)
    clean = spectrum(wavelength, line(wavelength))
    flux, error = clean.flux.copy(), clean.flux_error.copy()
    bad = (wavelength > 5570) & (wavelength < 5590)
    flux[bad], error[bad] = 1e6, np.inf
    inputs = assemble_spectra([Spectrum(wavelength, flux, error)])
    inside = (GRID > 5572) & (GRID < 5588)
    assert np.all(inputs.spectra[0, 1, inside] == BAD_PIXEL_ERROR)
    assert np.all(inputs.spectra[0, 0, inside] == 0)
    np.testing.assert_allclose(
        inputs.spectra[0, 0, ~inside][:500], assemble_spectra([clean]).spectra[0, 0, ~inside][:500], atol=0.05
    )


def test_missing_and_unusable_spectra_are_absent() -> None:
    wavelength = np.arange(3800.0, 9050.0, 2.0)
    good = spectrum(wavelength, line(wavelength))
    fifth = spectrum(wavelength[25:555], line(wavelength[25:555]))
    short = spectrum(wavelength[:500], line(wavelength[:500]))
    short.flux_error[::2] = np.inf
    blank = Spectrum(wavelength, np.full(len(wavelength), np.nan, np.float32), good.flux_error)
    disordered = Spectrum(wavelength[::-1].copy(), good.flux, good.flux_error)
    single = spectrum(wavelength[:1], line(wavelength[:1]))
    inputs = assemble_spectra([None, good, fifth, short, blank, disordered, single])
    assert inputs.present.tolist() == [False, True, True, False, False, False, False]
    assert not inputs.spectra[~inputs.present].any()
