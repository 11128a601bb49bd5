from __future__ import annotations

import numpy as np
import pytest

from broker.audit.doubt import as_labelled, doubts, self_confidence


def one_hot(*labels: int, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.bool_)[list(labels)]


def test_a_label_is_doubted_by_the_best_class_that_it_excludes() -> None:
    p = np.array([[0.7, 0.2, 0.1]] * 4)
    claimed = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]], np.bool_)
    assert self_confidence(p, claimed) == pytest.approx([0.2, 0.3, 0.7, 1.0])
    # 0.7 against 0.2; against 0.3 of both; 0.2 against 0.7; a label that excludes nothing.
    assert doubts(p, claimed, np.inf) == pytest.approx([0.7 / 0.9, 0.7, 0.2 / 0.9, 0.0])


def test_the_usage_of_the_table_is_that_of_all_other_stars() -> None:
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    claimed = one_hot(1, 0, 1, size=2)
    # Of class 0 the first star knows the second, which has the label 0, and the prior's one; the second star knows the
    # first, which has the label 1, and the prior's one, with the label 0. Of class 1 the third knows the prior alone.
    assert as_labelled(p, claimed, 1.0) == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    assert doubts(p, claimed, 1.0) == pytest.approx([1.0, 0.5, 0.0])


def test_probabilities_of_labels_sum_to_one_and_open_labels_count_for_nothing() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 50)
    claimed = one_hot(*rng.integers(4, size=50), size=4)
    assert as_labelled(p, claimed).sum(axis=1) == pytest.approx(np.ones(50))
    opened = claimed.copy()
    opened[::2] = [True, True, False, False]
    assert as_labelled(p, opened)[1::2] == pytest.approx(as_labelled(p[1::2], claimed[1::2]))


def test_a_line_that_catalogue_and_model_draw_differently_is_no_error_of_each_label() -> None:
    # The table calls half of the model's class 0 class 1; one star of class 2 is called 0.
    p = np.array([[0.9, 0.05, 0.05]] * 200 + [[0.05, 0.05, 0.9]] * 200)
    claimed = one_hot(*[0, 1] * 100, *[2] * 199, 0, size=3)
    doubt = doubts(p, claimed)
    assert doubt.argmax() == 399
    assert doubt[1] == pytest.approx(0.5, abs=0.1)
    assert doubts(p, claimed, np.inf)[1] == pytest.approx(0.9 / 0.95)


def test_nothing_known_is_no_doubt_either_way() -> None:
    assert doubts(np.zeros((1, 3)), one_hot(0, size=3), np.inf) == pytest.approx([0.5])
