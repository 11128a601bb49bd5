"""Calibration measures against worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.calibrate import (
    Encoded,
    conformal_rank,
    conformal_thresholds,
    expected_calibration_error,
    probabilities,
    usable,
)
from training.config import load_settings
from training.encoders.build import build_model
from training.encoders.trimodal import SUBSETS, subset_name


def encoded(size: int, seed: int) -> Encoded:
    torch.manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(size, 3, 512), dim=2)
    present = torch.rand(size, 3) < 0.7
    return Encoded(np.arange(size), embeddings, present)


def test_expected_calibration_error() -> None:
    predicted = np.zeros((4, 10))
    predicted[:, 0], predicted[:, 1] = 0.75, 0.25
    assert expected_calibration_error(predicted, np.array([0, 0, 0, 1])) == pytest.approx(0.0)
    assert expected_calibration_error(predicted, np.array([1, 1, 1, 1])) == pytest.approx(0.75)


def test_usable_needs_every_modality_of_the_subset() -> None:
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    data = Encoded(np.arange(3), torch.zeros(3, 3, 512), present)
    assert usable(data, (True, False, True)).tolist() == [True, True, False]
    assert usable(data, (False, True, False)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("count", "coverage", "rank"),
    [
        (999, 0.9, 100), (99, 0.9, 10), (9, 0.9, 1), (8, 0.9, 0), (0, 0.9, 0), (1998, 0.9, 199), (1999, 0.9, 200),
        (999, 0.95, 50), (19, 0.95, 1), (18, 0.95, 0), (999, 0.8, 200), (4, 0.8, 1), (999, 0.7, 300), (9, 0.7, 3),
        (999, 0.999, 1), (998, 0.999, 0), (7, 0.5, 4),
    ],
)  # fmt: skip
def test_the_rank_of_the_conformal_threshold_by_hand(count: int, coverage: float, rank: int) -> None:
    assert conformal_rank(count, coverage) == rank
    assert conformal_rank(count, float(np.float64(coverage))) == rank


def test_the_threshold_is_the_probability_of_that_rank() -> None:
    """Of 99 objects at 90 %, the tenth smallest; a product of floating-point numbers gave the ninth."""
    model = build_model(load_settings("trifid")).eval()
    data = encoded(99, seed=3)
    data = Encoded(data.rows, data.embeddings, torch.ones_like(data.present))
    label = np.arange(99) % 10
    own = np.sort(probabilities(model.classifier, data, SUBSETS[0])[np.arange(99), label])
    assert conformal_thresholds(model, data, label, coverage=0.9)[subset_name(SUBSETS[0])] == own[9]


def test_conformal_sets_cover_new_objects() -> None:
    model = build_model(load_settings("trifid")).eval()
    calibration, fresh = encoded(3000, seed=1), encoded(3000, seed=2)
    rng = np.random.default_rng(0)

    def labels(data: Encoded) -> np.ndarray:
        return np.array([rng.choice(10, p=p / p.sum()) for p in probabilities(model.classifier, data, SUBSETS[0])])

    thresholds = conformal_thresholds(model, calibration, labels(calibration), coverage=0.9)
    label = labels(fresh)
    for subset in SUBSETS:
        chosen = usable(fresh, subset)
        predicted = probabilities(model.classifier, fresh, subset)[chosen]
        covered = predicted[np.arange(chosen.sum()), label[chosen]] >= thresholds[subset_name(subset)]
        assert covered.mean() == pytest.approx(0.9, abs=0.035)
