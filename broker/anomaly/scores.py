"""How far an alert lies from everything in the reference set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.records import Neighbour

_CHUNK: Final = 1024
_BLOCK: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyScores:
    """Scores of one batch."""

    version: str
    """Of the reference set."""
    distance: NDArray[np.float32]
    """(batch,) mean Euclidean distance to the k nearest reference embeddings, 0 to 2."""
    percentile: NDArray[np.float32]
    """(batch,) share of the reference objects that are no farther from their own neighbours."""
    neighbours: list[tuple[Neighbour, ...]]
    """The objects of the k nearest reference embeddings of each row, nearest first, each object once."""


def score(reference: ReferenceSet, embeddings: NDArray[np.float32]) -> AnomalyScores:
    """Exact k-nearest-neighbour scores of ``embeddings`` (batch, 512), unit vectors."""
    distances, index = nearest(reference.embeddings, embeddings, reference.k)
    distance = distances.mean(axis=1)
    rank = np.searchsorted(reference.calibration_distances, distance, side="right")
    names, classes = reference.object_ids[index].tolist(), reference.class_names[index].tolist()
    return AnomalyScores(
        version=reference.version,
        distance=distance,
        percentile=(rank / len(reference.calibration_distances)).astype(np.float32),
        neighbours=[_distinct(map(Neighbour, *row)) for row in zip(names, classes, distances.tolist(), strict=True)],
    )


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
    distance, index = _most_similar(embeddings @ reference.T, reference, embeddings, k)
    order = np.argsort(distance, axis=1)
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(index, order, axis=1)


def _most_similar(
    similarity: NDArray[np.float32], reference: NDArray[np.float32], embeddings: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Distances and indices (batch, k), in no order, of the k of ``reference`` with the largest ``similarity``."""
    index = _largest(similarity, k)
    distance: NDArray[np.float32] = np.linalg.norm(reference[index] - embeddings[:, None], axis=2)
    return distance, index


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


def leave_one_out_distances(
    embeddings: NDArray[np.float32], objects: NDArray[np.integer], k: int
) -> NDArray[np.float32]:
    """(n,) mean distance of each of ``embeddings`` (n, d) to its k nearest of other objects.

    ``objects`` (n,) tells which object each is of: several embeddings of one star are no neighbours.
    """
    result = np.empty(len(embeddings), np.float32)
    for first in range(0, len(embeddings), _CHUNK):
        part = embeddings[first : first + _CHUNK]
        similarity = part @ embeddings.T
        similarity[objects[first : first + _CHUNK, None] == objects[None, :]] = -np.inf
        distance, _ = _most_similar(similarity, embeddings, part, k)
        result[first : first + len(part)] = distance.mean(axis=1)
    return result
