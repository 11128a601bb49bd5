"""The passes of ``event_features`` over the points of a batch, compiled by Numba: each object's are read once.

As array operations they were some fifty over all of the batch's points. Sums go from an object's first point to its
last and nothing is reassociated, so that the results are those of array operations to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numba import types
from numba.extending import register_jitable
from numpy.typing import NDArray

from broker.compiled import compiled

_SIGNIFICANT: Final = 3.0
_FLOOR: Final = 5.0
"""A band's unit is at least so many median errors, lest noise alone be taken for a peak."""
_SYSTEMATIC: Final = 0.05
_NEAR: Final = 2.0
"""Days between neighbours."""


class Passes(NamedTuple):
    """What the passes find of each object, each (batch,); numbers of points are floats."""

    with_source: NDArray[np.float64]
    """Points with a reference source."""
    beyond: NDArray[np.float64]
    """Points beyond _SIGNIFICANT errors."""
    positive: NDArray[np.float64]
    """Of these, the ones brighter than the reference."""
    to_noise: NDArray[np.float64]
    """The largest flux in errors; -inf of no point, as ``to_reference``, ``last`` and ``peak``."""
    to_reference: NDArray[np.float64]
    """The largest flux in reference fluxes, 0 for points without one."""
    first: NDArray[np.float64]
    """Days, as ``last``; inf of no point, as ``when``."""
    last: NDArray[np.float64]
    nights: NDArray[np.float64]
    """How many."""
    peak: NDArray[np.float64]
    """In units of each band's largest, where that is noise of _FLOOR errors; as the levels."""
    when: NDArray[np.float64]
    """Days of the peak, the first of equals."""
    first_level: NDArray[np.float64]
    """The mean of the points within half a day of the first."""
    last_level: NDArray[np.float64]
    r_squared: NDArray[np.float64]
    """Of the parabola, as the four that follow (see ``EVENT_FEATURES``)."""
    slope: NDArray[np.float64]
    curvature: NDArray[np.float64]
    residual: NDArray[np.float64]
    """Weighted mean square."""
    variance: NDArray[np.float64]
    pairs: NDArray[np.float64]
    """Points of a band with the one before within _NEAR days."""
    squared: NDArray[np.float64]
    """The sum of their squared differences, less those that errors make."""


def event_passes(
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    reference: NDArray[np.float64],
    band: NDArray[np.intp],
    start: NDArray[np.intp],
) -> Passes:
    """Points (n,) by object, band and time, all finite but for ``reference``; objects begin at ``start`` (g + 1,)."""
    found = np.empty((len(Passes._fields), len(start) - 1))
    _kernel()(time, flux, error, reference, band, start, found)
    return Passes(*found)


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernel()


# What follows is compiled by Numba, which cannot compile a choice between mutants.


@register_jitable
def _nights(
    time: NDArray[np.float64], band: NDArray[np.intp], seen: NDArray[np.float64], other: NDArray[np.float64]
) -> int:  # pragma: no mutate block
    """How many nights there are; ``seen`` and ``other`` (n,) are overwritten."""
    points = len(time)
    number = begin = 0
    while begin < points:
        # The nights of the bands before, in order, and those of this band, put together.
        at = i = 0
        end = begin
        while end < points and band[end] == band[begin]:
            end += 1
        i = begin
        size = 0
        while at < number or i < end:
            if i >= end or (at < number and seen[at] <= np.floor(time[i] - 0.5)):
                night = seen[at]
                at += 1
            else:
                night = np.floor(time[i] - 0.5)
                i += 1
            if size == 0 or other[size - 1] != night:
                other[size] = night
                size += 1
        seen, other, number = other, seen, size
        begin = end
    return number


@register_jitable
def _level(time: NDArray[np.float64], value: NDArray[np.float64], edge: float) -> float:  # pragma: no mutate block
    """The mean of the values within half a day of a time; 0 where there are none."""
    total, count = 0.0, 0
    for i in range(len(time)):
        if abs(time[i] - edge) < 0.5:
            total += value[i]
            count += 1
    return total / max(count, 1)


@register_jitable
def _centred(
    column: NDArray[np.float64], weight: NDArray[np.float64], band: NDArray[np.intp]
) -> None:  # pragma: no mutate block
    """Take the weighted mean of each band off its values."""
    points = len(column)
    begin = 0
    while begin < points:
        end, weights, total = begin, 0.0, 0.0
        while end < points and band[end] == band[begin]:
            weights += weight[end]
            total += weight[end] * column[end]
            end += 1
        middle = total / max(weights, 1e-30)
        for i in range(begin, end):
            column[i] -= middle
        begin = end


@register_jitable
def _parabola(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    y: NDArray[np.float64],
    weight: NDArray[np.float64],
    found: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``found``: R^2, slope, curvature, weighted mean squared residual and variance; see ``event_features``."""
    norm = aa = bb = ab = ay = by = yy = 0.0
    for i in range(len(a)):
        norm += weight[i]
        aa += weight[i] * a[i] * a[i]
        bb += weight[i] * b[i] * b[i]
        ab += weight[i] * a[i] * b[i]
        ay += weight[i] * a[i] * y[i]
        by += weight[i] * b[i] * y[i]
        yy += weight[i] * y[i] * y[i]
    norm = max(norm, 1e-30)
    # A little of a ridge: of points in two nights only, parabolas have no curvature to speak of.
    aa, bb, ab, ay, by, yy = aa / norm + 1e-3, bb / norm + 1e-3, ab / norm, ay / norm, by / norm, yy / norm
    determinant = max(aa * bb - ab * ab, 1e-12)
    slope = (ay * bb - by * ab) / determinant
    curvature = (by * aa - ay * ab) / determinant
    residual = 0.0
    for i in range(len(a)):
        left = y[i] - slope * a[i] - curvature * b[i]
        residual += weight[i] * left * left
    residual /= norm
    found[0] = min(max(1.0 - residual / max(yy, 1e-12), 0.0), 1.0) if yy > 1e-8 else 0.0
    found[1], found[2], found[3], found[4] = slope, curvature, residual, yy


def _passes(
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    reference: NDArray[np.float64],
    band: NDArray[np.intp],
    start: NDArray[np.intp],
    found: NDArray[np.float64],
) -> None:  # pragma: no mutate block
    """Fill ``found`` (fields of Passes, g)."""
    most = 0
    for group in range(len(start) - 1):
        most = max(most, start[group + 1] - start[group])
    work = np.empty((6, most))
    parabola = np.empty(5)
    for group in range(len(start) - 1):
        begin, points = start[group], start[group + 1] - start[group]
        when, flux_, error_ = time[begin : begin + points], flux[begin : begin + points], error[begin : begin + points]
        own_band = band[begin : begin + points]
        value, noise, weight = work[0, :points], work[1, :points], work[2, :points]
        a, b, y = work[3, :points], work[4, :points], work[5, :points]
        with_source = beyond = positive = 0
        to_noise, to_reference, first, last = -np.inf, -np.inf, np.inf, -np.inf
        for i in range(points):
            size = abs(flux_[i])
            source = reference[begin + i]
            share = 0.0
            if source > 0.0 and source < np.inf:
                with_source += 1
                share = size / source
            if size > _SIGNIFICANT * error_[i]:
                beyond += 1
                positive += flux_[i] > 0.0
            to_noise, to_reference = max(to_noise, size / error_[i]), max(to_reference, share)
            first, last = min(first, when[i]), max(last, when[i])
        peak = -np.inf
        low = 0
        while low < points:
            high, unit, errors = low, 0.0, 0.0
            while high < points and own_band[high] == own_band[low]:
                unit = max(unit, abs(flux_[high]))
                errors += error_[high]
                high += 1
            unit = max(max(unit, _FLOOR * (errors / (high - low))), 1e-30)
            for i in range(low, high):
                value[i], noise[i] = flux_[i] / unit, error_[i] / unit
                peak = max(peak, value[i])
            low = high
        at_peak = np.inf
        span = max(last - first, 1e-3)
        for i in range(points):
            if value[i] >= peak:
                at_peak = min(at_peak, when[i])
            weight[i] = 1.0 / (noise[i] * noise[i] + _SYSTEMATIC * _SYSTEMATIC)
            a[i] = 2.0 * (when[i] - first) / span - 1.0
            b[i], y[i] = a[i] * a[i], value[i]
        _centred(a, weight, own_band)
        _centred(b, weight, own_band)
        _centred(y, weight, own_band)
        _parabola(a, b, y, weight, parabola)
        pairs, squared = 0, 0.0
        for i in range(1, points):
            days = when[i] - when[i - 1]
            if own_band[i] == own_band[i - 1] and days < _NEAR and days > 0.0:
                pairs += 1
                step = value[i] - value[i - 1]
                squared += step * step - noise[i] * noise[i] - noise[i - 1] * noise[i - 1]
        found[0, group], found[1, group], found[2, group] = with_source, beyond, positive
        found[3, group], found[4, group], found[5, group], found[6, group] = to_noise, to_reference, first, last
        found[8, group], found[9, group] = peak, at_peak
        found[10, group], found[11, group] = _level(when, value, first), _level(when, value, last)
        for i in range(5):
            found[12 + i, group] = parabola[i]
        found[17, group], found[18, group] = pairs, squared
        found[7, group] = _nights(when, own_band, a, b)


@cache
def _kernel() -> Callable[..., Any]:
    column, index = types.Array(types.float64, 1, "C"), types.Array(types.intp, 1, "C")
    return compiled(
        _passes, types.void(column, column, column, column, index, index, types.Array(types.float64, 2, "C"))
    )
