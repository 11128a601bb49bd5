"""Passes over points as they come, compiled by Numba: which are used, checksums, changes.

Sums go from the first point to the last, as in ``passes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable
from numpy.typing import NDArray

from broker.compiled import compiled


def exposures(
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    band: NDArray[np.uint8],
    kind: NDArray[np.uint8],
    start: NDArray[np.intp],
    bands: int,
    measured: int,
    latest: float,
    same: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The points of light curves that can be used, as numbers (m,) by object, band and time; how many of each (g,).

    ``time`` days to ``kind`` (n,), of light curves from ``start`` (g + 1,) on. Used are points of the first ``bands``
    bands and the first ``measured`` kinds, with finite values, a positive error, and a time before ``latest``. Where
    neighbours in a band are of different kinds and less than ``same`` days apart, that of the later kind is left out.
    """
    order, count = np.empty(len(time), np.intp), np.empty(len(start) - 1, np.intp)
    used = _kernels()[0](time, flux, error, band, kind, start, bands, measured, latest, same, order, count)
    return order[:used], count


def parts(
    mjd: NDArray[np.float64],
    stamp: NDArray[np.uint64],
    index: NDArray[np.intp],
    start: NDArray[np.intp],
    first: NDArray[np.float64],
    last: NDArray[np.float64],
    number: int,
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Sums of stamps (g, number), modulo 2^64, of the points in equal parts of the time from ``first`` to ``last``.

    ``index`` (m,) are numbers of points among ``mjd`` and ``stamp`` (n,), those of each object from ``start`` (g + 1,)
    on; ``first`` < ``last`` (g,) MJD. Also returns how many points are outside of that time, and the first and last
    time of all, inf and -inf of none, (g,).
    """
    groups = len(start) - 1
    sums, outside = np.zeros((groups, number), np.uint64), np.zeros(groups, np.intp)
    oldest, newest = np.full(groups, np.inf), np.full(groups, -np.inf)
    _kernels()[1](mjd, stamp, index, start, first, last, sums, outside, oldest, newest)
    return sums, outside, oldest, newest


def changes(
    value: NDArray[np.float64], start: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Of the values (n,) of each group, from ``start`` (g + 1,) on: variance, the sum of squared differences between
    neighbours, the last value, and how many are negative, (g,); 0 of none."""
    groups = len(start) - 1
    variance, successive, latest = np.zeros(groups), np.zeros(groups), np.zeros(groups)
    negative = np.zeros(groups, np.intp)
    _kernels()[2](value, start, variance, successive, latest, negative)
    return variance, successive, latest, negative


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernels()


# What follows is compiled by Numba, which cannot compile a choice between mutants.


def _exposures(
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    band: NDArray[np.uint8],
    kind: NDArray[np.uint8],
    start: NDArray[np.intp],
    bands: int,
    measured: int,
    latest: float,
    same: float,
    order: NDArray[np.intp],
    count: NDArray[np.intp],
) -> int:  # pragma: no mutate block
    """Fill ``count`` (g,) and the first of ``order`` (n,); returns how many of these."""
    begins = np.empty(bands * measured + 1, np.intp)
    kept = 0
    for group in range(len(count)):
        begins[:] = 0
        for i in range(start[group], start[group + 1]):
            if _is_used(time[i], flux[i], error[i], band[i], kind[i], bands, measured, latest):
                begins[np.int64(band[i]) * measured + kind[i] + 1] += 1
        for cell in range(bands * measured):
            begins[cell + 1] += begins[cell]
        own = order[kept : kept + begins[bands * measured]]
        for i in range(start[group], start[group + 1]):
            if _is_used(time[i], flux[i], error[i], band[i], kind[i], bands, measured, latest):
                cell = np.int64(band[i]) * measured + kind[i]
                own[begins[cell]] = i
                begins[cell] += 1
        # Each cell begins now where the next one did.
        low = used = 0
        for number in range(bands):
            high = begins[(number + 1) * measured - 1]
            some = own[low:high]
            for i in range(1, len(some)):
                if time[some[i]] < time[some[i - 1]]:
                    some[:] = some[np.argsort(time[some], kind="mergesort")]
                    break
            before = -1
            for i in range(low, high):
                point = own[i]
                repeated = before >= 0 and time[point] - time[before] < same and kind[point] != kind[before]
                # Of the two kinds the first stays, also where its time is a rounding later.
                if repeated and kind[point] < kind[before] and own[used - 1] == before:
                    own[used - 1] = point
                elif not repeated or kind[point] < kind[before]:
                    own[used] = point
                    used += 1
                before = point
            low = high
        count[group] = used
        kept += used
    return kept


@register_jitable
def _is_used(
    time: Any, flux: Any, error: Any, band: Any, kind: Any, bands: int, measured: int, latest: float
) -> bool:  # pragma: no mutate block
    usable = kind < measured and band < bands and np.isfinite(time) and time < latest
    return bool(usable and np.isfinite(flux) and error > 0.0 and np.isfinite(error))


def _parts(
    mjd: NDArray[np.float64],
    stamp: NDArray[np.uint64],
    index: NDArray[np.intp],
    start: NDArray[np.intp],
    first: NDArray[np.float64],
    last: NDArray[np.float64],
    sums: NDArray[np.uint64],
    outside: NDArray[np.intp],
    oldest: NDArray[np.float64],
    newest: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill the last four."""
    number = sums.shape[1]
    for group in range(len(first)):
        for i in range(start[group], start[group + 1]):
            time = mjd[index[i]]
            oldest[group], newest[group] = min(oldest[group], time), max(newest[group], time)
            if time < first[group] or time > last[group]:
                outside[group] += 1
            else:
                part = number * (time - first[group]) / (last[group] - first[group])
                # NaN and infinity, as where ``last - first`` overflows, are no index: the last part then.
                sums[group, int(part) if 0.0 <= part < number else number - 1] += stamp[index[i]]


def _changes(
    value: NDArray[np.float64],
    start: NDArray[np.intp],
    variance: NDArray[np.float64],
    successive: NDArray[np.float64],
    latest: NDArray[np.float64],
    negative: NDArray[np.intp],
) -> None:  # pragma: no mutate block
    """Fill the last four, which are 0."""
    for group in range(len(variance)):
        first, last = start[group], start[group + 1]
        total = 0.0
        for i in range(first, last):
            total += value[i]
        mean = total / max(last - first, 1)
        squares = steps = 0.0
        for i in range(first, last):
            squares += (value[i] - mean) ** 2
            negative[group] += value[i] < 0.0
            if i > first:
                steps += (value[i] - value[i - 1]) ** 2
            latest[group] = value[i]
        variance[group], successive[group] = squares / max(last - first, 1), steps


@cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    """Those of ``exposures``, ``parts`` and ``changes``."""
    column = types.Array(types.float64, 1, "C")
    starts, codes = types.Array(types.intp, 1, "C"), types.Array(types.uint8, 1, "C")
    stamps, sums = types.Array(types.uint64, 1, "C"), types.Array(types.uint64, 2, "C")
    whole, real = types.intp, types.float64
    return (
        compiled(
            _exposures,
            whole(column, column, column, codes, codes, starts, whole, whole, real, real, starts, starts),
        ),
        compiled(_parts, types.void(column, stamps, starts, starts, column, column, sums, starts, column, column)),
        compiled(_changes, types.void(column, starts, column, column, column, starts)),
    )
