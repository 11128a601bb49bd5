"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import label_cross_entropy, trimodal_contrastive


def basis(*indices: int) -> torch.Tensor:
    return torch.eye(512)[list(indices)]


def test_matching_modalities_cost_little_and_shuffled_ones_much() -> None:
    same = torch.stack([basis(0, 1, 2, 3)] * 3, dim=1)
    present = torch.ones(4, 3, dtype=torch.bool)
    scale = torch.tensor(10.0).log()
    # Each pair: similarity 10 on the diagonal and 0 elsewhere, both directions, halved: log(1 + 3 exp(-10)).
    assert trimodal_contrastive(same, present, scale).item() == pytest.approx(
        3 * math.log(1 + 3 * math.exp(-10)), rel=2e-3
    )
    shuffled = torch.stack([basis(0, 1, 2, 3), basis(1, 0, 3, 2), basis(2, 3, 0, 1)], dim=1)
    # Every true pair has similarity 0 and one wrong pair 10.
    expected = 3 * math.log(3 + math.exp(10))
    assert trimodal_contrastive(shuffled, present, scale).item() == pytest.approx(expected)


def test_objects_without_a_modality_take_no_part_in_its_pairs() -> None:
    embeddings = torch.stack([basis(0, 1, 2), basis(0, 1, 2), basis(5, 6, 7)], dim=1)
    present = torch.tensor([[True, True, False]] * 3)
    scale = torch.tensor(10.0).log()
    expected = math.log(1 + 2 * math.exp(-10))
    assert trimodal_contrastive(embeddings, present, scale).item() == pytest.approx(expected, rel=2e-3)


def test_a_coarse_label_is_the_sum_of_its_classes() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    # The catalogue calls the third class by the first one's name.
    confusion = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    share = logits.softmax(dim=1)
    loss = label_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]), confusion, torch.ones(1), smoothing=0.0)
    assert loss.item() == pytest.approx(-math.log(float(share[0, 0] + share[0, 2])), rel=1e-5)


def test_a_soft_label_seen_through_a_catalogue_that_errs() -> None:
    logits = torch.tensor([[1.0, -1.0]])
    confusion = torch.tensor([[[0.8, 0.2], [0.3, 0.7]]])
    first = 1 / (1 + math.exp(-2.0))
    named = (0.8 * first + 0.3 * (1 - first), 0.2 * first + 0.7 * (1 - first))
    loss = label_cross_entropy(logits, torch.tensor([[0.25, 0.75]]), confusion, torch.ones(1), smoothing=0.0)
    assert loss.item() == pytest.approx(-0.25 * math.log(named[0]) - 0.75 * math.log(named[1]), rel=1e-5)


def test_weights_and_smoothing() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    plain = torch.eye(2).expand(2, 2, 2)
    right, wrong = (-math.log(1 / (1 + math.exp(-d))) for d in (3.0, -3.0))
    weighted = label_cross_entropy(logits, target, plain, torch.tensor([3.0, 1.0]), smoothing=0.0)
    assert weighted.item() == pytest.approx((3 * right + wrong) / 4)
    smooth = label_cross_entropy(logits[:1], target[:1], plain[:1], torch.ones(1), smoothing=0.2)
    assert smooth.item() == pytest.approx(0.8 * right + 0.2 * (right + wrong) / 2)
