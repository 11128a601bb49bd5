"""What a periodic signal has of its own in each band: an offset, an amplitude and a phase.

The period search takes one shape for all bands. Here the bands' offsets are fitted at the period that was found, and
the amplitude and the phase of the shape as linear functions of the logarithm of wavelength: pulsating stars vary more
in the blue and a little earlier, eclipses are nearly the same in all bands. It is linear least squares on residuals,
with a prior, so that two points in a second band say nothing and two hundred say all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.harmonics import band_means, turn_fraction

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
    return ChromaticFit(
        (value - offset) * np.exp(-slope * tone),
        slope,
        float(np.sqrt(covariance[0, 0])),
        float(lag),
        float(np.sqrt(covariance[1, 1])),
    )
