"""Scores of held-out stars."""

from __future__ import annotations

import numpy as np
import pytest

from broker.inference.manifest import load_manifest
from tests.random_models import MODEL_REPO
from training.evaluate import score_probabilities


def probabilities(rng: np.random.Generator, size: int) -> np.ndarray:
    drawn = rng.dirichlet(np.full(10, 0.3), size)
    return np.asarray(drawn)


def test_sets_are_scored_as_they_are_published() -> None:
    manifest = load_manifest(MODEL_REPO)
    rng = np.random.default_rng(3)
    predicted, label = probabilities(rng, 400), rng.integers(0, 10, 400)
    thresholds = np.full(400, manifest.conformal_thresholds["light_curve"][0])
    present = np.tile([True, False, False], (400, 1))
    published = manifest.prediction_sets(predicted.astype(np.float32), present, np.ones(400, np.int64))
    score = score_probabilities("x", "light_curve", predicted, label, thresholds)
    covered = [manifest.classes[number] in own for number, own in zip(label, published, strict=True)]
    assert score.coverage == pytest.approx(np.mean(covered))
    assert score.set_size == pytest.approx(np.mean([len(own) for own in published]))


def test_the_leading_class_is_in_its_set_where_no_class_reaches_the_threshold() -> None:
    predicted = np.full((1, 10), 0.04)
    predicted[0, 3] = 0.64
    score = score_probabilities("x", "light_curve", predicted, np.array([3]), threshold=0.9)
    assert (score.coverage, score.set_size) == (1.0, 1.0)
