"""The period search against signals of known period."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.assemble import period
from broker.assemble.harmonics import best_candidates, harmonic_fit
from broker.assemble.period import NO_PERIOD, coarse_power, find_period


def survey_times(rng: np.random.Generator, nights: int = 1500, points: int = 200) -> NDArray[np.float64]:
    """Times of a ground-based survey: one per night, within four hours of midnight."""
    night = np.sort(rng.choice(nights, points, replace=False))
    return night + rng.uniform(-0.08, 0.08, points)


def flat(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(len(values), 1.0 / len(values))


def test_coarse_power_is_the_direct_sum() -> None:
    rng = np.random.default_rng(1)
    time = survey_times(rng, nights=400, points=60)
    time -= time.min()
    value = rng.normal(size=60) / 60
    step, power = coarse_power(time, value, 24.0)
    frequency = step * np.arange(1, len(power) + 1)
    assert frequency[-1] == pytest.approx(24.0, abs=step)
    direct = np.abs(np.exp(-2j * np.pi * np.outer(frequency, time)) @ value) ** 2
    assert np.abs(power - direct).max() < 0.01 * direct.max()


def one_band(values: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.array([0, len(values)], np.intp)


def test_harmonic_fit_recovers_coefficients() -> None:
    rng = np.random.default_rng(2)
    time = rng.uniform(0, 100, 300)
    angle = 2 * np.pi * 0.37 * time
    value = 0.5 + 1.5 * np.cos(angle) - 0.7 * np.sin(2 * angle) + 0.2 * np.cos(3 * angle)
    r_squared, coefficients = harmonic_fit(time, value, flat(time), one_band(time), np.array([0.37, 0.61]), 3)
    assert r_squared[0] > 0.999
    assert r_squared[1] < 0.2
    np.testing.assert_allclose(coefficients[0], [1.5, 0, 0.2, 0, -0.7, 0], atol=5e-3)


@pytest.mark.parametrize(
    ("bands", "harmonics"), [([10], 1), ([17], 2), ([60], 4), ([301], 4), ([9, 11], 2), ([40, 3, 21], 3), ([150, 1], 4)]
)
def test_harmonic_fit_is_that_of_least_squares(bands: list[int], harmonics: int) -> None:
    """With a column of ones for each band, written out."""
    points = sum(bands)
    rng = np.random.default_rng(points)
    time = rng.uniform(0, 300, points)
    band = np.repeat(np.arange(len(bands)), bands)
    value = rng.normal(size=points) + 5.0 * band
    weight = rng.uniform(0.2, 1.0, points)
    weight /= weight.sum()
    start = np.concatenate([[0], np.cumsum(bands)]).astype(np.intp)
    frequency = rng.uniform(0.01, 24.0, 20)
    r_squared, coefficients = harmonic_fit(time, value, weight, start, frequency, harmonics)
    ones = np.eye(len(bands))[band]
    alone = value - ones @ np.linalg.lstsq(np.sqrt(weight)[:, None] * ones, np.sqrt(weight) * value, rcond=None)[0]
    for f, r2, found in zip(frequency, r_squared, coefficients, strict=True):
        angle = 2 * np.pi * f * np.outer(time, np.arange(1, harmonics + 1))
        design = np.hstack([ones, np.cos(angle), np.sin(angle)])
        ridge = 1e-4 * np.diag([0.0] * len(bands) + [1.0] * 2 * harmonics)
        expected = np.linalg.solve(design.T @ (weight[:, None] * design) + ridge, design.T @ (weight * value))
        np.testing.assert_allclose(found, expected[len(bands) :], atol=3e-4)
        left = value - design @ expected
        assert r2 == pytest.approx(1 - np.sum(weight * left**2) / np.sum(weight * alone**2), abs=2e-3)


@pytest.mark.parametrize(("points", "aside", "nearest"), [(60, 4, [700, 411, 1400, 233, 902]), (12, 5, [9, 3, 1, 30])])
def test_candidates_are_compared_as_by_array_operations(points: int, aside: int, nearest: list[int]) -> None:
    """At 1.75 cycles/day, 700 fine steps of 0.02 / 8; twice and a third of that are no second period."""
    rng = np.random.default_rng(points)
    time, step, harmonics = np.sort(rng.uniform(0, 25, points)), 0.02, min(4, points // 8)
    start = np.array([0, points // 3, points], np.intp)
    value = np.cos(2 * np.pi * 1.7502 * time) + 0.6 * np.sin(4 * np.pi * 1.7502 * time) + rng.normal(0, 0.4, points)
    of_points = time, value, flat(time), start
    grid = np.maximum(step / 8 * (np.array(nearest)[:, None] + np.arange(-aside, aside + 1)), step / 4)
    r_squared = harmonic_fit(*of_points, grid.ravel(), harmonics)[0].reshape(grid.shape)
    quality = r_squared.max(axis=1)
    candidate = grid[np.arange(len(grid)), r_squared.argmax(axis=1)]
    best = int(quality.argmax())
    around = np.maximum(candidate[best] + step / 64 * np.arange(-4, 5), step / 4)
    finer = harmonic_fit(*of_points, around, harmonics)[0]
    expected = [(around[finer.argmax()], finer.max())]
    ratio = np.maximum(candidate / candidate[best], candidate[best] / candidate)
    other = np.abs(ratio - np.rint(ratio)) > 0.01 + 1e-5 * np.rint(ratio)
    second = int(np.where(other, quality, -1).argmax()) if other.any() else -1
    expected.append((candidate[second], quality[second]) if other.any() else (np.nan, 0.0))
    rest = [at for at in np.argsort(-quality, kind="stable").tolist() if at not in (best, second)]
    expected += [(candidate[at], quality[at]) for at in rest]
    found = best_candidates(*of_points, np.array(nearest, np.float64), step, aside, harmonics, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (points != 60) or found[0, 0] == pytest.approx(1.7502, abs=2e-3)
    np.testing.assert_array_equal(
        best_candidates(*of_points, np.array(nearest, np.float64), step, aside, harmonics, 3), found[:3]
    )


def test_where_all_candidates_are_simple_ratios_there_is_no_second() -> None:
    time = np.linspace(0, 30, 100) + np.random.default_rng(2).uniform(0, 0.2, 100)
    value = np.cos(2 * np.pi * time)
    found = best_candidates(time, value, flat(time), one_band(time), np.array([400.0, 800.0, 200.0]), 0.02, 4, 2, 16)
    assert found[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert np.isnan(found[1, 0])
    assert found[1, 1] == 0
    assert len(found) == 4


def test_bands_with_unknown_offsets_find_a_period_that_neither_finds_alone() -> None:
    """Ten points in each of two bands, of a sine with half the amplitude in the second one: of 60 stars."""
    found = np.zeros(3, np.intp)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        time = rng.uniform(0, 120, 20)
        frequency = rng.uniform(1.0, 3.0)
        second = np.arange(20) >= 10
        value = np.sin(2 * np.pi * frequency * time) * np.where(second, 0.7, 1.0) + rng.normal(0, 0.05, 20)
        medians = value - np.where(second, np.median(value[10:]), np.median(value[:10]))
        searches = (
            find_period(time, value + np.where(second, 7.0, 0.0), flat(time), np.array([0, 10, 20], np.intp)),
            find_period(time, medians, flat(time)),
            find_period(time[:10], value[:10], flat(time[:10])),
        )
        found += [abs(s.frequency - frequency) < 0.01 for s in searches]
    assert found[0] >= 40
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("period", [0.0613, 0.33, 0.5672, 2.871, 41.3, 287.0])
def test_finds_the_period_of_a_saw_tooth(period: float) -> None:
    rng = np.random.default_rng(3)
    time = survey_times(rng)
    value = -np.mod(time / period, 1.0) + rng.normal(0, 0.05, len(time))
    found = find_period(time, value, flat(time))
    assert 1 / found.frequency == pytest.approx(period, rel=2e-3)
    assert found.r_squared > 0.7


def test_narrow_eclipses_are_found_where_one_sine_is_not_enough() -> None:
    rng = np.random.default_rng(4)
    time = survey_times(rng, points=400)
    period = 3.456
    phase = np.mod(time / period, 1.0)
    value = -1.0 * (np.abs(phase - 0.5) < 0.05) - 0.3 * (phase < 0.05) + rng.normal(0, 0.02, len(time))
    found = find_period(time, value, flat(time))
    ratio = 1 / found.frequency / period
    assert min(abs(ratio - r) for r in (0.5, 1.0, 2.0)) < 2e-3


@pytest.mark.parametrize("points", [0, 1, 9])
def test_too_few_points_give_no_period(points: int) -> None:
    time = np.arange(points, dtype=np.float64)
    assert find_period(time, np.ones(points), np.full(points, 0.1)) is NO_PERIOD


def test_a_burst_of_points_in_an_hour_gives_no_period() -> None:
    time = np.linspace(0, 0.04, 30)
    assert find_period(time, np.sin(time), flat(time)) is NO_PERIOD


def test_a_constant_light_curve_is_harmless() -> None:
    time = survey_times(np.random.default_rng(5), points=50)
    found = find_period(time, np.zeros(50), flat(time))
    assert np.isfinite(found.frequency)
    assert found.r_squared == 0.0


def test_plans_of_transforms_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = period._Plans()
    monkeypatch.setattr(period, "_PLANNED_MODES", 8 * 1024)
    first = plans.get(1024, 2)
    assert plans.get(1024, 2) is first
    for bands in range(3, 40):
        assert plans.get(1024, bands) is not None
        assert sum(modes * many for modes, many in plans._plans) <= max(8 * 1024, 1024 * bands)
    assert plans.get(1024, 2) is not first
    for _ in range(3):  # what is used stays
        assert plans.get(1024, 2) is plans.get(1024, 2)
        plans.get(1024, 1)
        plans.get(1024, 4)
    assert list(plans._plans) == [(1024, 2), (1024, 1), (1024, 4)]


def test_many_time_spans_give_the_same_power_as_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever plans were kept and dropped in between."""
    rng = np.random.default_rng(5)
    curves = []
    for span in (30.0, 400.0, 3000.0, 9000.0, 30.0, 3000.0):
        time = np.sort(rng.uniform(0, span, 80))
        curves.append((time - time[0], rng.normal(size=80) / 80))
    expected = []
    for curve in curves:
        monkeypatch.setattr(period, "_PLANS", period._Plans())
        expected.append(coarse_power(*curve, 24.0)[1])
    monkeypatch.setattr(period, "_PLANS", period._Plans())
    monkeypatch.setattr(period, "_PLANNED_MODES", 100_000)
    for curve, power in zip(curves, expected, strict=True):
        np.testing.assert_array_equal(coarse_power(*curve, 24.0)[1], power)


_BITS = """
import numpy as np
from broker.assemble.harmonics import _kernels, best_candidates, harmonic_fit
rng = np.random.default_rng(1)
of_points = np.sort(rng.uniform(0, 900, 401)), rng.normal(0, 1, 401), np.full(401, 1 / 401), np.array([0, 130, 401])
fit = harmonic_fit(*of_points, rng.uniform(0.1, 5, 40), 4)
found = best_candidates(*of_points, np.array([700.0, 411.0, 1400.0]), 0.02, 4, 4, 16)
print(*(array.tobytes().hex() for array in (*fit, found)))
print(sum(sum(kernel.stats.cache_hits.values()) for kernel in _kernels()))
"""


def test_processes_that_compile_at_once_and_those_that_read_the_cache_have_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", _BITS], env=environment, stdout=subprocess.PIPE, text=True)

    def ended(process: subprocess.Popen[str]) -> tuple[str, int]:
        bits, hits = process.communicate(timeout=600)[0].splitlines()
        return bits, int(hits)

    (first, some), (second, others) = (ended(process) for process in [start(), start()])
    cached, every = ended(start())
    assert first == second == cached
    assert some + others == every == 3  # each kernel was compiled by one of the first two
