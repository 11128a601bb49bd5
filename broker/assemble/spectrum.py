"""Spectra to model inputs: one grid, flux and error scaled by mean and MAD (AstroM3, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import SpectrumInputs
from broker.records import Spectrum

GRID: Final = 3850.0 + 2.0 * np.arange(2575)
"""Angstrom, vacuum: AstroM3's grid, 3850 to 8998 in steps of 2."""
MIN_COVERAGE: Final = 0.1
"""Spectra with good pixels on less than this share of the grid, 515 Angstrom, are not used: the model has been trained
on no shorter ones."""
BAD_PIXEL_ERROR: Final = 1e3
"""Error, in MADs, given to grid points without a good pixel; their flux is 0, the mean."""


def assemble_spectra(spectra: Sequence[Spectrum | None]) -> SpectrumInputs:
    """Model inputs of a batch of spectra; None and unusable ones are marked absent and their rows are zero."""
    flux = np.full((len(spectra), len(GRID)), np.nan)
    error = np.full((len(spectra), len(GRID)), np.nan)
    for row, spectrum in enumerate(spectra):
        if spectrum is not None:
            flux[row], error[row] = resample(spectrum)
    return normalise(flux, error)


def resample(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean flux and its error in each grid step, both (2575,); NaN where no good pixel lies in the step.

    Flux-conserving: the integral over good pixels is interpolated at the edges of the steps. A pixel is good
    where wavelength, flux and error are finite and the error is positive.
    """
    wavelength = np.asarray(spectrum.wavelength, np.float64)
    nothing = np.full(len(GRID), np.nan)
    if len(wavelength) < 2 or not np.all(np.diff(wavelength) > 0):
        return nothing, nothing.copy()
    flux, error = np.asarray(spectrum.flux, np.float64), np.asarray(spectrum.flux_error, np.float64)
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    middle = 0.5 * (wavelength[1:] + wavelength[:-1])
    pixel_edges = np.concatenate([[1.5 * wavelength[0] - 0.5 * wavelength[1]], middle,
                                  [1.5 * wavelength[-1] - 0.5 * wavelength[-2]]])  # fmt: skip
    width = np.diff(pixel_edges)
    edges = np.append(GRID - 1.0, GRID[-1] + 1.0)

    def in_steps(density: NDArray[np.float64]) -> NDArray[np.float64]:
        integral = np.concatenate([[0.0], np.cumsum(np.where(good, density, 0.0) * width)])
        return np.diff(np.interp(edges, pixel_edges, integral))

    covered = in_steps(np.ones_like(width))
    enough = covered > 0.2 * 2.0
    covered = np.where(enough, covered, 1.0)
    mean = in_steps(np.where(good, flux, 0.0)) / covered
    variance = in_steps(np.where(good, error, 0.0) ** 2 * width) / covered**2
    # Steps finer than a pixel share its error: splitting a pixel must not make its flux look less certain.
    variance = np.minimum(variance, in_steps(np.where(good, error, 0.0) ** 2) / covered)
    return np.where(enough, mean, np.nan), np.where(enough, np.sqrt(variance), np.nan)


def normalise(flux: NDArray[np.float64], error: NDArray[np.float64]) -> SpectrumInputs:
    """Model inputs from flux and error on the grid, both (batch, 2575), NaN where unknown.

    The flux is first divided by its median, since surveys give it in different units, and the third channel,
    log10 of the MAD, would otherwise tell the survey and not the star.
    """
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    present = good.mean(axis=1) >= MIN_COVERAGE
    spectra = np.zeros((len(flux), 3, len(GRID)), np.float32)
    if not present.any():
        return SpectrumInputs(spectra, present)
    known = np.where(good[present], flux[present], np.nan)
    median = np.nanmedian(known, axis=1, keepdims=True)
    unit = np.where(np.abs(median) > 0, np.abs(median), 1.0)
    known /= unit
    mad = np.nanmedian(np.abs(known - np.nanmedian(known, axis=1, keepdims=True)), axis=1, keepdims=True)
    mad = np.maximum(mad, 1e-4)
    scaled = (known - np.nanmean(known, axis=1, keepdims=True)) / mad
    scaled_error = np.where(good[present], error[present] / unit / mad, BAD_PIXEL_ERROR)
    spectra[present, 0] = np.clip(np.nan_to_num(scaled), -100, 100)
    spectra[present, 1] = np.minimum(scaled_error, BAD_PIXEL_ERROR)
    spectra[present, 2] = np.log10(mad)
    return SpectrumInputs(spectra, present)
