"""Calibration measures against worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.calibrate import (
    Encoded,
    best_log_temperature,
    cell_rows,
    conformal_rank,
    conformal_threshold,
    conformal_thresholds,
    expected_calibration_error,
    probabilities,
    sure_rank,
    usable,
)
from training.config import load_settings
from training.encoders.build import build_model
from training.encoders.trimodal import SUBSETS, subset_name


def encoded(size: int, seed: int) -> Encoded:
    torch.manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(size, 3, 512), dim=2)
    present = torch.rand(size, 3) < 0.7
    return Encoded(np.arange(size), embeddings, present, np.full(size, 300, np.int32))


def test_expected_calibration_error() -> None:
    predicted = np.zeros((4, 10))
    predicted[:, 0], predicted[:, 1] = 0.75, 0.25
    assert expected_calibration_error(predicted, np.array([0, 0, 0, 1])) == pytest.approx(0.0)
    assert expected_calibration_error(predicted, np.array([1, 1, 1, 1])) == pytest.approx(0.75)


def test_usable_needs_every_modality_of_the_subset() -> None:
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    data = Encoded(np.arange(3), torch.zeros(3, 3, 512), present, np.full(3, 300, np.int32))
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
    data = Encoded(data.rows, data.embeddings, torch.ones_like(data.present), data.detections)
    label = np.arange(99) % 10
    own = np.sort(probabilities(model.classifier, data, SUBSETS[0])[np.arange(99), label])
    assert conformal_thresholds(model, data, label, coverage=0.9)[subset_name(SUBSETS[0])][-1] == own[9]


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
        covered = predicted[np.arange(chosen.sum()), label[chosen]] >= thresholds[subset_name(subset)][-1]
        assert covered.mean() == pytest.approx(0.9, abs=0.035)


def test_threshold_is_the_rank_that_covers() -> None:
    # Of 19 calibration objects the 2nd smallest: (19 + 1) * 0.1 = 2.
    own = np.linspace(0.05, 0.95, 19)
    assert conformal_threshold(own[::-1], 0.9) == pytest.approx(0.10)
    # Of 8 none is small enough to promise nine tenths: every class belongs to the set.
    assert conformal_threshold(own[:8], 0.9) == 0.0


def test_cells_borrow_from_their_neighbours_with_fewer_detections_first() -> None:
    detections = np.array([3] * 4 + [7] * 2 + [12] * 2 + [300] * 9)
    cells = cell_rows(detections, least=4)
    assert sorted(cells[0].tolist()) == [0, 1, 2, 3]
    assert sorted(cells[1].tolist()) == [0, 1, 2, 3, 4, 5]  # its own two, and those of fewer than five
    assert sorted(cells[2].tolist()) == [4, 5, 6, 7]
    assert len(cells[6]) == 9
    assert len(cells[4]) >= 4


def test_temperature_of_overconfident_logits_is_found() -> None:
    # Right three times of four with logits that claim e^4 to 1: the best temperature makes it 3 to 1.
    logits = torch.zeros(400, 2)
    logits[:, 0] = 4.0
    target = torch.tensor([0, 0, 0, 1] * 100)
    assert np.exp(best_log_temperature(logits, target)) == pytest.approx(4 / np.log(3), rel=0.03)


@pytest.mark.parametrize(
    ("count", "rank"),
    # P(r of n stars, or more, are among the tenth that may be missed): 0.9^10 = 0.349; 0.9^20 = 0.122, with one 0.392;
    # of 40 0.015, 0.080, 0.223. Its mean alone would allow ranks 1, 2 and 4.
    [(0, 0), (5, 0), (10, 0), (20, 1), (40, 2)],
)
def test_the_rank_that_covers_with_confidence_by_hand(count: int, rank: int) -> None:
    assert sure_rank(count, 0.9, 0.8) == rank


def test_with_confidence_four_calibrations_in_five_cover_what_they_promise() -> None:
    """Of uniform probabilities the coverage of a threshold t is 1 - t."""
    samples = np.random.default_rng(4).random((4000, 60))
    covered = {c: np.array([1 - conformal_threshold(own, 0.9, c) for own in samples]) for c in (None, 0.8)}
    assert np.mean(covered[None] >= 0.9) == pytest.approx(0.55, abs=0.05)  # rank 6 of 60: P(Bin(60, 0.1) >= 6)
    assert 0.8 <= np.mean(covered[0.8] >= 0.9) <= 0.95
    assert covered[None].mean() == pytest.approx(1 - 6 / 61, abs=0.002)
