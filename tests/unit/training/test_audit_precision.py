from __future__ import annotations

import numpy as np
import pytest

from broker.taxonomy import CLASS_INDEX, CLASS_NAMES, PARENT_OF
from training.audit_precision import KINDS, Labelled, _planted, _real, plant


@pytest.mark.parametrize("kind", KINDS)
def test_two_per_cent_of_the_labels_are_changed_each_to_another(kind: str) -> None:
    label = np.array([CLASS_INDEX["M"]] * 500 + [CLASS_INDEX["SR"]] * 400 + [CLASS_INDEX["ROT"]] * 100)
    changed, wrong = plant(label, kind, np.random.default_rng(0))
    assert wrong.sum() == 20
    assert np.array_equal(changed != label, wrong)
    to = [(CLASS_NAMES[a], CLASS_NAMES[b]) for a, b in zip(label[wrong], changed[wrong], strict=True)]
    if kind == "by frequency":
        assert {b for _, b in to} <= {"M", "SR", "ROT"}
    if kind == "same parent":  # rotational variables have no other class
        assert all(PARENT_OF[a] == PARENT_OF[b] for a, b in to)
        assert {a for a, _ in to} == {"M", "SR"}


def stars(probability: float) -> Labelled:
    """A hundred stars of each of two classes, of which the model is as sure as ``probability``."""
    label = np.repeat([0, 1], 100)
    p = np.zeros((200, 10))
    p[np.arange(200), label] = probability
    p[np.arange(200), 1 - label] = 1 - probability
    return Labelled("stars", label, np.full(200, "std", object), p, [()] * 200)


def test_a_model_that_knows_finds_all_and_one_that_does_not_the_share_that_is_wrong() -> None:
    every = np.ones(200, np.bool_)
    sure = _planted(stars(0.99), every, KINDS[0], 5, "stars")
    assert (sure.average_precision, sure.low, sure.recall) == (1.0, 1.0, 1.0)
    assert sure.planted == 4
    assert sure.precision == 1.0
    unsure = _planted(stars(0.5), every, KINDS[1], 5, "stars")
    assert unsure.without_naming == pytest.approx(4 / 200)  # all are equally doubtful


def test_contradicted_labels_are_found_among_confirmed_ones() -> None:
    one = stars(0.9)
    one.label[:3] = 1
    claimed = np.eye(10, dtype=np.bool_)[one.label]
    contradicted = np.zeros(200, np.bool_)
    contradicted[:4] = True  # of which the model doubts three
    found = _real(one, claimed, contradicted, np.ones(200, np.bool_), "GCVS", "stars")
    assert found.contradicted == 4
    assert found.precision_at == 1.0  # of equally doubtful ones the first in the table
    # Three first; the fourth is one of 97 that are equally doubtful: the whole tie is passed at once.
    assert found.average_precision == pytest.approx(0.75 + 0.25 * 4 / 100)
