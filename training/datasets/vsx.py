"""Labels against VSX: where a star's own label and the type that VSX gives it differ, the star is not scored.

Neither is the truth. ASAS's M and SR were told apart by amplitude, its EB from EW and EA by Fourier coefficients; VSX
(Watson et al. 2006, SASS 25, 47) has the type of whoever looked last. What both say is more certain than what one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from broker.catalog.types import known_type
from broker.errors import InputFileError

FILE = "vsx_2022.parquet"
DISPUTED = "disputed"
"""Quality of a label that VSX contradicts."""
RADIUS = 5.0
"""Arcsec; ASAS's positions are good to 3 to 5. With 47 stars of VSX in a square degree 0.03 % match by chance."""


def types_at(data: Path, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> list[tuple[str, ...]]:
    """VSX's types of all its stars within RADIUS of each position (n,), ICRS degrees; none without the file.

    Raises InputFileError where the file cannot be read.
    """
    found: list[tuple[str, ...]] = [()] * len(ra)
    path = data / FILE
    rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if not path.exists() or not len(rows):
        return found
    xyz, code, names = _catalogue(path)
    chord = 2 * np.sin(np.radians(RADIUS / 3600) / 2)
    own = _vectors(ra[rows], dec[rows])
    near = np.flatnonzero(np.isfinite(cKDTree(own).query(xyz, distance_upper_bound=chord)[0]))
    if not len(near):
        return found
    for row, at in zip(rows.tolist(), cKDTree(xyz[near]).query_ball_point(own, chord), strict=True):
        found[row] = tuple(names[code[near[i]]] for i in at)
    return found


@lru_cache(maxsize=1)
def _catalogue(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Unit vectors (n, 3), numbers (n,) of types and the types; those that are certain and among our classes."""
    try:
        table = pq.read_table(path, columns=["ra_e5", "dec_e5", "vsx_type"])
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error
    types: Any = table["vsx_type"].combine_chunks()
    types = types if pa.types.is_dictionary(types.type) else types.dictionary_encode()
    names = [str(name) for name in types.dictionary.to_pylist()]
    index = types.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    kept = np.flatnonzero(np.array([*(known_type(name).comparable for name in names), False])[index])
    ra, dec = (np.asarray(table[c].to_numpy(), np.float64)[kept] / 1e5 for c in ("ra_e5", "dec_e5"))
    return _vectors(ra, dec), index[kept], names


def _vectors(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def contradicted(
    data: Path,
    label: NDArray[np.object_],
    coarse: NDArray[np.bool_],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """(n,) which labels are none of the classes that any star of VSX at the place may have.

    A type that leaves the class open (E, RR, L) contradicts none of its classes, an uncertain one (``EW:``) nothing at
    all. A ``coarse`` EW means EW or EB. Without VSX in ``data`` nothing is contradicted.
    """
    result = np.zeros(len(label), np.bool_)
    for row, types in enumerate(types_at(data, ra, dec)):
        if types and label[row]:
            said = {"EW", "EB"} if coarse[row] else {label[row]}
            result[row] = said.isdisjoint(_classes(types))
    return result


def _classes(types: Sequence[str]) -> frozenset[str]:
    return frozenset[str]().union(*(known_type(text).classes for text in types))
