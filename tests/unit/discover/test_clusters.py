from __future__ import annotations

import numpy as np
import pytest

from broker.discover.clusters import find_clusters
from broker.discover.separating import differences


def normed(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cloud(rng: np.random.Generator, n: int, centre: float = 0.0) -> np.ndarray:
    x = rng.normal(0, 0.3, (n, 12)) * np.linspace(1.0, 0.1, 12)
    x[:, 0] += 3.0
    x[:, 1] += centre
    return x


def test_two_kinds_are_found_and_one_cloud_is_not_divided() -> None:
    rng = np.random.default_rng(0)
    two = find_clusters(normed(np.concatenate([cloud(rng, 150, -1.5), cloud(rng, 80, 1.5)])), draws=20)
    assert two.verdict == "subclasses"
    assert two.label.tolist() == [0] * 150 + [1] * 80
    assert min(two.stability) == pytest.approx(1.0)
    # Of other stars: one amid each cluster, and one far from both.
    far = cloud(rng, 1, 1.5)
    far[:, 11] = 9.0
    amid = np.zeros((2, 12))
    amid[:, :2] = [[3.0, -1.5], [3.0, 1.5]]
    others = two.project(normed(np.concatenate([amid, far])))
    nearest, outside = two.belonging(others)
    assert nearest[:2].tolist() == [0, 1]
    assert outside.tolist() == [False, False, True]
    for seed in range(3):
        one = find_clusters(normed(cloud(np.random.default_rng(seed), 200)), draws=20)
        assert one.verdict in ("one cloud", "noise")


def test_a_continuum_is_no_two_kinds() -> None:
    rng = np.random.default_rng(0)
    x = cloud(rng, 300)
    x[:, 1] = rng.uniform(-3, 3, 300)
    found = find_clusters(normed(x), draws=20)
    assert found.verdict != "subclasses"


def test_too_few_are_not_clustered() -> None:
    with pytest.raises(ValueError, match="59 objects, 60 are needed"):
        find_clusters(np.zeros((59, 4), np.float32))


def test_what_differs_is_told_with_its_size_and_corrected_probability() -> None:
    label = np.repeat([0, 1], 10)
    features = {
        "apart": np.arange(20.0)[::-1],  # every value of the first cluster is larger
        "same": np.tile(np.arange(10.0), 2),
        "few": np.where(np.arange(20) < 5, 1.0, np.nan),
        "constant": np.ones(20),
    }
    types = {"VSX": ["BY"] * 9 + ["RS"] * 11}
    found = {d.feature: d for d in differences(label, features, types)}
    assert set(found) == {"apart", "same", "VSX = BY", "VSX = RS"}
    assert (found["apart"].effect, found["same"].effect) == (1.0, 0.0)
    assert (found["apart"].inside, found["apart"].outside) == (14.5, 4.5)
    assert found["VSX = BY"].effect == pytest.approx(0.9)
    # Fisher: 2 * 10 ways of 167960 for 9 of 10 on one side. Benjamini and Hochberg: the least two of four tests, which
    # are equal, times 4 / 2.
    assert found["VSX = BY"].q_value == pytest.approx(2 * 10 / 167960 * 4 / 2)
    assert found["same"].q_value == 1.0
