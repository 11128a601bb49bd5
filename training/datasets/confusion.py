"""How one catalogue names the stars of another's classes, from the stars that both have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.taxonomy import CLASS_NAMES
from training.datasets.tables import ObjectTable

PRIOR_STARS = 20.0
"""Stars of each class that are taken to be named alike, beside those that are seen."""


def catalogue_confusion(
    table: ObjectTable,
    index: NDArray[np.int64],
    scored: NDArray[np.bool_],
    rows: NDArray[np.intp],
    reference: str,
    other: str,
) -> NDArray[np.float32]:
    """(10, 10) probability that ``other`` gives a star of the row's class the column's label.

    Counted over the stars among ``rows`` that survey ``reference`` has with a label that may be scored (``scored``
    (n,)) and ``other`` with any; ``index`` (n,) is each object's labelled class, -1 for none. Of ASAS's beta Lyrae
    stars (EB), for one, Catalina calls half EA and a quarter EW.
    """
    named = rows[(table.survey[rows] == other) & (index[rows] >= 0)]
    by_star = dict(zip(table.star_id[named], index[named], strict=True))
    counts = PRIOR_STARS * np.eye(len(CLASS_NAMES))
    for row in rows[(table.survey[rows] == reference) & scored[rows]]:
        if (theirs := by_star.get(table.star_id[row])) is not None:
            counts[index[row], theirs] += 1
    confusion: NDArray[np.float32] = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return confusion
