"""The forest's opinion: honest about what cannot be told, and given to stars without a label."""

from __future__ import annotations

import numpy as np

from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.teacher import forest_opinion

SR, M, EW = (CLASS_NAMES.index(name) for name in ("SR", "M", "EW"))


def labels_and_features() -> tuple[Labels, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Stars whose first feature tells EW from the rest; nothing tells SR from M, which is twice as frequent."""
    rng = np.random.default_rng(0)
    names = rng.choice(["EW", "SR", "M", "M"], 1200).astype(object)
    features = rng.normal(size=(1200, 6)).astype(np.float32)
    features[:, 0] += 8 * (names == "EW")
    quality = np.full(1200, "gold", object)
    names[1100:], quality[1100:] = None, None
    return Labels.from_columns(names, quality, np.zeros(1200, bool)), features


def test_the_opinion_is_certain_where_it_can_be_and_uncertain_where_not() -> None:
    labels, features = labels_and_features()
    rows = np.arange(1200)
    opinion = forest_opinion(features, labels, rows, seed=0)
    np.testing.assert_allclose(opinion.sum(axis=1), 1, atol=1e-5)
    own = opinion[np.arange(1100), labels.index[:1100]]
    eclipsing = labels.index[:1100] == EW
    assert own[eclipsing].mean() > 0.8
    # Trees that had seen the stars would be nearly sure of these, too.
    assert 0.25 < opinion[:1100][~eclipsing, SR].mean() < 0.42
    assert own[~eclipsing].mean() < 0.65
    unlabelled = features[1100:, 0] > 4
    assert opinion[1100:][unlabelled, EW].mean() > 0.8
    assert opinion[1100:][~unlabelled, EW].mean() < 0.1


def test_labels_are_mixed_with_the_opinion_and_unlabelled_stars_get_it() -> None:
    labels, features = labels_and_features()
    rows = np.arange(1000, 1200)
    opinion = forest_opinion(features, labels, rows, seed=0)
    taught = labels.with_teacher(rows, opinion, share=0.4)
    np.testing.assert_array_equal(taught.target[:1000], labels.target[:1000])
    mixed = 0.6 * labels.target[1000:1100] + 0.4 * opinion[:100]
    np.testing.assert_allclose(taught.target[1000:1100], mixed, rtol=1e-5)
    np.testing.assert_array_equal(taught.target[1100:], opinion[100:])
    np.testing.assert_allclose(taught.weight[1000:1100], 1.0)
    np.testing.assert_allclose(taught.weight[1100:], 0.4)
    assert not taught.scored[1100:].any()
    none = labels.only(np.arange(5))
    assert none.weight.sum() == 5
