"""What one catalogue calls the stars of a class that it does not have as we do, from the stars that both have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.datasets.tables import ObjectTable

PRIOR_STARS = 20.0
"""Stars of each class that are taken to be named alike, beside those that are seen."""
LUMPED = {"css": ("EB",)}
"""Classes that a catalogue lumps with others, by survey: Catalina's EA and EW are detached and contact binaries, and
most semi-detached ones are under the one or the other (Drake et al. 2017, MNRAS 469, 3688, section 3)."""


def name_counts(
    table: ObjectTable,
    index: NDArray[np.int64],
    usable: NDArray[np.bool_],
    rows: NDArray[np.intp],
    reference: str,
    other: str,
) -> NDArray[np.int64]:
    """(10, 10) how many stars of a class by survey ``reference`` (rows) have which label by ``other`` (columns).

    Over the stars among ``rows`` that ``reference`` has with a label of its own (``usable`` (n,),
    ``Labels.named``) and ``other`` with any; ``index`` (n,) is each object's labelled class, -1 for none.
    """
    named = rows[(table.survey[rows] == other) & (index[rows] >= 0)]
    by_star = dict(zip(table.star_id[named], index[named], strict=True))
    counts = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    for row in rows[(table.survey[rows] == reference) & usable[rows]]:
        if (theirs := by_star.get(table.star_id[row])) is not None:
            counts[index[row], theirs] += 1
    return counts


def catalogue_confusion(counts: NDArray[np.int64], survey: str) -> NDArray[np.float32]:
    """(10, 10) probability that ``survey`` gives a star of the row's class the column's label.

    From the ``counts`` of ``name_counts`` for the classes that the survey lumps. The others are taken as they are:
    where two catalogues differ on a star, either may be wrong.
    """
    confusion = np.eye(len(CLASS_NAMES), dtype=np.float32)
    for name in LUMPED.get(survey, ()):
        row = PRIOR_STARS * confusion[CLASS_INDEX[name]] + counts[CLASS_INDEX[name]]
        confusion[CLASS_INDEX[name]] = row / row.sum()
    return confusion
