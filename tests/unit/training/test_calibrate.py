"""Calibration measures against worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.calibrate import (
    Encoded,
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
