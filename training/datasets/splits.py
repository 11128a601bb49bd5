"""Splits by star: a star seen by two surveys is in one part only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from training.datasets.tables import ObjectTable

SAME_STAR_ARCSEC = 5.0


def same_star_groups(table: ObjectTable) -> NDArray[np.intp]:
    """(n,) a number for each physical star: rows that share a star_id or lie within SAME_STAR_ARCSEC."""
    names, group = np.unique(table.star_id.astype(str), return_inverse=True)
    parent = np.arange(len(names))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    ra, dec = np.radians(table.ra), np.radians(table.dec)
    vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    chord = 2 * np.sin(np.radians(SAME_STAR_ARCSEC / 3600) / 2)
    for first, second in cKDTree(vectors).query_pairs(chord):
        parent[root(int(group[first]))] = root(int(group[second]))
    return np.array([root(int(g)) for g in group], np.intp)


def split(
    table: ObjectTable, seed: int, fractions: tuple[float, float] = (0.7, 0.1)
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Rows for training, validation and test; ``fractions`` are those of the first two.

    A star's part follows from a hash of its name alone, so that it stays the same when rows are added or reordered. The
    name is the least star_id of the group. The test stars are the same for every ``seed``, which divides only the
    others: what was chosen by looking at one seed's validation stars has seen no other seed's test stars.
    """
    group = same_star_groups(table)
    names: dict[int, str] = {}
    for name, number in zip(table.star_id, group, strict=True):
        names[int(number)] = min(str(name), names.get(int(number), str(name)))
    train, validation = fractions
    kept = train + validation
    part = {
        number: 2 if _uniform(f"0:{name}") >= kept else int(_uniform(f"{seed}:fit:{name}") >= train / kept)
        for number, name in names.items()
    }
    parts = np.array([part[int(number)] for number in group], np.intp)
    return np.flatnonzero(parts == 0), np.flatnonzero(parts == 1), np.flatnonzero(parts == 2)


def part_of_each(size: int, splits: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """(size,) which of the splits each object is in: 0 for training, 1 for validation, 2 for test."""
    part = np.zeros(size, np.intp)
    for which, rows in enumerate(splits):
        part[rows] = which
    return part


def _uniform(text: str) -> float:
    """A number in [0, 1) from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
