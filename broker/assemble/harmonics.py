"""Fits of harmonics at many frequencies, compiled by Numba: most of the time of a period search goes here.

The module has over 400 lines, as the two fits share all that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import register_jitable
from numpy.typing import NDArray

from broker.compiled import compiled

MOST_HARMONICS: Final = 4
STEPS: Final = 8
"""Fine grid points in a coarse grid step."""
_LANES: Final = 16
"""Numbers of float32 in the widest registers (512 bits): each band has points of weight 0 up to a multiple of it."""
_BLOCK: Final = 16 * _LANES
"""Points whose phases are computed before their sums."""
_RIDGE: Final = 1e-4
"""Far below the noise; keeps gaps in phase coverage from blowing the fit up."""
_REASSOCIATED: Final = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order, as many at a time as the processor can."""

_ONE, _TWO = np.float32(1.0), np.float32(2.0)
# Of sin(pi x) / x and cos(pi x) by powers of x^2, |x| <= 1/2: interpolated at the nodes of Chebyshev's polynomials.
_S0, _S1, _S2, _S3, _S4 = (
    np.float32(c) for c in (3.1415926401307073, -5.167710083507938, 2.5500775232151622, -0.5982912856232002,
                            0.07765766031027685)
)  # fmt: skip
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c) for c in (0.9999999997799046, -4.934802137078845, 4.0587091595567815, -1.3352120030552643,
                            0.23493731383698158, -0.024396324381933496)
)  # fmt: skip


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
    where the points of each band begin; ``frequency`` (k,); ``harmonics`` 1 to MOST_HARMONICS. Returns R^2 (k,), the
    share of the variance about each band's own mean, and the coefficients (k, 2 harmonics): cosines, sines. One shape
    for all bands, an offset for each, is the multi-band periodogram of VanderPlas & Ivezic (2015, ApJ 812, 18) with
    N_base = harmonics and N_band = 0; the offsets are eliminated beforehand. The normal equations come from sums of
    powers of exp(2 pi i f t), as in the multi-harmonic periodogram of Palmer (2009, ApJ 695, 496).
    """
    r_squared = np.empty(len(frequency))
    coefficients = np.empty((len(frequency), 2 * harmonics))
    _kernels()[0](time, value, weight, band_start, frequency, r_squared, coefficients)
    return r_squared, coefficients


def best_candidates(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    nearest: NDArray[np.float64],
    step: float,
    aside: int,
    harmonics: int,
    most: int,
) -> NDArray[np.float64]:
    """Frequencies around candidates, by how well they fit: (at most ``most`` and at least 2, 2) with their R^2.

    ``time`` to ``band_start`` and ``harmonics`` are as in ``harmonic_fit``; ``nearest`` (c,) candidates as whole
    numbers of fine grid steps, the STEPS-th part of ``step``, cycles/day. The grid is looked at ``aside`` fine
    steps to either side of each, from a quarter of a coarse step on. The first row is the best of it, and of a grid
    STEPS times as fine around that; the second the best of another candidate that is no simple ratio of it, NaN and 0
    where there is none; then the best of the other candidates.
    """
    found = np.empty((max(most, 2), 2))
    number = _kernels()[1](time, value, weight, band_start, nearest, step, aside, harmonics, found)
    return found[:number]


def band_means(
    value: NDArray[np.float64], weight: NDArray[np.float64], band_start: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(n,) the weighted mean of each point's band; arguments as in ``harmonic_fit``."""
    mean = np.empty(len(value))
    _kernels()[2](value, weight, band_start, mean)
    return mean


def turn_fraction(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns less whole ones, -1/2 to 1/2; np.mod takes 20 times as long."""
    return turns - np.rint(turns)


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernels()


# What follows is compiled by Numba, which cannot compile a choice between mutants. All is inlined: else the process
# that compiles would call functions that were optimised by themselves, and one that reads the cache those optimised
# with their caller, whose sums are in another order. It is a fifth faster, too.


@register_jitable(fastmath=_REASSOCIATED, forceinline=True)
def _means(
    value: NDArray[np.float64], weight: NDArray[np.float64], band_start: NDArray[np.intp], mean: NDArray[np.float64]
) -> None:  # pragma: no mutate block
    """Fill ``mean`` (n,) of ``band_means``: in NumPy, calls for each band cost more than a band's points do."""
    for band in range(len(band_start) - 1):
        first, last = band_start[band], band_start[band + 1]
        total = weights = 0.0
        for i in range(first, last):
            total += weight[i] * value[i]
            weights += weight[i]
        mean[first:last] = total / max(weights, 1e-30)


@register_jitable(fastmath=_REASSOCIATED, forceinline=True)
def _prepared(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
) -> Any:  # pragma: no mutate block
    """Times, weights and weighted values about their band's mean (m,), the latter two float32, with points of weight 0
    after those of each band; where each band begins among these (b + 1,), its weight (b,), and the variance."""
    bands = len(band_start) - 1
    start, band_weight = np.empty(bands + 1, np.intp), np.empty(bands)
    start[0] = 0
    for band in range(bands):
        points = band_start[band + 1] - band_start[band]
        start[band + 1] = start[band] + (points + _LANES - 1) // _LANES * _LANES
    mean, size = np.empty(len(value)), start[bands]
    time64, weight32, weighted32 = np.zeros(size), np.zeros(size, np.float32), np.zeros(size, np.float32)
    _means(value, weight, band_start, mean)
    variance = 0.0
    for band in range(bands):
        first, last, to = band_start[band], band_start[band + 1], start[band]
        total = 0.0
        # In a loop of its own: in one that writes, the order of the sums would depend on where the arrays are.
        for i in range(first, last):
            variance += weight[i] * (value[i] - mean[i]) ** 2
            total += weight[i]
        band_weight[band] = max(total, 1e-12)
        for i in range(last - first):
            own = weight[first + i]
            time64[to + i] = time[first + i]
            weight32[to + i] = np.float32(own)
            weighted32[to + i] = np.float32(own * (value[first + i] - mean[first + i]))
    return time64, weight32, weighted32, start, band_weight, max(variance, 1e-30)


@register_jitable(fastmath=_REASSOCIATED, forceinline=True)
def _band_sums(
    time: NDArray[np.float64],
    weight: NDArray[np.float32],
    weighted: NDArray[np.float32],
    frequency: float,
    turn: NDArray[np.float32],
    sums: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``sums`` (4, 9): of each order m from 1 on, those over the points of w cos(m p), w sin(m p) and, up to
    MOST_HARMONICS, w y cos(m p), w y sin(m p), p the phase; all at once, so that nothing but the points is read.

    Phases come first, a block of them at a time, into ``turn`` (_BLOCK,), which is overwritten: a loop that has
    float64 in it handles half as many points at a time as one of float32 alone.
    """
    zero = np.float32(0.0)
    a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = b8 = zero
    c1 = c2 = c3 = c4 = d1 = d2 = d3 = d4 = zero
    for first in range(0, len(time), _BLOCK):
        # Slices, whose numbers Numba knows not to count from the end.
        when, own = time[first : first + _BLOCK], weight[first : first + _BLOCK]
        own_weighted, fraction = weighted[first : first + _BLOCK], turn[: len(when)]
        for i in range(len(when)):
            turns = frequency * when[i]
            fraction[i] = np.float32(turns - np.floor(turns + 0.5))
        for i in range(len(when)):
            x = fraction[i]
            y = x * x
            sine = x * (_S0 + y * (_S1 + y * (_S2 + y * (_S3 + y * _S4))))
            cosine = _C0 + y * (_C1 + y * (_C2 + y * (_C3 + y * (_C4 + y * _C5))))
            r1 = (cosine - sine) * (cosine + sine)
            i1 = _TWO * sine * cosine
            r2, i2 = r1 * r1 - i1 * i1, _TWO * r1 * i1
            r3, i3 = r2 * r1 - i2 * i1, r2 * i1 + i2 * r1
            r4, i4 = r2 * r2 - i2 * i2, _TWO * r2 * i2
            r5, i5 = r4 * r1 - i4 * i1, r4 * i1 + i4 * r1
            r6, i6 = r3 * r3 - i3 * i3, _TWO * r3 * i3
            r7, i7 = r4 * r3 - i4 * i3, r4 * i3 + i4 * r3
            r8, i8 = r4 * r4 - i4 * i4, _TWO * r4 * i4
            w, v = own[i], own_weighted[i]
            a1 += w * r1
            a2 += w * r2
            a3 += w * r3
            a4 += w * r4
            a5 += w * r5
            a6 += w * r6
            a7 += w * r7
            a8 += w * r8
            b1 += w * i1
            b2 += w * i2
            b3 += w * i3
            b4 += w * i4
            b5 += w * i5
            b6 += w * i6
            b7 += w * i7
            b8 += w * i8
            c1 += v * r1
            c2 += v * r2
            c3 += v * r3
            c4 += v * r4
            d1 += v * i1
            d2 += v * i2
            d3 += v * i3
            d4 += v * i4
    sums[0, 1], sums[0, 2], sums[0, 3], sums[0, 4] = a1, a2, a3, a4
    sums[0, 5], sums[0, 6], sums[0, 7], sums[0, 8] = a5, a6, a7, a8
    sums[1, 1], sums[1, 2], sums[1, 3], sums[1, 4] = b1, b2, b3, b4
    sums[1, 5], sums[1, 6], sums[1, 7], sums[1, 8] = b5, b6, b7, b8
    sums[2, 1], sums[2, 2], sums[2, 3], sums[2, 4] = c1, c2, c3, c4
    sums[3, 1], sums[3, 2], sums[3, 3], sums[3, 4] = d1, d2, d3, d4


@register_jitable(fastmath=_REASSOCIATED, forceinline=True)
def _explained(
    time: NDArray[np.float64],
    weight: NDArray[np.float32],
    weighted: NDArray[np.float32],
    band_start: NDArray[np.intp],
    band_weight: NDArray[np.float64],
    frequency: float,
    turn: NDArray[np.float32],
    of_band: NDArray[np.float64],
    sums: NDArray[np.float64],
    lower: NDArray[np.float64],
    right: NDArray[np.float64],
) -> float:  # pragma: no mutate block
    """What a fit takes off the weighted sum of squares; leaves the decomposed matrix in ``lower`` (2 harmonics, same)
    and what is to be substituted back in ``right`` (2 harmonics,). ``of_band`` (b, 4, 9) and ``sums`` (4, 9) are
    filled."""
    size = len(right)
    harmonics = size // 2
    bands = len(band_weight)
    sums[:] = 0.0
    for band in range(bands):
        first, last = band_start[band], band_start[band + 1]
        _band_sums(time[first:last], weight[first:last], weighted[first:last], frequency, turn, of_band[band])
        sums[0, 0] += band_weight[band]
        for order in range(1, 2 * harmonics + 1):
            sums[0, order] += of_band[band, 0, order]
            sums[1, order] += of_band[band, 1, order]
        for order in range(1, harmonics + 1):
            sums[2, order] += of_band[band, 2, order]
            sums[3, order] += of_band[band, 3, order]
    # The lower half of the normal equations' matrix, by products of sines and cosines as sums.
    for j in range(1, harmonics + 1):
        right[j - 1], right[harmonics + j - 1] = sums[2, j], sums[3, j]
        for k in range(1, harmonics + 1):
            sign = 1.0 if j > k else -1.0
            apart = abs(j - k)
            lower[j - 1, k - 1] = 0.5 * (sums[0, apart] + sums[0, j + k])
            lower[harmonics + j - 1, harmonics + k - 1] = 0.5 * (sums[0, apart] - sums[0, j + k])
            # sin(j) cos(k) = (sin(j+k) + sin(j-k)) / 2
            lower[harmonics + j - 1, k - 1] = 0.5 * (sums[1, j + k] + sign * sums[1, apart])
    # Eliminating the offsets leaves their Schur complement.
    for band in range(bands):
        # Cosines and sines in one row, in place of sums that are no longer needed.
        own = of_band[band, 2]
        for j in range(harmonics):
            own[j], own[harmonics + j] = of_band[band, 0, j + 1], of_band[band, 1, j + 1]
        for j in range(size):
            share = own[j] / band_weight[band]
            for k in range(j + 1):
                lower[j, k] -= share * own[k]
    # Cholesky's decomposition in place, and the first substitution.
    explained = 0.0
    for j in range(size):
        diagonal = lower[j, j] + _RIDGE
        value = right[j]
        for k in range(j):
            total = lower[j, k]
            for i in range(k):
                total -= lower[j, i] * lower[k, i]
            total *= lower[k, k]
            lower[j, k] = total
            diagonal -= total**2
            value -= total * right[k]
        # Its inverse: a division takes as long as a dozen products.
        lower[j, j] = 1.0 / np.sqrt(diagonal)
        right[j] = value * lower[j, j]
        explained += right[j] ** 2
    return explained


def _fit(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    frequency: NDArray[np.float64],
    r_squared: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``r_squared`` (k,) and ``coefficients`` (k, 2 harmonics)."""
    size = coefficients.shape[1]
    time, weight32, weighted32, band_start, band_weight, variance = _prepared(time, value, weight, band_start)
    turn = np.empty(_BLOCK, np.float32)
    of_band, sums, lower = np.empty((len(band_weight), 4, 9)), np.empty((4, 9)), np.empty((size, size))
    for row in range(len(frequency)):
        right = coefficients[row]
        explained = _explained(
            time, weight32, weighted32, band_start, band_weight, frequency[row], turn, of_band, sums, lower, right
        )
        r_squared[row] = min(max(explained / variance, 0.0), 1.0)
        for j in range(size - 1, -1, -1):
            for i in range(j + 1, size):
                right[j] -= lower[i, j] * right[i]
            right[j] *= lower[j, j]


def _compare(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    nearest: NDArray[np.float64],
    step: float,
    aside: int,
    harmonics: int,
    found: NDArray[np.float64],
) -> int:  # pragma: no mutate block
    """Fill ``found`` (m, 2) of ``best_candidates``; returns how many rows."""
    size, candidates, width = 2 * harmonics, len(nearest), 2 * aside + 1
    time, weight32, weighted32, band_start, band_weight, variance = _prepared(time, value, weight, band_start)
    turn = np.empty(_BLOCK, np.float32)
    of_band, sums = np.empty((len(band_weight), 4, 9)), np.empty((4, 9))
    lower, right = np.empty((size, size)), np.empty(size)
    fine, lowest = step / STEPS, STEPS // 4
    at, quality = np.empty(candidates), np.empty(candidates)
    best = 0
    for candidate in range(candidates):
        quality[candidate] = -1.0
        for j in range(width):
            place = max(nearest[candidate] + (j - aside), lowest)
            explained = _explained(
                time, weight32, weighted32, band_start, band_weight, fine * place, turn, of_band, sums, lower, right
            )
            r_squared = min(max(explained / variance, 0.0), 1.0)
            if r_squared > quality[candidate]:
                quality[candidate], at[candidate] = r_squared, place
        if quality[candidate] > quality[best]:
            best = candidate
    # Around the best a grid as much finer again.
    finer = fine / STEPS
    found[0, 0], found[0, 1] = fine * at[best], -1.0
    for j in range(-STEPS // 2, STEPS // 2 + 1):
        place, r_squared = max(STEPS * at[best] + j, STEPS * lowest), quality[best]
        if place != STEPS * at[best]:
            explained = _explained(
                time, weight32, weighted32, band_start, band_weight, finer * place, turn, of_band, sums, lower, right
            )
            r_squared = min(max(explained / variance, 0.0), 1.0)
        if r_squared > found[0, 1]:
            found[0, 0], found[0, 1] = finer * place, r_squared
    second = -1
    for candidate in range(candidates):
        ratio = at[candidate] / at[best]
        related = False
        for one in (ratio, 1.0 / ratio):
            whole = np.rint(one)
            related = related or abs(one - whole) <= 0.01 + 1e-5 * whole
        if not related and (second < 0 or quality[candidate] > quality[second]):
            second = candidate
    found[1, 0], found[1, 1] = np.nan, 0.0
    if second >= 0:
        found[1, 0], found[1, 1] = fine * at[second], quality[second]
    number = 2
    order = np.argsort(-quality, kind="mergesort")
    for candidate in order:
        if candidate != best and candidate != second and number < len(found):
            found[number, 0], found[number, 1] = fine * at[candidate], quality[candidate]
            number += 1
    return number


@cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    """Those of ``harmonic_fit``, ``best_candidates`` and ``band_means``."""
    column, table = types.Array(types.float64, 1, "C"), types.Array(types.float64, 2, "C")
    starts = types.Array(types.intp, 1, "C")
    points = column, column, column, starts
    return (
        compiled(_fit, types.void(*points, column, column, table), fastmath=_REASSOCIATED),
        compiled(
            _compare,
            types.intp(*points, column, types.float64, types.intp, types.intp, table),
            fastmath=_REASSOCIATED,
        ),
        compiled(_means, types.void(column, column, starts, column), fastmath=_REASSOCIATED),
    )
