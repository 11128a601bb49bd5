"""The classical rival: a random forest on the period and shape features, without any learnt representation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from broker.taxonomy import CLASS_NAMES
from training.data import Labels

TREES = 500
MIN_LEAF = 2


def forest_probabilities(
    features: NDArray[np.float32],
    labels: Labels,
    train_rows: NDArray[np.intp],
    test_rows: Sequence[NDArray[np.intp]],
    seed: int,
) -> list[NDArray[np.float64]]:
    """Probabilities (m, 10) of each set of test rows, from the ``features`` (n, k) that the deep model gets, too.

    A forest of TREES trees, the usual baseline for variable stars (Richards et al. 2011, ApJ 733, 10), balanced by
    class within each tree. Trained on certain and weak labels, the latter with their lower weight; coarse labels
    are left out, since a forest needs one class a star.
    """
    rows = train_rows[(labels.weight[train_rows] > 0) & ~labels.coarse[train_rows]]
    forest = RandomForestClassifier(
        TREES, min_samples_leaf=MIN_LEAF, class_weight="balanced_subsample", n_jobs=-1, random_state=seed
    )
    forest.fit(features[rows], labels.index[rows], sample_weight=labels.weight[rows])
    results = []
    for chosen in test_rows:
        probabilities = np.zeros((len(chosen), len(CLASS_NAMES)))
        probabilities[:, forest.classes_] = forest.predict_proba(features[chosen])
        results.append(probabilities)
    return results
