"""How far an alert lies from everything in the reference set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.strata import stratum_name
from broker.blas import one_blas_thread
from broker.records import Neighbour

_BLOCK: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyScores:
    """Scores of one batch; each object is compared with the embeddings of its own stratum alone."""

    version: str
    """Of the reference set."""
    distance: NDArray[np.float32]
    """(batch,) mean Euclidean distance to the k nearest reference embeddings, 0 to 2; NaN where there is no score."""
    percentile: NDArray[np.float32]
    """(batch,) share of the calibration's distances that are no larger; NaN where there is no score."""
    neighbours: list[tuple[Neighbour, ...]]
    """The objects of the k nearest reference embeddings of each row, nearest first, each object once."""
    reasons: list[str | None]
    """Why a row has no score; None where it has one."""


def score(reference: ReferenceSet, embeddings: NDArray[np.float32], strata: NDArray[np.integer]) -> AnomalyScores:
    """Exact k-nearest-neighbour scores of ``embeddings`` (batch, d), unit vectors; see ``AnomalyScores``.

    ``strata`` (batch,) says of what each was made, as ``strata_of_inputs``. One matrix product for each stratum that
    the batch has rows of; all of them together are no larger than the product with the whole set.
    """
    size = len(embeddings)
    distance, percentile = np.full(size, np.nan, np.float32), np.full(size, np.nan, np.float32)
    neighbours: list[tuple[Neighbour, ...]] = [()] * size
    reasons: list[str | None] = [None] * size
    for number in np.unique(strata).tolist():
        rows = np.flatnonzero(strata == number)
        problem = _problem(reference, number)
        if problem is not None:
            for row in rows.tolist():
                reasons[row] = problem
            continue
        stratum = reference.strata[number]
        distances, index = nearest(stratum.embeddings, embeddings[rows], reference.k)
        mean = distances.mean(axis=1)
        rank = np.searchsorted(stratum.calibration, mean, side="right")
        distance[rows], percentile[rows] = mean, rank / len(stratum.calibration)
        index += stratum.first
        names, classes = reference.object_ids[index].tolist(), reference.class_names[index].tolist()
        for row, *found in zip(rows.tolist(), names, classes, distances.tolist(), strict=True):
            neighbours[row] = _distinct(map(Neighbour, *found))
    return AnomalyScores(reference.version, distance, percentile, neighbours, reasons)


def _problem(reference: ReferenceSet, number: int) -> str | None:
    """Why the reference set cannot score an object of this stratum."""
    if number < 0:
        return "no modality is present"
    if number not in reference.strata:
        return f"the reference set {reference.version} has nothing of {stratum_name(number)}"
    problem = reference.strata[number].problem
    return None if problem is None else f"the reference set {reference.version} has {problem}"


def _distinct(neighbours: Iterable[Neighbour]) -> tuple[Neighbour, ...]:
    """Each object once, by its nearest embedding."""
    by_object: dict[str, Neighbour] = {}
    for neighbour in neighbours:
        by_object.setdefault(neighbour.object_id, neighbour)
    return tuple(by_object.values())


def nearest(
    reference: NDArray[np.float32], embeddings: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Distances and indices (batch, k) of the k nearest of ``reference`` (n, d), nearest first; unit vectors.

    One matrix product: |a - b|^2 = 2 - 2 a.b. The distances of the k found are then computed from the
    differences themselves, since for close vectors the product loses half of the digits.
    """
    with one_blas_thread():
        products = embeddings @ reference.T
    index = _largest(products, k)
    distance: NDArray[np.float32] = np.linalg.norm(reference[index] - embeddings[:, None], axis=2)
    order = np.argsort(distance, axis=1)
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(index, order, axis=1)


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices (batch, k), in no order, of the k largest of each row of ``values`` (batch, n).

    Only the k blocks with the largest maxima can hold them: most values are looked at once, and never sorted.
    """
    rows, n = values.shape
    blocks = n // _BLOCK
    if blocks <= k:
        return _partitioned(values, k)
    end = blocks * _BLOCK
    maxima = values[:, :end].reshape(rows, blocks, _BLOCK).max(axis=2)
    best = _partitioned(maxima, k)
    inside = (best[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(rows, -1)
    rest = np.broadcast_to(np.arange(end, n), (rows, n - end))
    candidates = np.concatenate([inside, rest], axis=1)
    found = _partitioned(np.take_along_axis(values, candidates, axis=1), k)
    return np.take_along_axis(candidates, found, axis=1)


def _partitioned(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    first = values.shape[1] - k
    return np.argpartition(values, first, axis=1)[:, first:]
