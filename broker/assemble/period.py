"""Period search: a coarse periodogram by one non-uniform FFT, then harmonic fits at its highest peaks.

A plain Lomb-Scargle search evaluates the whole frequency grid finely enough for the final period. Here the
grid is only fine enough not to step over a peak (two points a peak width), costs one transform instead of
the four of a floating-mean Lomb-Scargle, and a model of several harmonics decides between the peaks. That
decides better, too: daily and yearly aliases of a signal fit one sine about equally well, but not its shape.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import finufft
import numpy as np
from numpy.typing import NDArray

MAX_FREQUENCY: Final = 24.0
"""Highest frequency searched, cycles/day: delta Scuti stars reach periods of about 0.04 day."""
SAMPLES_PER_PEAK: Final = 2
"""Coarse grid points in one peak width 1/T; at 2 the power between grid points falls by at most 19 %."""
MIN_POINTS_FOR_PERIOD: Final = 10
HARMONICS: Final = 4
"""Harmonics of the model that compares candidate periods."""
_CANDIDATES: Final = 16
_BAND_MODES: Final = 8192
_FINE_STEPS: Final = np.arange(-4, 5) / 8.0  # in units of the coarse grid step


@dataclass(frozen=True, slots=True)
class PeriodSearch:
    """Outcome of the search in one light curve."""

    frequency: float
    """Best frequency in cycles/day, NaN where no search was possible."""
    r_squared: float
    """Share of the weighted variance that HARMONICS harmonics explain at ``frequency``, 0 to 1."""
    second_frequency: float
    """Frequency of the best candidate that is neither ``frequency`` nor a simple ratio of it."""
    second_r_squared: float


NO_PERIOD: Final = PeriodSearch(float("nan"), 0.0, float("nan"), 0.0)


class _Plans(threading.local):
    """Transform plans of this thread: making one costs more than using it, and none may be shared."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, int], finufft.Plan] = {}

    def get(self, modes: int, bands: int) -> finufft.Plan:
        plan = self._plans.get((modes, bands))
        if plan is None:
            plan = finufft.Plan(
                1, (modes,), n_trans=bands, eps=1e-3, isign=-1, dtype="complex64", nthreads=1, upsampfac=1.25
            )
            self._plans[modes, bands] = plan
        return plan


_PLANS: Final = _Plans()


def coarse_power(
    time: NDArray[np.float64], weighted: NDArray[np.float64], max_frequency: float
) -> tuple[float, NDArray[np.float32]]:
    """Classical periodogram |sum w y exp(-2 pi i f t)|^2 on a grid of step 1 / (SAMPLES_PER_PEAK T).

    ``time`` (n,) days from 0 to T, ``weighted`` (n,) weight times mean-subtracted value. Returns the step in
    cycles/day and power (m,), unnormalised, at frequencies step, 2 step, ... ``max_frequency``.

    The frequencies are done in bands of _BAND_MODES, each a transform of the signal shifted by the band's
    middle: transforms that fit the processor's cache are three times as fast as one over all frequencies.
    """
    step = 1.0 / (SAMPLES_PER_PEAK * float(np.ptp(time)))
    count = max(int(max_frequency / step), 2)
    modes = min(_BAND_MODES, max(256, 1 << (count - 1).bit_length()))
    bands = -(-count // modes)
    cycles = time * step
    # A transform gives modes -modes/2 .. modes/2 - 1 around the band's middle; the first band's lowest is 1.
    shift = np.mod(np.outer(np.arange(bands) * modes + modes // 2 + 1, cycles), 1.0).astype(np.float32)
    shift *= np.float32(-2.0 * np.pi)
    strength = np.empty(shift.shape, np.complex64)
    weighted32 = weighted.astype(np.float32)
    np.multiply(weighted32, np.cos(shift), out=strength.real)
    np.multiply(weighted32, np.sin(shift), out=strength.imag)
    angle = (2.0 * np.pi * (np.mod(cycles + 0.5, 1.0) - 0.5)).astype(np.float32)
    plan = _PLANS.get(modes, bands)
    plan.setpts(angle)
    amplitude = plan.execute(strength if bands > 1 else strength[0]).reshape(-1)[:count]
    return step, np.square(amplitude.real) + np.square(amplitude.imag)


def harmonic_fit(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    frequency: NDArray[np.float64],
    harmonics: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least-squares fit of a constant and ``harmonics`` sines and cosines at each frequency.

    ``time``, ``value``, ``weight`` (n,), weights summing to 1; ``frequency`` (k,). Returns R^2 (k,) and the
    coefficients (k, 1 + 2 harmonics): constant, cosines, sines. The normal equations come from sums of
    powers of exp(2 pi i f t), as in the multi-harmonic periodogram of Palmer (2009, ApJ 695, 496).
    """
    phase = np.mod(np.outer(frequency, time), 1.0).astype(np.float32) * np.float32(2 * np.pi)
    rotation = np.cos(phase) + 1j * np.sin(phase)
    weights = np.stack([weight, weight * value], axis=1).astype(np.complex64)
    sums = np.empty((2 * harmonics + 1, len(frequency), 2), np.complex128)
    sums[0] = weights.sum(axis=0)
    power = np.ones_like(rotation)
    for k in range(1, 2 * harmonics + 1):
        power *= rotation
        sums[k] = power @ weights
    window, signal = sums[..., 0], sums[: harmonics + 1, :, 1]
    order = np.arange(1, harmonics + 1)
    total, difference = window[order[:, None] + order], window[np.abs(order[:, None] - order)]
    sign = np.sign(order[:, None] - order)[..., None]
    size = 1 + 2 * harmonics
    normal = np.empty((size, size, len(frequency)))
    normal[0, 0] = 1.0
    normal[0, 1 : harmonics + 1] = normal[1 : harmonics + 1, 0] = window[order].real
    normal[0, harmonics + 1 :] = normal[harmonics + 1 :, 0] = window[order].imag
    normal[1 : harmonics + 1, 1 : harmonics + 1] = 0.5 * (difference.real + total.real)
    normal[harmonics + 1 :, harmonics + 1 :] = 0.5 * (difference.real - total.real)
    # cos(j) sin(k) = (sin(k+j) + sin(k-j)) / 2, rows j (cosine), columns k (sine)
    cross = 0.5 * (total.imag - sign * difference.imag)
    normal[1 : harmonics + 1, harmonics + 1 :] = cross
    normal[harmonics + 1 :, 1 : harmonics + 1] = cross.transpose(1, 0, 2)
    right = np.concatenate([signal[:1].real, signal[1:].real, signal[1:].imag])
    # A ridge far below the noise keeps gaps in phase coverage from blowing the fit up.
    matrix = normal.transpose(2, 0, 1) + 1e-4 * np.eye(size)
    coefficients = np.linalg.solve(matrix, right.T[..., None])[..., 0]
    variance = float(np.sum(weight * value**2) - np.sum(weight * value) ** 2)
    explained = np.einsum("kj,jk->k", coefficients, right) - float(np.sum(weight * value)) ** 2
    return np.clip(explained / max(variance, 1e-30), 0.0, 1.0), coefficients


def find_period(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    max_frequency: float = MAX_FREQUENCY,
) -> PeriodSearch:
    """Best period of one light curve.

    ``time`` (n,) days, ``value`` (n,) brightness in any unit, ``weight`` (n,) summing to 1. NO_PERIOD where
    there are fewer than MIN_POINTS_FOR_PERIOD points or they span less than two hours.
    """
    span = float(np.ptp(time)) if len(time) else 0.0
    if len(time) < MIN_POINTS_FOR_PERIOD or span < 1.0 / 12.0:
        return NO_PERIOD
    time = time - np.min(time)
    value = value - np.sum(weight * value)
    step, power = coarse_power(time, weight * value, max_frequency)
    peaks = _highest_peaks(power, _CANDIDATES)
    harmonics = min(HARMONICS, max(1, len(time) // 8))
    grid = np.maximum(step * (peaks[:, None] + 1 + _FINE_STEPS), 0.25 * step)
    r_squared = harmonic_fit(time, value, weight, grid.ravel(), harmonics)[0].reshape(grid.shape)
    best_step = np.argmax(r_squared, axis=1)
    rows = np.arange(len(peaks))
    candidate, quality = grid[rows, best_step], r_squared[rows, best_step]
    best = int(np.argmax(quality))
    ratio = candidate / candidate[best]
    related = np.isclose(ratio, np.round(ratio), atol=0.01) | np.isclose(1 / ratio, np.round(1 / ratio), atol=0.01)
    fine = np.maximum(candidate[best] + step / 8.0 * _FINE_STEPS, 0.25 * step)
    fine_quality = harmonic_fit(time, value, weight, fine, harmonics)[0]
    chosen = int(np.argmax(fine_quality))
    if np.all(related):
        return PeriodSearch(float(fine[chosen]), float(fine_quality[chosen]), float("nan"), 0.0)
    second = int(np.argmax(np.where(related, -1.0, quality)))
    return PeriodSearch(
        float(fine[chosen]), float(fine_quality[chosen]), float(candidate[second]), float(quality[second])
    )


def _highest_peaks(power: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` highest local maxima of ``power``, at least one."""
    inner = power[1:-1]
    maxima = np.flatnonzero((inner >= power[:-2]) & (inner > power[2:])) + 1
    # The lowest frequency counts too where power rises towards it: a trend longer than the light curve.
    if power[0] > power[1]:
        maxima = np.append(maxima, 0)
    if len(maxima) <= count:
        return maxima if len(maxima) else np.array([int(np.argmax(power))])
    return maxima[np.argpartition(power[maxima], -count)[-count:]]
