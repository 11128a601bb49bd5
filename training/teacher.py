"""A forest's opinion of the labels, which the network is taught beside the labels themselves.

Many labels cannot be told from the light curve: below 2 mag, for one, ASAS's long-period variables are half M and
half SR, by what the GCVS says. A network that is taught such labels as certain learns the stars by heart. The
forest's opinion of a star comes from the trees that have not seen it, so that it says how uncertain a label is, and
there is one for stars without a label, too. (Distillation: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.taxonomy import CLASS_NAMES
from training.baselines import new_forest
from training.data import Labels


def forest_opinion(
    features: NDArray[np.float32], labels: Labels, rows: NDArray[np.intp], seed: int
) -> NDArray[np.float32]:
    """(m, 10) probability of each of the catalogue's names for ``rows`` (m,), all of one catalogue.

    ``features`` (n, LIGHT_CURVE_FEATURES). The forest grows on those of ``rows`` whose label counts; the opinion of
    these is that of the trees that were grown without them. Each object has to be another star.
    """
    counts = labels.weight[rows] > 0
    grown = rows[counts]
    forest = new_forest(seed, out_of_bag=True)
    forest.fit(features[grown], labels.index[grown], sample_weight=labels.weight[grown])
    opinion = np.zeros((len(rows), len(CLASS_NAMES)), np.float32)
    opinion[np.ix_(np.flatnonzero(counts), forest.classes_)] = forest.oob_decision_function_
    if not counts.all():
        opinion[np.ix_(np.flatnonzero(~counts), forest.classes_)] = forest.predict_proba(features[rows[~counts]])
    return opinion
