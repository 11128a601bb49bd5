"""How far an object lies from the known stars of the classes that it is taken for, measured by those classes' spacing.

A star of a class that the network was not trained on is put beside its nearest relatives, so near to known stars, but
seldom as near as they are to each other: where a class is crowded the same distance means more than where it is sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.taxonomy import CLASS_NAMES


@dataclass(frozen=True, slots=True, eq=False)
class ClassStars:
    """The s stars of one stratum in one space of p dimensions, class by class."""

    vectors: NDArray[np.float32]
    """(s, p), sorted by class."""
    squares: NDArray[np.float32]
    """(s,) squared lengths."""
    ranges: tuple[tuple[int, slice, float], ...]
    """Of each class with more than k stars its position in CLASSES, its rows, and its spacing: the median over its
    stars of the mean distance to their k nearest of the class."""
    k: int

    @staticmethod
    def of(vectors: NDArray[np.float32], class_index: NDArray[np.integer], k: int) -> ClassStars:
        """Of stars ``vectors`` (s, p) of the classes ``class_index`` (s,)."""
        sorted_classes = class_index
        if (np.diff(class_index) < 0).any():  # else no copy: the model's own set is in the order of the classes
            order = np.argsort(class_index, kind="stable")
            vectors, sorted_classes = vectors[order], class_index[order]
        squares = np.square(vectors).sum(axis=1)
        ranges = []
        for number in np.unique(sorted_classes).tolist():
            first, end = np.searchsorted(sorted_classes, [number, number + 1]).tolist()
            rows = slice(first, end)
            if end - first > k:
                apart = squares[rows, None] + squares[None, rows] - 2.0 * (vectors[rows] @ vectors[rows].T)
                np.fill_diagonal(apart, np.inf)
                ranges.append((number, rows, max(float(np.median(_nearest(apart, k))), 1e-6)))
        return ClassStars(vectors, squares, tuple(ranges), k)

    def spacings(
        self, vectors: NDArray[np.float32], products: NDArray[np.float32], probabilities: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """(m,) mean distance of ``vectors`` (m, p) to the k nearest of a class in units of its spacing.

        The mean over the classes, weighted by ``probabilities`` (m, 10); ``products`` (m, s) are those with the stars.
        NaN where no class that has a probability has stars enough.
        """
        # Of each star and object but for the object's own squared length, which changes no order.
        relative = self.squares - 2.0 * products
        own_squares = np.square(vectors).sum(axis=1, dtype=np.float64)
        total, weight = np.zeros(len(vectors)), np.zeros(len(vectors))
        for number, rows, spacing in self.ranges:
            own = probabilities[:, number].astype(np.float64)
            total += own * _nearest(relative[:, rows], self.k, own_squares) / spacing
            weight += own
        found: NDArray[np.float64] = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)
        return found


def class_numbers(names: NDArray[np.str_]) -> NDArray[np.intp]:
    """(n,) positions in CLASSES of ``names`` (n,)."""
    position = {name: i for i, name in enumerate(CLASS_NAMES)}
    return np.array([position[name] for name in names.tolist()], np.intp)


def _nearest(squared: NDArray[np.float32], k: int, more: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    """(m,) the mean of the k smallest distances of each row: ``squared`` (m, s), to which ``more`` (m,) is added."""
    smallest = np.partition(squared, k - 1, axis=1)[:, :k].T + more
    result: NDArray[np.float64] = np.sqrt(np.maximum(smallest, 0.0)).sum(axis=0, dtype=np.float64) / k
    return result
