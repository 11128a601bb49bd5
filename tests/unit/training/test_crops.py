"""Shortened histories: real points of the same light curve, in order, as many as promised."""

from __future__ import annotations

import numpy as np
import pytest

from broker.records import LightCurve
from training.crops import MIN_CROP, crop, thin


def light_curve(points: int) -> LightCurve:
    rng = np.random.default_rng(points)
    return LightCurve(
        np.sort(rng.uniform(0, 1000, points)),
        rng.normal(1000, 10, points).astype(np.float32),
        np.ones(points, np.float32),
        np.zeros(points, np.float32),
        np.full(points, 3, np.uint8),
        np.zeros(points, np.uint8),
    )


@pytest.mark.parametrize("points", [0, 1, 5, 430])
def test_thinning_keeps_most_points_in_order(points: int) -> None:
    curve = light_curve(points)
    sizes = []
    for seed in range(40):
        thinned = thin(curve, np.random.default_rng(seed))
        sizes.append(len(thinned))
        where = np.searchsorted(curve.mjd, thinned.mjd)
        assert np.all(np.diff(where) > 0)
        np.testing.assert_array_equal(curve.flux[where], thinned.flux)
    assert round(0.6 * points) <= min(sizes) <= max(sizes) <= round(0.95 * points)
    if points > 100:
        assert len(set(sizes)) > 20


def test_crops_are_short_and_long_and_some_are_difference_photometry() -> None:
    curve = light_curve(430)
    crops = [crop(curve, np.random.default_rng(seed)) for seed in range(400)]
    sizes = np.array([len(c) for c in crops])
    assert MIN_CROP <= sizes.min() < 12
    assert sizes.max() > 300
    assert 40 < np.median(sizes) < 90  # even in the logarithm: about the root of 8 times 430
    difference = np.array([np.isnan(c.reference_flux).all() for c in crops])
    assert difference.mean() == pytest.approx(0.125, abs=0.05)
    assert all(np.isin(c.mjd, curve.mjd).all() and np.all(np.diff(c.mjd) > 0) for c in crops)
