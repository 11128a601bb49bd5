from __future__ import annotations

import numpy as np

from broker.taxonomy import CLASS_NAMES
from training.baselines import forest_probabilities
from training.data import Labels


def test_the_forest_learns_what_the_features_tell_and_nothing_from_coarse_labels() -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["EW", "EB", "M"], 600)
    features = rng.normal(size=(600, 31)).astype(np.float32)
    features[:, 0] += 4 * (names == "M") + 8 * (names == "EB")
    # Coarse labels that contradict the features must not count.
    coarse = np.zeros(600, bool)
    coarse[:200] = True
    label = names.astype(object)
    label[:200] = "EW"
    labels = Labels.from_columns(label, np.full(600, "gold", object), coarse)
    test = np.arange(500, 600)
    probabilities = forest_probabilities(features, labels, np.arange(500), test, seed=0)
    assert probabilities.shape == (100, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    best = np.array(CLASS_NAMES)[probabilities.argmax(axis=1)]
    assert np.mean(best == names[test]) > 0.95
