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
    frequency: NDArray[np.float64],
    harmonics: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least-squares fit of a constant and ``harmonics`` sines and cosines at each frequency.

    ``time``, ``value``, ``weight`` (n,), weights summing to 1; ``frequency`` (k,). Returns R^2 (k,) and the
    coefficients (k, 1 + 2 harmonics): constant, cosines, sines. The normal equations come from sums of
    powers of exp(2 pi i f t), as in the multi-harmonic periodogram of Palmer (2009, ApJ 695, 496).
    """
    phase = turn_fraction(np.outer(frequency, time)).astype(np.float32) * np.float32(2 * np.pi)
    weighted = weight * value
    explained = np.empty(len(frequency))
    coefficients = np.empty((len(frequency), 1 + 2 * harmonics))
    _kernel()(
        np.cos(phase), np.sin(phase), weight.astype(np.float32), weighted.astype(np.float32), explained, coefficients
    )
    mean = float(np.sum(weighted))
    variance = float(np.sum(weighted * value)) - mean**2
    return np.clip((explained - mean**2) / max(variance, 1e-30), 0.0, 1.0), coefficients


def turn_fraction(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns less whole ones, -1/2 to 1/2; np.mod takes 20 times as long."""
    return turns - np.rint(turns)


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernel()


def _fit(
    cosine: NDArray[np.float32],
    sine: NDArray[np.float32],
    weight: NDArray[np.float32],
    weighted: NDArray[np.float32],
    explained: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> None:
    """Fill ``explained`` (k,), what each fit takes off the weighted sum of squares, and ``coefficients`` (k, size).

    ``cosine``, ``sine`` (k, n) of the first harmonic's phase; ``weighted`` (n,) is weight times value.
    """
    size = coefficients.shape[1]
    harmonics = size // 2
    points = len(weight)
    # Of each order m, the sums of w cos(m p), w sin(m p), w y cos(m p), w y sin(m p) over the points.
    sums = np.empty((2 * harmonics + 1, 4))
    real, imaginary = np.empty(points, np.float32), np.empty(points, np.float32)
    lower = np.empty((size, size))
    for row in range(len(explained)):
        real[:] = np.float32(1.0)
        imaginary[:] = np.float32(0.0)
        sums[0, 0], sums[0, 1] = np.sum(weight), 0.0
        sums[0, 2], sums[0, 3] = np.sum(weighted), 0.0
        for order in range(1, 2 * harmonics + 1):
            a = b = c = d = np.float32(0.0)
            for i in range(points):
                turned = real[i] * cosine[row, i] - imaginary[i] * sine[row, i]
                imaginary[i] = real[i] * sine[row, i] + imaginary[i] * cosine[row, i]
                real[i] = turned
                a += weight[i] * real[i]
                b += weight[i] * imaginary[i]
                c += weighted[i] * real[i]
                d += weighted[i] * imaginary[i]
            sums[order, 0], sums[order, 1], sums[order, 2], sums[order, 3] = a, b, c, d
        # The lower half of the normal equations' matrix, by products of sines and cosines as sums.
        right = coefficients[row]
        lower[0, 0] = 1.0
        right[0] = sums[0, 2]
        for j in range(1, harmonics + 1):
            right[j], right[harmonics + j] = sums[j, 2], sums[j, 3]
            lower[j, 0], lower[harmonics + j, 0] = sums[j, 0], sums[j, 1]
            for k in range(1, harmonics + 1):
                sign = 1.0 if j > k else -1.0
                apart = abs(j - k)
                lower[j, k] = 0.5 * (sums[apart, 0] + sums[j + k, 0])
                lower[harmonics + j, harmonics + k] = 0.5 * (sums[apart, 0] - sums[j + k, 0])
                # sin(j) cos(k) = (sin(j+k) + sin(j-k)) / 2
                lower[harmonics + j, k] = 0.5 * (sums[j + k, 1] + sign * sums[apart, 1])
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
    _TABLE32, _TABLE32, _VECTOR32, _VECTOR32, types.Array(types.float64, 1, "C"), types.Array(types.float64, 2, "C")
)


@cache
def _kernel() -> Callable[..., None]:
    # Sums may be taken in any order, eight at a time.
    return compiled(_fit, _SIGNATURE, fastmath={"reassoc", "contract", "nsz"})
