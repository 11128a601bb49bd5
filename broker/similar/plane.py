"""Embeddings of light curves in a plane, to be looked at: the two directions in which the classes differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.statistics import whitening_of
from broker.anomaly.strata import LIGHT_CURVE_BIT
from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_NAMES

_DIRECTIONS: Final = 64
"""Of scatter within the classes, as of which distances between these are measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Fisher's linear discriminants (1936) of a reference set's light curves, the first two."""

    axes: NDArray[np.float64]
    """(2, d)"""
    middle: NDArray[np.float64]
    """(2,) that of all classes along the axes."""
    known: NDArray[np.float64]
    """(n, 2) the reference stars."""
    class_names: NDArray[np.str_]
    """(n,) their classes."""

    @classmethod
    def of(cls, reference: ReferenceSet) -> Plane:
        """By the stars of which the set has light curves alone; raises ConfigurationError where it has too few."""
        rows = reference.modalities == LIGHT_CURVE_BIT
        names = reference.class_names[rows].astype(str)
        present = [name for name in CLASS_NAMES if np.any(names == name)]
        if len(present) < 3:
            raise ConfigurationError(f"reference set {reference.version} has light curves of {len(present)} classes")
        white = whitening_of(reference, _DIRECTIONS)[LIGHT_CURVE_BIT - 1].astype(np.float64)
        stars = reference.embeddings[rows].astype(np.float64)
        means = np.stack([stars[names == name].mean(axis=0) for name in present]) @ white.T
        directions = np.linalg.svd(means - means.mean(axis=0))[2][:2]
        axes = directions @ white
        middle = means.mean(axis=0) @ directions.T
        return cls(axes, middle, stars @ axes.T - middle, names)

    def of_vectors(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(n, 2) where embeddings of light curves (n, d) are."""
        return vectors.astype(np.float64) @ self.axes.T - self.middle
