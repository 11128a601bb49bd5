"""Merging is idempotent and does not depend on order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from broker.records import LightCurve, PhotometryKind
from broker.state.merge import merge

_POINT = st.tuples(
    st.integers(0, 12),  # the exposure
    st.sampled_from([-4e-7, 0.0, 4e-7]),  # how its time was rounded, in days
    st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan"))),
    st.floats(1, 1e5, width=32),
    st.one_of(st.floats(0, 1e6, width=32), st.just(float("nan"))),
    st.integers(0, 2),
    st.sampled_from(list(PhotometryKind)),
)
_CURVES = st.lists(_POINT, max_size=8).map(
    lambda points: LightCurve(
        np.array([59000.0 + 0.5 * p[0] + p[1] for p in points], np.float64),
        np.array([p[2] for p in points], np.float32),
        np.array([p[3] for p in points], np.float32),
        np.array([p[4] for p in points], np.float32),
        np.array([p[5] for p in points], np.uint8),
        np.array([p[6] for p in points], np.uint8),
    )
)


def same(first: LightCurve, second: LightCurve) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)
        for name in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
    )


@given(_CURVES, _CURVES, st.sampled_from([5, 2000]))
def test_merging_twice_or_in_either_order_is_the_same(first: LightCurve, second: LightCurve, most: int) -> None:
    merged = merge(first, second, most)
    assert same(merged, merge(second, first, most))
    assert same(merged, merge(merged, second, most))
    assert same(merged, merge(merged, first, most))
    assert len(merged) <= most
    assert np.all(np.diff(merged.mjd) >= -1e-5)


@given(_CURVES, _CURVES, _CURVES, st.sampled_from([5, 2000]))
def test_grouping_does_not_matter(a: LightCurve, b: LightCurve, c: LightCurve, most: int) -> None:
    assert same(merge(merge(a, b, most), c, most), merge(a, merge(b, c, most), most))


def detections(mjd: np.ndarray[tuple[int], np.dtype[np.float64]]) -> LightCurve:
    size = len(mjd)
    return LightCurve(
        mjd, np.full(size, 10, np.float32), np.ones(size, np.float32), np.zeros(size, np.float32),
        np.zeros(size, np.uint8), np.zeros(size, np.uint8),
    )  # fmt: skip


@given(st.floats(50000, 70000), st.floats(-1.9e-6, 1.9e-6))
def test_what_is_one_exposure_does_not_depend_on_where_a_bin_ends(mjd: float, shift: float) -> None:
    merged = merge(detections(np.array([mjd])), detections(np.array([mjd + shift])))
    assert merged.mjd.tolist() == [max(mjd, mjd + shift)]


@given(st.floats(50000, 70000), st.floats(2.1e-6, 1.0))
def test_exposures_further_apart_stay_two(mjd: float, shift: float) -> None:
    merged = merge(detections(np.array([mjd])), detections(np.array([mjd + shift])))
    assert merged.mjd.tolist() == [mjd, mjd + shift]


def test_a_chain_of_close_times_does_not_become_one_point() -> None:
    mjd = 59000 + 1e-6 * np.arange(3000)  # 12 frames a second
    merged = merge(detections(mjd), LightCurve.empty(), 0)
    assert 1000 <= len(merged) <= 1500
    assert np.diff(merged.mjd).max() < 4.1e-6


def test_one_exposure_in_many_packets_is_one_point() -> None:
    curve = LightCurve(
        np.array([59000.1, 59000.1 + 5e-7, 59000.1]),
        np.array([10, 10, 10], np.float32),
        np.array([1, 1, 1], np.float32),
        np.array([5, np.nan, 5], np.float32),
        np.array([0, 0, 1], np.uint8),
        np.zeros(3, np.uint8),
    )
    merged = merge(curve, LightCurve.empty())
    assert merged.band.tolist() == [0, 1]
    assert merged.reference_flux.tolist() == [5, 5]
