"""The classical rival: a random forest on the period and shape features, without any learnt representation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from broker.taxonomy import CLASS_NAMES
from training.data import Labels

TREES = 500
MIN_LEAF = 2
FEATURE_SHARE = 0.3
"""Of the features, tried at each split: more than a forest's usual root, since few of them tell most classes."""


def new_forest(seed: int, out_of_bag: bool = False) -> RandomForestClassifier:
    """The forest of baseline and teacher, the usual one for variable stars (Richards et al. 2011, ApJ 733, 10)."""
    return RandomForestClassifier(
        TREES, min_samples_leaf=MIN_LEAF, max_features=FEATURE_SHARE, oob_score=out_of_bag, n_jobs=-1, random_state=seed
    )


def forest_probabilities(
    features: NDArray[np.float32],
    labels: Labels,
    train_rows: NDArray[np.intp],
    test_rows: NDArray[np.intp],
    seed: int,
) -> NDArray[np.float64]:
    """Probabilities (m, 10) of ``test_rows``, from the ``features`` (n, k) that the deep model gets, too.

    Trained on certain and weak labels, the latter with their lower weight. A coarse label counts as what it says:
    without Catalina's EW, which are not scored, a forest would never take another star for one, as every other model
    may.
    Forests do best on the stars of one survey: both together cost it 0.8 points on ASAS.
    """
    rows = train_rows[labels.weight[train_rows] > 0]
    forest = new_forest(seed)
    forest.fit(features[rows], labels.index[rows], sample_weight=labels.weight[rows])
    probabilities = np.zeros((len(test_rows), len(CLASS_NAMES)))
    probabilities[:, forest.classes_] = forest.predict_proba(features[test_rows])
    return probabilities
