"""Fits of harmonics at many frequencies, compiled by Numba: most of the time of a period search goes here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from broker.compiled import compiled

_RIDGE: Final = 1e-4
"""Far below the noise; keeps gaps in phase coverage from blowing the fit up."""


def harmonic_fit(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    frequency: NDArray[np.float64],
    harmonics: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least-squares fit of ``harmonics`` sines and cosines and a constant for each band at each frequency.

    ``time``, ``value``, ``weight`` (n,), sorted by band, weights summing to 1; ``band_start`` (b + 1,), from 0 to n,
    where the points of each band begin; ``frequency`` (k,). Returns R^2 (k,), the share of the variance about each
    band's own mean, and the coefficients (k, 2 harmonics): cosines, sines. One shape for all bands, an offset for each,
    is the multi-band periodogram of VanderPlas & Ivezic (2015, ApJ 812, 18) with N_base = harmonics and N_band = 0; the
    offsets are eliminated beforehand. The normal equations come from sums of powers of exp(2 pi i f t), as in the
    multi-harmonic periodogram of Palmer (2009, ApJ 695, 496).
    """
    phase = turn_fraction(np.outer(frequency, time)).astype(np.float32) * np.float32(2 * np.pi)
    value = value - band_means(value, weight, band_start)
    weighted = weight * value
    explained = np.empty(len(frequency))
    coefficients = np.empty((len(frequency), 2 * harmonics))
    _kernel()(
        np.cos(phase), np.sin(phase), weight.astype(np.float32), weighted.astype(np.float32), band_start, explained,
        coefficients,
    )  # fmt: skip
    variance = float(np.sum(weighted * value))
    return np.clip(explained / max(variance, 1e-30), 0.0, 1.0), coefficients


def band_means(
    value: NDArray[np.float64], weight: NDArray[np.float64], band_start: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(n,) the weighted mean of each point's band; arguments as in ``harmonic_fit``."""
    mean = np.empty(len(value))
    _means_kernel()(value, weight, band_start, mean)
    return mean


def turn_fraction(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns less whole ones, -1/2 to 1/2; np.mod takes 20 times as long."""
    return turns - np.rint(turns)


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernel()
    _means_kernel()


def _means(
    value: NDArray[np.float64], weight: NDArray[np.float64], band_start: NDArray[np.intp], mean: NDArray[np.float64]
) -> None:  # pragma: no mutate block - as below
    """Fill ``mean`` (n,) of ``band_means``: in NumPy, calls for each band cost more than a band's points do."""
    for band in range(len(band_start) - 1):
        first, last = band_start[band], band_start[band + 1]
        total = weights = 0.0
        for i in range(first, last):
            total += weight[i] * value[i]
            weights += weight[i]
        mean[first:last] = total / max(weights, 1e-30)


def _fit(
    cosine: NDArray[np.float32],
    sine: NDArray[np.float32],
    weight: NDArray[np.float32],
    weighted: NDArray[np.float32],
    band_start: NDArray[np.intp],
    explained: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> None:  # pragma: no mutate block - Numba compiles it, and cannot compile a choice between mutants
    """Fill ``explained`` (k,), what each fit takes off the weighted sum of squares, and ``coefficients`` (k, size).

    ``cosine``, ``sine`` (k, n) of the first harmonic's phase; ``weighted`` (n,) is weight times value, which sums to
    zero in each band.
    """
    size = coefficients.shape[1]
    harmonics = size // 2
    points = len(weight)
    bands = len(band_start) - 1
    # Of each order m, the sums of w cos(m p), w sin(m p), w y cos(m p), w y sin(m p) over the points.
    sums = np.empty((2 * harmonics + 1, 4))
    # And the first two of each band, up to the highest harmonic: what the band's offset takes off.
    of_band = np.empty((bands, size))
    band_weight = np.empty(bands)
    for band in range(bands):
        total32 = np.float32(0.0)
        for i in range(band_start[band], band_start[band + 1]):
            total32 += weight[i]
        band_weight[band] = max(float(total32), 1e-12)
    real, imaginary = np.empty(points, np.float32), np.empty(points, np.float32)
    lower = np.empty((size, size))
    for row in range(len(explained)):
        real[:] = np.float32(1.0)
        imaginary[:] = np.float32(0.0)
        sums[0, 0], sums[0, 1] = np.sum(weight), 0.0
        for order in range(1, 2 * harmonics + 1):
            sums[order, :] = 0.0
            for band in range(bands):
                first, last = band_start[band], band_start[band + 1]
                # As parts with indices from 0, which are never negative: else each access asks whether one is.
                real_, imaginary_, cosine_, sine_ = (
                    real[first:last], imaginary[first:last], cosine[row, first:last], sine[row, first:last],
                )  # fmt: skip
                weight_, weighted_ = weight[first:last], weighted[first:last]
                a = b = c = d = np.float32(0.0)
                for i in range(last - first):
                    turned = real_[i] * cosine_[i] - imaginary_[i] * sine_[i]
                    imaginary_[i] = real_[i] * sine_[i] + imaginary_[i] * cosine_[i]
                    real_[i] = turned
                    a += weight_[i] * real_[i]
                    b += weight_[i] * imaginary_[i]
                    c += weighted_[i] * real_[i]
                    d += weighted_[i] * imaginary_[i]
                sums[order, 0] += a
                sums[order, 1] += b
                sums[order, 2] += c
                sums[order, 3] += d
                if order <= harmonics:
                    of_band[band, order - 1], of_band[band, harmonics + order - 1] = a, b
        # The lower half of the normal equations' matrix, by products of sines and cosines as sums.
        right = coefficients[row]
        for j in range(1, harmonics + 1):
            right[j - 1], right[harmonics + j - 1] = sums[j, 2], sums[j, 3]
            for k in range(1, harmonics + 1):
                sign = 1.0 if j > k else -1.0
                apart = abs(j - k)
                lower[j - 1, k - 1] = 0.5 * (sums[apart, 0] + sums[j + k, 0])
                lower[harmonics + j - 1, harmonics + k - 1] = 0.5 * (sums[apart, 0] - sums[j + k, 0])
                # sin(j) cos(k) = (sin(j+k) + sin(j-k)) / 2
                lower[harmonics + j - 1, k - 1] = 0.5 * (sums[j + k, 1] + sign * sums[apart, 1])
        # Eliminating the offsets leaves their Schur complement.
        for band in range(bands):
            for j in range(size):
                share = of_band[band, j] / band_weight[band]
                for k in range(j + 1):
                    lower[j, k] -= share * of_band[band, k]
        # Cholesky's decomposition in place, and both substitutions.
        for j in range(size):
            lower[j, j] += _RIDGE
            for k in range(j):
                total = lower[j, k]
                for i in range(k):
                    total -= lower[j, i] * lower[k, i]
                lower[j, k] = total / lower[k, k]
                lower[j, j] -= lower[j, k] ** 2
            lower[j, j] = np.sqrt(lower[j, j])
        explained[row] = 0.0
        for j in range(size):
            for i in range(j):
                right[j] -= lower[j, i] * right[i]
            right[j] /= lower[j, j]
            explained[row] += right[j] ** 2
        for j in range(size - 1, -1, -1):
            for i in range(j + 1, size):
                right[j] -= lower[i, j] * right[i]
            right[j] /= lower[j, j]


_TABLE32: Final = types.Array(types.float32, 2, "C")
_VECTOR32: Final = types.Array(types.float32, 1, "C")
_SIGNATURE: Final = types.void(
    _TABLE32, _TABLE32, _VECTOR32, _VECTOR32, types.Array(types.intp, 1, "C"), types.Array(types.float64, 1, "C"),
    types.Array(types.float64, 2, "C"),
)  # fmt: skip


@cache
def _kernel() -> Callable[..., None]:
    # Sums may be taken in any order, eight at a time.
    return compiled(_fit, _SIGNATURE, fastmath={"reassoc", "contract", "nsz"})


@cache
def _means_kernel() -> Callable[..., None]:
    column = types.Array(types.float64, 1, "C")
    signature = types.void(column, column, types.Array(types.intp, 1, "C"), column)
    return compiled(_means, signature, fastmath={"reassoc", "contract", "nsz"})
