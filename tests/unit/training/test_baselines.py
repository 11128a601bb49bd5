from __future__ import annotations

import numpy as np

from broker.taxonomy import CLASS_NAMES
from training.baselines import forest_probabilities
from training.data import Labels


def test_the_forest_learns_what_the_features_tell_by_the_weight_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["EW", "EB", "M"], 600)
    features = rng.normal(size=(600, 31)).astype(np.float32)
    features[:, 0] += 4 * (names == "M") + 8 * (names == "EB")
    # Labels in conflict that contradict the features must not count.
    label, quality = names.astype(object), np.full(600, "gold", object)
    label[:200], quality[:200] = "EW", "conflict"
    labels = Labels.from_columns(label, quality, np.zeros(600, bool))
    test = np.arange(500, 600)
    probabilities = forest_probabilities(features, labels, np.arange(500), test, seed=0)
    assert probabilities.shape == (100, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    best = np.array(CLASS_NAMES)[probabilities.argmax(axis=1)]
    assert np.mean(best == names[test]) > 0.95
