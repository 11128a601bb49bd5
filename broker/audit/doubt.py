"""How doubtful a label is, by probabilities of a model that was not trained on the star.

A label's quality is the probability that the model has for it (confident learning: Northcutt, Jiang & Chuang 2021,
JAIR 70, 1373), after what the table calls the model's classes is taken into account: a matrix of the probability that a
star of one class gets each label (forward correction: Patrini et al. 2017, CVPR, arXiv 1609.03683), counted over the
table itself. Where a catalogue and the model draw the line between M and SR, or EA and EB, at different places, that is
no error of each such label. A label may leave its class open (``E``, ``RR``): then it has the probabilities of all of
its classes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

PRIOR: Final = 20.0
"""Stars of each class that are taken to have the right label before the table's own are counted; chosen on validation
stars (``python -m training audit-precision --part validation``), where 5 to 20 give the same, and less is worse for
tables of a hundred stars."""
LIKELY_WRONG: Final = 0.9
"""Doubt from which a label is called likely wrong."""
_PIECE: Final = 10_000


def self_confidence(probabilities: NDArray[np.floating], claimed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) probability of the classes of the label; ``probabilities`` and ``claimed`` (n, k), each label with some."""
    result: NDArray[np.float64] = np.where(claimed, probabilities, 0.0).sum(axis=1, dtype=np.float64)
    return result


def doubts(
    probabilities: NDArray[np.floating], claimed: NDArray[np.bool_], prior: float = PRIOR
) -> NDArray[np.float64]:
    """(n,) 0 to 1: the share that the best label it excludes has of its and the label's probability.

    0.5 is a label as probable as the best other one. Both arrays (n, k) as in ``self_confidence``; ``prior`` inf leaves
    the model's probabilities as they are.
    """
    labels = as_labelled(probabilities, claimed, prior) if np.isfinite(prior) else probabilities.astype(np.float64)
    other = np.where(claimed, 0.0, labels).max(axis=1)
    total = self_confidence(labels, claimed) + other
    return np.where(total > 0.0, other / np.where(total > 0.0, total, 1.0), 0.5)


def as_labelled(
    probabilities: NDArray[np.floating], claimed: NDArray[np.bool_], prior: float = PRIOR
) -> NDArray[np.float64]:
    """(n, k) probability of each label in the table's own usage, for each star by all the others' labels.

    Labels that leave the class open are not counted. A star's own label never speaks for itself.
    """
    p = probabilities.astype(np.float64)
    size = p.shape[1]
    own = np.where((claimed.sum(axis=1) == 1)[:, None], claimed, False).astype(np.float64)
    counts = p.T @ own + prior * np.eye(size)
    totals = p.T @ own.sum(axis=1) + prior
    result = np.empty_like(p)
    for first in range(0, len(p), _PIECE):
        piece = slice(first, first + _PIECE)
        mine, label = p[piece], own[piece]
        others = counts[None] - mine[:, :, None] * label[:, None, :]
        left = totals[None] - mine * label.sum(axis=1)[:, None]
        result[piece] = np.einsum("nk,nkj->nj", mine / left, others)
    return result
