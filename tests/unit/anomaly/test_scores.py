from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import leave_one_out_distances, nearest, score
from broker.errors import ConfigurationError

RNG = np.random.default_rng(0)


def unit(n: int, d: int = 64) -> NDArray[np.float32]:
    vectors = RNG.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference(n: int = 300, k: int = 5) -> ReferenceSet:
    embeddings = unit(n)
    names = np.array([f"star {i}" for i in range(n)])
    distances = np.sort(leave_one_out_distances(embeddings, np.arange(n), k))
    return ReferenceSet("v1", embeddings, names, np.full(n, "EW"), k, distances)


@pytest.mark.parametrize("size", [7, 200, 512, 1000])
def test_nearest_are_those_of_a_plain_search(size: int) -> None:
    stored, queries = unit(size), unit(20)
    distance, index = nearest(stored, queries, 7)
    plain = np.linalg.norm(stored[None] - queries[:, None], axis=2)
    np.testing.assert_array_equal(index, np.argsort(plain, axis=1)[:, :7])
    np.testing.assert_allclose(distance, np.sort(plain, axis=1)[:, :7], atol=1e-5)


def test_a_stored_object_finds_itself_and_is_no_anomaly() -> None:
    stored = reference()
    scores = score(stored, stored.embeddings[:10])
    assert [row[0].object_id for row in scores.neighbours] == [f"star {i}" for i in range(10)]
    assert all(row[0].distance == pytest.approx(0, abs=1e-3) for row in scores.neighbours)
    opposite = score(stored, -stored.embeddings[:1] * 0 + unit(1))
    assert opposite.distance[0] > scores.distance.max()


def test_percentiles_of_fresh_draws_are_even() -> None:
    stored = reference(2000)
    percentile = score(stored, unit(500)).percentile
    assert np.mean(percentile < 0.5) == pytest.approx(0.5, abs=0.1)
    assert np.mean(percentile > 0.9) == pytest.approx(0.1, abs=0.06)


def test_embeddings_of_one_object_are_no_neighbours() -> None:
    embeddings = np.repeat(unit(20), 2, axis=0)
    alone = leave_one_out_distances(embeddings, np.arange(40), 1)
    together = leave_one_out_distances(embeddings, np.repeat(np.arange(20), 2), 1)
    assert alone.max() < 1e-3
    assert together.min() > 0.5


def test_files_come_back_and_others_are_refused(tmp_path: Path) -> None:
    stored = reference()
    stored.save_npz(tmp_path / "set.npz")
    again = ReferenceSet.load_npz(tmp_path / "set.npz")
    np.testing.assert_allclose(again.embeddings, stored.embeddings, atol=1e-3)
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("bad.npz", "other.npz", "missing.npz"):
        with pytest.raises(ConfigurationError, match=name):
            ReferenceSet.load_npz(tmp_path / name)
