"""Retrieval and probes of embeddings, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.anomaly.sets import turned as at
from training.similarity import (
    Embeddings,
    balanced,
    by_centroid,
    by_neighbours,
    centred,
    recall_at,
    retrievals,
    same_class_at,
)


def test_recall_counts_those_that_are_nearer_than_ones_own() -> None:
    # The first one's own is the nearest; of the second, at 3 degrees, that at 1 is nearer; of the third both are.
    asked, there = at(0, 90, 10), at(1, 87, 89)
    assert [recall_at(asked, there, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_the_query_itself_is_none_of_its_class() -> None:
    vectors, label = at(0, 1, 2, 90), np.array([0, 1, 0, 0])
    # Nearest: of 0 that at 1 (another class), of 1 one of class 0, of 2 that at 1, of 90 that at 2 (the same class).
    assert same_class_at(vectors, vectors, label, 1) == 0.25


def test_classes_by_centroid_and_neighbours() -> None:
    known, label = at(0, 10, 50, 60, 70), np.array([3, 3, 5, 5, 5])
    asked = at(29, 32, 65)
    assert by_centroid(known, label, asked).tolist() == [3, 3, 5]  # centroids at 5 and 60: the middle is 32.5
    assert by_neighbours(known, label, asked, 1).tolist() == [3, 5, 5]  # the middle of 10 and 50 is 30
    # One vote each of the two nearest: the nearer one decides.
    assert by_neighbours(known, label, at(29, 31), 2).tolist() == [3, 5]
    assert by_neighbours(known, label, at(29), 5).tolist() == [5]


def test_balanced_is_the_mean_over_the_classes() -> None:
    label, answer = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
    assert balanced(label, answer) == pytest.approx((0.75 + 0.0) / 2)


def test_centred_takes_out_what_lies_between_the_modalities() -> None:
    """Two modalities, the same but for an offset: as they are the largest cosine is that of one star for all."""
    own = np.eye(4, dtype=np.float32)[:3]
    far = own + np.array([3.0, 0.0, 0.0, 4.0], np.float32)
    vectors = {"light_curve": own, "spectrum": own, "metadata": far / np.linalg.norm(far, axis=1, keepdims=True)}
    stars = Embeddings(vectors, np.array([0, 1, 2]))
    as_they_are = {(r.query, r.found): r.recall[0] for r in retrievals(stars, stars)}
    moved = {(r.query, r.found): r.recall[0] for r in retrievals(stars, stars, centred(stars))}
    assert as_they_are["metadata", "light_curve"] == pytest.approx(1 / 3)
    assert moved["metadata", "light_curve"] == 1.0
    assert as_they_are["light_curve", "spectrum"] == moved["light_curve", "spectrum"] == 1.0
