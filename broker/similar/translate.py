"""From one modality's embeddings to another's, by the classes that both tell of.

The encoders of the published models are trained apart after the contrastive stage, and cosines across modalities are at
chance (`python -m training similarity`). What the modalities share is the classes: an embedding's classes, by its
nearest reference stars, name a place among the embeddings of the other modality.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES

NEIGHBOURS: Final = 10
"""Reference stars whose classes count: of each class and modality there are 40 or more."""
Vectors = NDArray[np.floating[Any]]


class Translator:
    """By the stars of a reference set that have one modality alone."""

    def __init__(self, reference: ReferenceSet) -> None:
        """Of the model whose embeddings are to be translated."""
        self._known: dict[str, tuple[Vectors, NDArray[np.intp]]] = {}
        self._centroids: dict[str, Vectors] = {}
        labels = np.array([CLASS_INDEX[name] for name in reference.class_names.tolist()], np.intp)
        for bit, name in enumerate(MODALITIES):
            rows = reference.modalities == 1 << bit
            if len(np.unique(labels[rows])) == len(CLASS_NAMES):
                self._known[name] = reference.embeddings[rows], labels[rows]
                self._centroids[name] = np.stack(
                    [_unit(reference.embeddings[rows & (labels == c)].mean(axis=0)) for c in range(len(CLASS_NAMES))]
                )

    def translate(self, vectors: Vectors, of: str, to: str) -> Vectors:
        """Where vectors (n, d) of the modality ``of`` are in the space of ``to``: (n, d) unit vectors.

        The mean of the classes' centroids there, weighted by the classes of the NEIGHBOURS nearest stars of ``of``.
        Raises ConfigurationError where the reference set does not have all classes of both modalities.
        """
        for name in (of, to):
            if name not in self._known:
                raise ConfigurationError(f"the reference set has no stars of all classes with {name} alone")
        known, labels = self._known[of]
        cosines = vectors @ known.T
        nearest = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        shares = np.zeros((len(vectors), len(CLASS_NAMES)))
        np.add.at(shares, (np.arange(len(vectors))[:, None], labels[nearest]), 1.0 / NEIGHBOURS)
        return _unit(shares @ self._centroids[to])


def _unit(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return found
