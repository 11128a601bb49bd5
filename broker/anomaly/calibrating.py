"""Calibrating a reference set by stars that are not in it: their distances, and the statistics of combined scores."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibration import COLUMNS, COMBINED, Calibration
from broker.anomaly.combine import sums_of, surprises_of
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import nearest
from broker.anomaly.shape import Shapes
from broker.anomaly.statistics import Objects, class_centres, statistics_of, whitening_of

AXES: Final = 128
"""Directions that the Mahalanobis distance is measured along, of 512: those in which stars of a class scatter most."""
_FARTHEST: Final = 2.0
"""Between unit vectors: the distance of a star where its stratum has too few embeddings."""


def distances_of(
    reference: ReferenceSet, embeddings: NDArray[np.float32], strata: NDArray[np.intp]
) -> NDArray[np.float32]:
    """(m,) the anomaly distance of each of ``embeddings`` (m, d), unit vectors, within its own stratum (m,)."""
    result = np.full(len(embeddings), _FARTHEST, np.float32)
    for number in np.unique(strata).tolist():
        stratum = reference.strata.get(number)
        if stratum is None or len(stratum.embeddings) < reference.k:
            continue
        own = strata == number
        distances, _ = nearest(stratum.embeddings, embeddings[own], reference.k)
        result[own] = distances.mean(axis=1)
    return result


def calibration_of(reference: ReferenceSet, objects: Objects, shapes: Shapes) -> Calibration:
    """What calibrates combined scores by ``reference``, from m ``objects`` that are neither in it nor trained on.

    ``shapes`` are those of known stars.
    """
    whitening = whitening_of(reference, AXES).astype(np.float16).astype(np.float32)  # as it comes back from the file
    statistics, _ = statistics_of(objects, reference, class_centres(reference, whitening), whitening, shapes)
    strata = objects.strata().astype(np.int32)
    values = np.full((len(strata), len(COLUMNS) + len(COMBINED)), np.nan, np.float32)
    for column, name in enumerate(COLUMNS):
        values[:, column] = statistics[name]
    parts = Calibration(reference.model, reference.version, whitening, strata, values, shapes)
    values = values.copy()
    values[:, len(COLUMNS) :] = np.stack(sums_of(surprises_of(statistics, objects, parts)), axis=1)
    return Calibration(reference.model, reference.version, whitening, strata, values, shapes)
