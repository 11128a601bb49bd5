"""Passes over the points of a batch, compiled by Numba: each light curve's points are read once, while in the cache.

As array operations these took ten and more passes over all of the batch's points each. Sums go from a light curve's
first point to its last and nothing is reassociated, so that the results are those of array operations to the last bit.
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

_BUCKET: Final = 32
"""Points of one part of the phases that are sorted by insertion; where there are more, all are by merging."""


def center_and_scale(
    value: NDArray[np.float64], start: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (g,) of the values (n,) of each group, from ``start`` (g + 1,) on; 0 of none."""
    center, deviation = np.empty(len(start) - 1), np.empty(len(start) - 1)
    _kernels()[0](value, start, center, deviation)
    return center, deviation


def moments(
    value: NDArray[np.float64], start: NDArray[np.intp], center: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Third and fourth moment of the standardised values of each group, and von Neumann's ratio in their order, (g,).

    ``value`` (n,) of the groups that begin at ``start`` (g + 1,); ``center`` and ``scale`` (g,). The ratio is the mean
    squared successive difference, 0 of a single value.
    """
    third, fourth, ratio = (np.empty(len(start) - 1) for _ in range(3))
    _kernels()[1](value, start, center, scale, third, fourth, ratio)
    return third, fourth, ratio


def fold(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    start: NDArray[np.intp],
    frequency: NDArray[np.float64],
    bins: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Each light curve folded at twice its period, with its faintest part at phase 0.

    ``time`` days and ``value`` (n,), by object and time; ``start`` (g + 1,); ``frequency`` (g,) cycles/day, NaN where
    there is no period; ``bins``, a multiple of 4. Returns the phases (n,), 0 without a period; (g, 4, bins) mean,
    standard deviation and count of each bin, and the mean of each of ``bins / 2`` at the period itself, twice over,
    empty bins interpolated round the circle, all 0 without a period; and von Neumann's ratio in order of phase (g,).
    """
    groups = len(start) - 1
    phase, ratio, folded = np.zeros(len(time)), np.zeros(groups), np.zeros((groups, 4, bins))
    _kernels()[2](time, value, start, frequency, phase, folded, ratio)
    return phase, folded, ratio


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernels()


# What follows is compiled by Numba, which cannot compile a choice between mutants.


def _center_and_scale(
    value: NDArray[np.float64], start: NDArray[np.intp], center: NDArray[np.float64], deviation: NDArray[np.float64]
) -> None:  # pragma: no mutate block
    """Fill ``center`` and ``deviation`` (g,)."""
    for group in range(len(center)):
        first, last = start[group], start[group + 1]
        count = max(last - first, 1)
        total = 0.0
        for i in range(first, last):
            total += value[i]
        mean = total / count
        total = 0.0
        for i in range(first, last):
            total += (value[i] - mean) ** 2
        center[group], deviation[group] = mean, np.sqrt(total / count)


def _moments(
    value: NDArray[np.float64],
    start: NDArray[np.intp],
    center: NDArray[np.float64],
    scale: NDArray[np.float64],
    third: NDArray[np.float64],
    fourth: NDArray[np.float64],
    ratio: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``third``, ``fourth`` and ``ratio`` (g,)."""
    for group in range(len(center)):
        first, last = start[group], start[group + 1]
        count = max(last - first, 1)
        cubes = fourths = steps = before = 0.0
        for i in range(first, last):
            standard = (value[i] - center[group]) / scale[group]
            squared = standard * standard
            cubes += squared * standard
            fourths += squared * squared
            if i > first:
                steps += (standard - before) ** 2
            before = standard
        third[group], fourth[group], ratio[group] = cubes / count, fourths / count, steps / max(last - first - 1, 1)


@register_jitable
def _turn(x: Any) -> Any:  # pragma: no mutate block
    """``x`` modulo 1, as numpy has it."""
    rest = x - np.trunc(x)
    return rest + 1.0 if rest < 0.0 else rest


@register_jitable
def _bin(
    phase: NDArray[np.float64],
    value: NDArray[np.float64],
    twice: bool,
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    count: NDArray[np.float64],
    work: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``mean``, ``scatter`` and ``count`` (bins,) by phases (n,), or by twice these; ``work`` is overwritten."""
    bins = len(mean)
    work[:bins], scatter[:], count[:] = 0.0, 0.0, 0.0
    for i in range(len(phase)):
        at = _turn(2.0 * phase[i]) if twice else phase[i]
        cell = min(int(at * bins), bins - 1)
        work[cell] += value[i]
        scatter[cell] += value[i] * value[i]
        count[cell] += 1.0
    before = -1
    for i in range(bins):
        divisor = max(count[i], 1.0)
        work[i] /= divisor
        scatter[i] = np.sqrt(max(scatter[i] / divisor - work[i] ** 2, 0.0))
        if count[i] > 0.0:
            before = i - bins  # the last of the turn before
    after = -1
    for i in range(bins):
        if count[i] > 0.0:
            mean[i] = work[i]
            before = i
            continue
        if after < i:
            after = i
            while after < i + bins and count[after % bins] == 0.0:
                after += 1
        share = (i - before) / max(after - before, 1)
        left, right = work[before % bins], work[after % bins]
        mean[i] = left + share * (right - left)


@register_jitable
def _by_phase(
    phase: NDArray[np.float64], order: NDArray[np.intp], bucket: NDArray[np.intp]
) -> Any:  # pragma: no mutate block
    """The order (n,) that sorts the phases, equal ones as they were; ``order`` and ``bucket`` are overwritten."""
    points = len(phase)
    bucket[: points + 1] = 0
    for i in range(points):
        bucket[min(int(phase[i] * points), points - 1) + 1] += 1
    for i in range(points):
        if bucket[i + 1] > _BUCKET:
            return np.argsort(phase, kind="mergesort")
        bucket[i + 1] += bucket[i]
    for i in range(points):
        cell = min(int(phase[i] * points), points - 1)
        order[bucket[cell]] = i
        bucket[cell] += 1
    for i in range(1, points):
        own = order[i]
        j = i - 1
        while j >= 0 and phase[order[j]] > phase[own]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = own
    return order[:points]


def _fold(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    start: NDArray[np.intp],
    frequency: NDArray[np.float64],
    phase: NDArray[np.float64],
    folded: NDArray[np.float64],
    ratio: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``phase`` (n,), ``folded`` (g, 4, bins) and ``ratio`` (g,), which are 0."""
    bins = folded.shape[2]
    coarse, half = bins // 4, bins // 2
    most = 0
    for group in range(len(frequency)):
        most = max(most, start[group + 1] - start[group])
    order, bucket = np.empty(most, np.intp), np.empty(most + 1, np.intp)
    mean, scatter, count, work = np.empty(bins), np.empty(bins), np.empty(bins), np.empty(bins)
    for group in range(len(frequency)):
        first, last = start[group], start[group + 1]
        if not np.isfinite(frequency[group]) or first == last:
            continue
        own, values = phase[first:last], value[first:last]
        for i in range(last - first):
            own[i] = _turn(0.5 * ((time[first + i] - time[first]) * frequency[group]))
        _bin(own, values, False, mean[:coarse], scatter[:coarse], count[:coarse], work)
        faintest, least = 0, np.inf
        for i in range(coarse):
            smooth = (mean[i - 1] if i else mean[coarse - 1]) + mean[i]
            smooth = (smooth + (mean[i + 1] if i + 1 < coarse else mean[0])) / 3.0
            if smooth < least:
                faintest, least = i, smooth
        zero = (faintest + 0.5) / coarse
        for i in range(last - first):
            own[i] = _turn(own[i] - zero + 0.5 / bins)
        _bin(own, values, False, folded[group, 0], folded[group, 1], folded[group, 2], work)
        _bin(own, values, True, mean[:half], scatter[:half], count[:half], work)
        folded[group, 3, :half], folded[group, 3, half:] = mean[:half], mean[:half]
        sorted_ = _by_phase(own, order, bucket)
        steps = 0.0
        for i in range(1, last - first):
            steps += (values[sorted_[i]] - values[sorted_[i - 1]]) ** 2
        ratio[group] = steps / max(last - first - 1, 1)


@cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    """Those of ``center_and_scale``, ``moments`` and ``fold``."""
    column, table = types.Array(types.float64, 1, "C"), types.Array(types.float64, 3, "C")
    starts = types.Array(types.intp, 1, "C")
    return (
        compiled(_center_and_scale, types.void(column, starts, column, column)),
        compiled(_moments, types.void(column, starts, column, column, column, column, column)),
        compiled(_fold, types.void(column, column, starts, column, column, table, column)),
    )
