"""What a periodic signal has of its own in each band: an offset, an amplitude and a phase.

The period search takes one shape for all bands. Here the bands' offsets are fitted at the period that was found, and
the amplitude and the phase of the shape as linear functions of the logarithm of wavelength: pulsating stars vary more
in the blue and a little earlier, eclipses are nearly the same in all bands. It is linear least squares on residuals,
with a prior, so that two points in a second band say nothing and two hundred say all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from broker.compiled import compiled

REFERENCE_WAVELENGTH: Final = 547.0
"""nm, of Johnson V: light curves of all bands are brought to the amplitude they would have there."""
AMPLITUDE_EXPONENT: Final = 0.9
"""Amplitudes in magnitudes are taken to fall with wavelength to this power before the period is known: between RR Lyrae
stars (1.27 from B, V, I amplitudes of 1.33, 1, 0.63) and eclipses (0)."""
SLOPE_DEVIATION: Final = 0.7
"""Prior deviation of the amplitude's exponent from AMPLITUDE_EXPONENT."""
LAG_DEVIATION: Final = 0.1
"""Prior deviation of the phase lag, cycles for each unit of ln(wavelength)."""


@dataclass(frozen=True, slots=True, eq=False)
class ChromaticFit:
    """Bands of one light curve at one period."""

    value: NDArray[np.float64]
    """(n,) brightness without the bands' offsets, at the amplitude it would have at REFERENCE_WAVELENGTH."""
    slope: float
    """How much steeper amplitudes rise with ln(wavelength) than by AMPLITUDE_EXPONENT; 0 where nothing is known."""
    slope_error: float
    """At most SLOPE_DEVIATION, which says that nothing is known."""
    lag: float
    """Cycles by which the phase comes later, for each unit of ln(wavelength)."""
    lag_error: float
    """At most LAG_DEVIATION."""


def log_wavelength(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of wavelengths (nm) in units of REFERENCE_WAVELENGTH."""
    result: NDArray[np.float64] = np.log(wavelength / REFERENCE_WAVELENGTH)
    return result


def fit_bands(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    tone: NDArray[np.float64],
    frequency: float,
    coefficients: NDArray[np.float64],
) -> ChromaticFit:
    """Offsets, amplitudes and phases of the bands for a shape of ``coefficients`` (2 harmonics) at ``frequency``.

    ``time``, ``value``, ``weight`` (n,) sorted by band and ``band_start`` as in ``harmonic_fit``; ``tone`` (n,)
    ``log_wavelength`` of each point.
    """
    corrected, found = np.empty(len(time)), np.empty(4)
    _kernel()(time, value, weight, band_start, tone, frequency, coefficients, corrected, found)
    return ChromaticFit(corrected, *found.tolist())


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernel()


def _fit(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    tone: NDArray[np.float64],
    frequency: float,
    coefficients: NDArray[np.float64],
    corrected: NDArray[np.float64],
    found: NDArray[np.float64],
) -> None:  # pragma: no mutate block - Numba compiles it, and cannot compile a choice between mutants
    """Fill ``corrected`` (n,) and ``found``: slope, its error, lag and its error."""
    points, bands = len(time), len(band_start) - 1
    harmonics = len(coefficients) // 2
    swing, rise, residual = np.empty(points), np.empty(points), np.empty(points)
    offset = np.empty(bands)
    left = amplitude = amplitude_tone = turning = turning_tone = 0.0
    for band in range(bands):
        first, last = band_start[band], band_start[band + 1]
        total = of_swing = of_rise = of_residual = 0.0
        for i in range(first, last):
            turns = frequency * time[i]
            angle = 2 * np.pi * (turns - np.rint(turns))
            cosine, sine = np.cos(angle), np.sin(angle)
            real, imaginary = 1.0, 0.0
            shape = slope_of_shape = 0.0
            for j in range(harmonics):
                real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
                shape += coefficients[j] * real + coefficients[harmonics + j] * imaginary
                # Of the shape by phase in cycles.
                slope_of_shape += (j + 1) * (coefficients[harmonics + j] * real - coefficients[j] * imaginary)
            swing[i], rise[i], residual[i] = shape, 2 * np.pi * slope_of_shape, value[i] - shape
            total += weight[i]
            of_swing += weight[i] * swing[i]
            of_rise += weight[i] * rise[i]
            of_residual += weight[i] * residual[i]
        total = max(total, 1e-30)
        offset[band] = of_residual / total
        for i in range(first, last):
            swing[i] -= of_swing / total
            rise[i] -= of_rise / total
            residual[i] -= offset[band]
            left += weight[i] * residual[i] ** 2
            amplitude += weight[i] * swing[i] ** 2
            amplitude_tone += weight[i] * swing[i] ** 2 * tone[i]
            turning += weight[i] * rise[i] ** 2
            turning_tone += weight[i] * rise[i] ** 2 * tone[i]
    # The variance that the mean of all points would have, were each as far from the fit as they are on average.
    noise = (left + 0.02) / max(points - 2 * harmonics - bands, 1)
    middle, middle_of_turning = amplitude_tone / max(amplitude, 1e-30), turning_tone / max(turning, 1e-30)
    a = b = both = of_a = of_b = 0.0
    for i in range(points):
        by_amplitude = swing[i] * (tone[i] - middle)
        by_phase = -rise[i] * (tone[i] - middle_of_turning)
        a += weight[i] * by_amplitude**2
        b += weight[i] * by_phase**2
        both += weight[i] * by_amplitude * by_phase
        of_a += weight[i] * by_amplitude * residual[i]
        of_b += weight[i] * by_phase * residual[i]
    a, b, both = a / noise + SLOPE_DEVIATION**-2, b / noise + LAG_DEVIATION**-2, both / noise
    determinant = a * b - both**2
    slope = (b * of_a - both * of_b) / noise / determinant
    lag = (a * of_b - both * of_a) / noise / determinant
    slope = min(max(slope, -3.0), 3.0)
    found[0], found[1] = slope, np.sqrt(b / determinant)
    found[2], found[3] = lag, np.sqrt(a / determinant)
    # The offsets are those under the corrected shape, not under the first one.
    for band in range(bands):
        first, last = band_start[band], band_start[band + 1]
        total = correction = 0.0
        for i in range(first, last):
            total += weight[i]
            correction += weight[i] * (
                slope * swing[i] * (tone[i] - middle) - lag * rise[i] * (tone[i] - middle_of_turning)
            )
        offset[band] -= correction / max(total, 1e-30)
        for i in range(first, last):
            corrected[i] = (value[i] - offset[band]) * np.exp(-slope * tone[i])


@cache
def _kernel() -> Callable[..., None]:
    column = types.Array(types.float64, 1, "C")
    signature = types.void(
        column, column, column, types.Array(types.intp, 1, "C"), column, types.float64, column, column, column
    )
    # Sums may be taken in any order.
    return compiled(_fit, signature, fastmath={"reassoc", "contract", "nsz"})
