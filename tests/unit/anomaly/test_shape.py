"""Distances by period, amplitude and shape of a light curve."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from broker.anomaly.shape import LEAST_POINTS, SHAPE, Shapes, shapes_of
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES

K = 5


def test_shape_has_no_feature_that_depends_on_noise_or_cadence() -> None:
    assert not {"noise_to_std", "log10_points", "log10_span", "von_neumann_time", "r2_period"} & set(SHAPE)


def test_short_light_curves_have_no_shape() -> None:
    features = np.arange(3 * len(LIGHT_CURVE_FEATURES), dtype=np.float32).reshape(3, -1)
    found = shapes_of(features, np.array([LEAST_POINTS, LEAST_POINTS - 1, 0]))
    assert found[0, 1] == features[0, LIGHT_CURVE_FEATURES.index("log10_period")]
    assert np.isnan(found[1:]).all()


def test_distances_are_of_normal_deviates_within_the_stratum() -> None:
    """Against scipy: each feature's rank among the known stars as a deviate, five nearest by brute force."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(400, len(SHAPE))).astype(np.float32) * 10.0 ** rng.uniform(-3, 3, len(SHAPE))
    known = np.concatenate([known, known[:100] + 1e3]).astype(np.float32)
    strata = np.repeat([22, 20], [400, 100])
    new = known[:50] * rng.uniform(0.5, 1.5, (50, len(SHAPE))).astype(np.float32)
    new[:20, 3] = known[5, 3]  # as one of the known ones
    new[0] = np.nan
    found = Shapes.of(strata, known).distance(new, np.full(50, 22), K)
    assert np.isnan(found[0])
    own = known[:400]

    def even(values: np.ndarray) -> np.ndarray:
        below = (own[None] < values[:, None]).sum(axis=1) + (own[None] <= values[:, None]).sum(axis=1)
        return np.clip(norm.ppf((below / 2 + 0.5) / 401), -3.5, 3.5)

    distances = np.linalg.norm(even(new[1:])[:, None] - even(own)[None], axis=2)
    np.testing.assert_allclose(found[1:], np.sort(distances, axis=1)[:, :K].mean(axis=1), rtol=1e-3)


def test_a_distance_is_of_its_object_alone() -> None:
    """Bit by bit: a matrix product of another number of rows rounds otherwise."""
    rng = np.random.default_rng(1)
    known, new = (rng.normal(size=(n, len(SHAPE))).astype(np.float32) for n in (600, 300))
    shapes, strata = Shapes.of(np.full(600, 22), known), np.full(300, 22)
    together = shapes.distance(new, strata, K)
    alone = [shapes.distance(new[row : row + 1], strata[:1], K)[0] for row in range(300)]
    assert together.tolist() == alone


def test_no_stars_give_no_distance() -> None:
    few = Shapes.of(np.full(K - 1, 22), np.zeros((K - 1, len(SHAPE)), np.float32))
    new = np.zeros((2, len(SHAPE)), np.float32)
    for shapes, strata in ((Shapes.none(), [22, 20]), (few, [22, 20]), (few, [-1, -1])):
        assert np.isnan(shapes.distance(new, np.array(strata), K)).all()
