"""Time of anomaly scores for one batch of 256 objects: neighbours alone, as before, and the combined score besides.

``python -m benchmarks.anomaly_cost``: objects are the reference set's own embeddings, of light curves with and without
catalogue values in all lengths, in turn within one run; CPU time, the median of 20.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from broker.anomaly.calibration import Scorer, with_scores
from broker.anomaly.combine import combine
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import score
from broker.anomaly.shape import LEAST_POINTS
from broker.anomaly.statistics import Objects
from broker.models.repository import REFERENCE_SET_FILE
from broker.taxonomy import CLASS_NAMES
from tests.random_models import MODEL_REPO

BATCH, ROUNDS = 256, 20


def objects_of(reference: ReferenceSet) -> Objects:
    """A batch, of which half have catalogue values."""
    rng = np.random.default_rng(0)
    alone, both = (rng.choice(np.flatnonzero(reference.modalities == code), BATCH // 2) for code in (1, 5))
    rows = np.concatenate([alone, both])
    present = (reference.modalities[rows, None] >> np.arange(3) & 1).astype(np.bool_)
    embeddings = reference.embeddings[rows]
    by_modality = embeddings[:, None] * present[..., None].astype(np.float32)
    probabilities = rng.dirichlet(np.full(len(CLASS_NAMES), 0.2), BATCH).astype(np.float32)
    doubt = np.full(BATCH, np.nan)
    assert reference.scores is not None
    shapes = rng.choice(reference.scores.shapes.values, BATCH)
    shapes[reference.detections[rows] < LEAST_POINTS] = np.nan
    return Objects(
        embeddings, by_modality, probabilities, present, reference.detections[rows], reference.values[rows], doubt,
        shapes,
    )  # fmt: skip


def median_ms(calls: list[Callable[[], object]]) -> list[float]:
    """CPU milliseconds of each call, called in turn."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, spent, strict=True):
            start = time.process_time()
            call()
            times.append(1e3 * (time.process_time() - start))
    return [float(np.median(times)) for times in spent]


if __name__ == "__main__":
    path = MODEL_REPO / REFERENCE_SET_FILE
    known = with_scores(ReferenceSet.load_npz(path), path)
    assert known.scores is not None
    scorer, batch = Scorer(known, known.scores), objects_of(known)
    distance = score(known, batch.embeddings, batch.strata()).distance
    before, more = median_ms(
        [
            lambda: score(known, batch.embeddings, batch.strata()),
            lambda: combine(scorer, batch, distance),
        ]
    )
    each = more / BATCH
    print(f"batch of {BATCH}: neighbours {before:.1f} ms, combined score {more:.1f} ms more, {each:.3f} an object")
