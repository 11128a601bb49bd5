"""Which of two points of one exposure is kept, and which points go where there are too many: worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from broker.records import LightCurve, PhotometryKind
from broker.state.merge import MAX_POINTS, TIME_STEP, merge

NAN = float("nan")
DETECTION, FORCED, LIMIT = PhotometryKind.DETECTION, PhotometryKind.FORCED, PhotometryKind.LIMIT
Point = tuple[float, float, float, float, int, int]
"""mjd, flux, error, reference flux, band, kind."""


def curve(*points: Point) -> LightCurve:
    columns = [np.array(column) for column in zip(*points, strict=True)] if points else [np.empty(0)] * 6
    kinds = (np.float64, np.float32, np.float32, np.float32, np.uint8, np.uint8)
    return LightCurve(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))  # type: ignore[arg-type]


def points(of: LightCurve) -> list[Point]:
    rows = zip(of.mjd, of.flux, of.flux_error, of.reference_flux, of.band, of.kind, strict=True)
    return [tuple(float(value) for value in row) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        # A reference flux matters more than the error, the error more than the flux, that more than the reference.
        ((59000.0, 900.0, 1.0, NAN, 0, DETECTION), (59000.0, 100.0, 9.0, 50.0, 0, DETECTION)),
        ((59000.0, 900.0, 5.0, 90.0, 0, DETECTION), (59000.0, 100.0, 2.0, 50.0, 0, DETECTION)),
        ((59000.0, 100.0, 2.0, 90.0, 0, DETECTION), (59000.0, 900.0, 2.0, 50.0, 0, DETECTION)),
        ((59000.0, 100.0, 2.0, 50.0, 0, DETECTION), (59000.0, 100.0, 2.0, 90.0, 0, DETECTION)),
        ((59000.0, 100.0, 2.0, 50.0, 0, DETECTION), (59000.000001, 100.0, 2.0, 50.0, 0, DETECTION)),
        ((59000.0, 100.0, NAN, 50.0, 0, DETECTION), (59000.0, 100.0, 2.0, 50.0, 0, DETECTION)),
    ],
)
def test_of_two_points_of_one_exposure_the_better_is_kept(worse: Point, better: Point) -> None:
    for first, second in ((worse, better), (better, worse)):
        assert points(merge(curve(first), curve(second))) == [better]
        assert points(merge(curve(first, second), curve())) == [better]


def test_only_the_point_that_is_there_twice_is_decided_on() -> None:
    """The others stay as they are, each column with its own point."""
    first = curve(
        (59000.0, 10.0, 1.0, 100.0, 0, DETECTION),
        (59001.0, 20.0, 4.0, 200.0, 0, DETECTION),
        (59003.0, 40.0, 1.5, 400.0, 2, FORCED),
    )
    second = curve(
        (59001.0, 21.0, 2.0, 201.0, 0, DETECTION),
        (59001.0, 22.0, 3.0, 202.0, 1, DETECTION),
        (59002.0, 30.0, 6.0, 300.0, 0, LIMIT),
        (59003.0, 41.0, 2.5, 401.0, 2, FORCED),
    )
    assert points(merge(first, second)) == [
        (59000.0, 10.0, 1.0, 100.0, 0, DETECTION),
        (59001.0, 21.0, 2.0, 201.0, 0, DETECTION),
        (59001.0, 22.0, 3.0, 202.0, 1, DETECTION),
        (59002.0, 30.0, 6.0, 300.0, 0, LIMIT),
        (59003.0, 40.0, 1.5, 400.0, 2, FORCED),
    ]


def test_points_of_one_time_are_told_by_band_and_then_by_kind() -> None:
    several = [(59000.0, 1.0, 1.0, 1.0, band, kind) for band in (0, 1, 17) for kind in (DETECTION, FORCED, LIMIT)]
    assert points(merge(curve(*several[::-1]), curve(*several))) == several


def test_too_many_points_lose_the_limits_first_and_then_the_oldest() -> None:
    detections = [(59000.0 + day, float(day), 1.0, 1.0, 0, DETECTION) for day in range(4)]
    forced = [(59000.5, 50.0, 1.0, 1.0, 0, FORCED)]
    limits = [(59000.25 + day, NAN, 1.0, 1.0, 0, LIMIT) for day in (0, 9)]
    everything = curve(*detections, *forced, *limits)

    def times(most: int) -> list[float]:
        return merge(everything, curve(), most).mjd.tolist()

    assert times(7) == times(0) == [59000.0, 59000.25, 59000.5, 59001.0, 59002.0, 59003.0, 59009.25]
    assert times(6) == [59000.0, 59000.5, 59001.0, 59002.0, 59003.0, 59009.25]
    assert times(5) == [59000.0, 59000.5, 59001.0, 59002.0, 59003.0]
    assert times(3) == [59001.0, 59002.0, 59003.0]


def test_two_thousand_points_are_kept_where_nobody_says_otherwise() -> None:
    many = [(50000.0 + day, 1.0, 1.0, 1.0, 0, DETECTION) for day in range(2001)]
    assert MAX_POINTS == 2000
    assert merge(curve(*many), curve()).mjd.tolist() == [50001.0 + day for day in range(2000)]


@pytest.mark.parametrize(("steps", "kept"), [([0.0, 0.99], 1), ([0.0, 1.01], 2), ([0.0, 0.6, 1.2], 2), ([0.0] * 3, 1)])
def test_times_within_a_step_are_one_instant(steps: list[float], kept: int) -> None:
    """Also in a chain of which no two neighbours are a step apart: it ends a step after its first."""
    several = [(59000.0 + TIME_STEP * step, 5.0, 1.0, 1.0, 0, DETECTION) for step in steps]
    merged = merge(curve(*several), curve())
    assert len(merged) == kept
    assert merged.mjd[-1] == several[-1][0]


def test_nothing_and_nothing_is_nothing() -> None:
    assert len(merge(LightCurve.empty(), LightCurve.empty())) == 0
