"""Small reference sets for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet

MODEL = "trifid-test 1.0"
LIGHT_CURVE, SPECTRUM, METADATA = 1, 2, 4


def unit(n: int, d: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Random unit vectors (n, d)."""
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def reference_set(
    embeddings: NDArray[np.float32],
    modalities: int | NDArray[np.uint8] = LIGHT_CURVE,
    detections: int | NDArray[np.int32] = 30,
    values: int = 5,
    distances: NDArray[np.float32] | None = None,
    model: str = MODEL,
) -> ReferenceSet:
    """A set of stars ``star 0``, ``star 1``, ...; 200 ``distances`` of each stratum calibrate it by default."""
    size = len(embeddings)
    codes = np.broadcast_to(np.asarray(modalities, np.uint8), size).copy()
    points = np.broadcast_to(np.asarray(detections, np.int32), size).copy()
    known = np.where(codes & METADATA, values, 0).astype(np.int32)
    pairs = np.unique(np.stack([codes, points, known]).astype(np.int64), axis=1)
    own = np.linspace(0, 1, 200, dtype=np.float32) if distances is None else distances
    return ReferenceSet(
        "1.0+abcdef01", model, embeddings, np.array([f"star {i}" for i in range(size)]), np.full(size, "EW"), codes,
        points, known, 5, np.tile(own, pairs.shape[1]), np.repeat(pairs[0], len(own)).astype(np.uint8),
        np.repeat(pairs[1], len(own)).astype(np.int32), np.repeat(pairs[2], len(own)).astype(np.int32),
    )  # fmt: skip


def turned(*degrees: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit vectors in a plane at these angles."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
