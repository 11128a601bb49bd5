"""Compiled passes over points, against NumPy's operations on one light curve at a time: the same to the last bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.assemble.passes import center_and_scale, fold, moments
from broker.assemble.point_passes import changes, exposures, parts

BINS = 128
EDGES = np.array([0, 7, 7, 8, 400, 1400])
"""Seven points, none, one, 392 and a thousand."""


def values(seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(2.0, 3.0, int(EDGES[-1]))


def in_turn(value: NDArray[np.float64]) -> float:
    """A sum from the first to the last: numpy.sum takes another order."""
    return float(np.cumsum(value)[-1]) if len(value) else 0.0


def binned(phase: NDArray[np.float64], value: NDArray[np.float64], bins: int) -> tuple[NDArray[np.float64], ...]:
    """Mean, deviation and count of each bin; an empty one is on the line between its filled neighbours."""
    cell = np.minimum((phase * bins).astype(int), bins - 1)
    mean, scatter, count = np.zeros(bins), np.zeros(bins), np.bincount(cell, minlength=bins).astype(float)
    for number in np.flatnonzero(count).tolist():
        own = value[cell == number]
        mean[number] = in_turn(own) / len(own)
        scatter[number] = np.sqrt(max(in_turn(own * own) / len(own) - mean[number] ** 2, 0.0))
    filled = np.flatnonzero(count)
    around, of_filled = np.concatenate([filled - bins, filled, filled + bins]), np.tile(mean[filled], 3)
    for number in np.flatnonzero(count == 0).tolist():
        after = int(np.searchsorted(around, number))
        share = (number - around[after - 1]) / (around[after] - around[after - 1])
        mean[number] = of_filled[after - 1] + share * (of_filled[after] - of_filled[after - 1])
    return mean, scatter, count


def folded_alone(
    time: NDArray[np.float64], value: NDArray[np.float64], frequency: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """What ``fold`` gives of one light curve."""
    phase = np.mod(0.5 * ((time - time[0]) * frequency), 1.0)
    coarse = binned(phase, value, BINS // 4)[0]
    smooth = (np.roll(coarse, 1) + coarse + np.roll(coarse, -1)) / 3.0
    phase = np.mod(phase - (np.argmin(smooth) + 0.5) / (BINS // 4) + 0.5 / BINS, 1.0)
    single = binned(np.mod(2.0 * phase, 1.0), value, BINS // 2)[0]
    steps = np.diff(value[np.argsort(phase, kind="stable")]) ** 2
    return phase, np.stack([*binned(phase, value, BINS), np.tile(single, 2)]), in_turn(steps) / max(len(steps), 1)


def test_moments_of_light_curves() -> None:
    value = values()
    center, scale = center_and_scale(value, EDGES)
    third, fourth, ratio = moments(value, EDGES, center, np.where(scale > 0, scale, 1.0))
    assert (center[1], scale[1], third[1], fourth[1], ratio[1]) == (0, 0, 0, 0, 0)
    assert (center[2], scale[2], ratio[2]) == (value[7], 0, 0)
    for group in (0, 3, 4):
        own = value[EDGES[group] : EDGES[group + 1]]
        assert center[group] == in_turn(own) / len(own)
        assert scale[group] == np.sqrt(in_turn((own - center[group]) ** 2) / len(own))
        standard = (own - center[group]) / scale[group]
        assert third[group] == in_turn(standard * standard * standard) / len(own)
        assert fourth[group] == in_turn((standard * standard) * (standard * standard)) / len(own)
        assert ratio[group] == in_turn(np.diff(standard) ** 2) / (len(own) - 1)


@pytest.mark.parametrize("cadence", ["random", "nightly", "pairs"])
def test_folds_of_light_curves(cadence: str) -> None:
    """``nightly``: nearly all at one phase, ``pairs``: two points at each time, whose phases are equal."""
    random = np.random.default_rng(2)
    time = 1000.0 * random.random(int(EDGES[-1]))
    if cadence == "nightly":
        time = np.floor(time) + 1e-4 * random.random(len(time))
    if cadence == "pairs":
        time = np.repeat(time[::2], 2)
    for first, last in pairwise(EDGES):
        time[first:last].sort()
    value = values(3)
    frequency = np.array([0.31, np.nan, 1.0, 1.0 if cadence == "nightly" else 3.7, np.nan])
    phase, folded, ratio = fold(time, value, EDGES, frequency, BINS)
    for group in range(len(frequency)):
        own = slice(EDGES[group], EDGES[group + 1])
        if not np.isfinite(frequency[group]):
            assert not phase[own].any()
            assert not folded[group].any()
            assert ratio[group] == 0
            continue
        expected = folded_alone(time[own], value[own], float(frequency[group]))
        np.testing.assert_array_equal(phase[own], expected[0])
        np.testing.assert_array_equal(folded[group], expected[1])
        assert ratio[group] == expected[2]


def test_usable_exposures_by_band_and_time() -> None:
    """Of two objects: times out of order, values that are none, limits (kind 2), and bands that are not known."""
    time = np.array([3.0, 1.0, 1.000001, 2.0, np.nan, 4.0, 5.0, 6.0, 300_000.0, 1.0, 1.0, 7.0])
    band = np.array([1, 1, 1, 0, 0, 0, 2, 255, 0, 1, 1, 0], np.uint8)
    kind = np.array([0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0], np.uint8)
    flux, error = np.ones(12), np.ones(12)
    flux[11], error[6] = np.inf, 0.0
    start = np.array([0, 9, 9, 12])
    order, count = exposures(time, flux, error, band, kind, start, 2, 2, 200_000.0, 1e-5)
    # The forced measurement 0.1 s before a detection is left out, two detections at one time are not.
    assert (order.tolist(), count.tolist()) == ([3, 2, 0, 9, 10], [3, 0, 2])
    none, of_none = exposures(*(np.empty(0),) * 3, band[:0], kind[:0], np.array([0]), 2, 2, 1e6, 1e-5)
    assert (len(none), len(of_none)) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "left"),
    [((0, 1), (0,)), ((1, 0), (1,)), ((1, 0, 1), (1,)), ((0, 1, 0), (0, 2)), ((1, 1, 0), (0, 2)), ((0, 0, 1), (0, 1))],
)
def test_a_detection_stays_of_an_exposure_with_forced_photometry(kind: tuple[int, ...], left: tuple[int, ...]) -> None:
    size = len(kind)
    time, one = 60_000.0 + 3e-6 * np.arange(size), np.ones(size)
    codes = np.array(kind, np.uint8)
    order, count = exposures(time, one, one, np.zeros(size, np.uint8), codes, np.array([0, size]), 2, 2, 1e6, 1e-5)
    assert (tuple(order.tolist()), count.tolist()) == (left, [len(left)])


def test_stamps_by_parts_of_time() -> None:
    rng = np.random.default_rng(2)
    mjd, stamp = rng.uniform(0, 10, int(EDGES[-1])), rng.integers(0, 2**64, int(EDGES[-1]), np.uint64)
    index, first, last = rng.permutation(len(mjd)), np.full(5, 2.0), np.full(5, 8.0)
    sums, outside, oldest, newest = parts(mjd, stamp, index, EDGES, first, last, 4)
    for group, (low, high) in enumerate(pairwise(EDGES.tolist())):
        own = index[low:high]
        part = np.where((mjd[own] < 2) | (mjd[own] > 8), 4, np.floor((mjd[own] - 2) / 1.5))
        assert sums[group].tolist() == [int(stamp[own][part == n].sum(dtype=np.uint64)) for n in range(4)]
        assert outside[group] == np.sum(part == 4)
        assert (oldest[group], newest[group]) == ((mjd[own].min(), mjd[own].max()) if len(own) else (np.inf, -np.inf))


@pytest.mark.parametrize(("first", "last"), [(-np.inf, 8.0), (2.0, np.inf), (-1e308, 1e308)])
def test_stamps_stay_within_the_parts_whatever_the_ends_are(first: float, last: float) -> None:
    """The index came from NaN or infinity, and the sum was written far outside of the array."""
    mjd, stamp = np.array([3.0, 5.0, 7.0]), np.array([1, 10, 100], np.uint64)
    sums, outside, *_ = parts(mjd, stamp, np.arange(3), np.array([0, 3]), np.array([first]), np.array([last]), 4)
    inside = (mjd >= first) & (mjd <= last)
    assert (sums.sum(), outside[0]) == (stamp[inside].sum(), 3 - inside.sum())


def test_changes_of_light_curves() -> None:
    value = values()
    found = changes(value, EDGES)
    for group, (low, high) in enumerate(pairwise(EDGES.tolist())):
        own = value[low:high]
        mean = in_turn(own) / max(len(own), 1)
        variance = in_turn((own - mean) ** 2) / max(len(own), 1)
        latest = own[-1] if len(own) else 0.0
        assert [f[group] for f in found] == [variance, in_turn(np.diff(own) ** 2), latest, np.sum(own < 0)]
