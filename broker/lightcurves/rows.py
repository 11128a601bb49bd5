"""Rows of a table of light curves and the points that they hold, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n rows of a table and the m points they hold, row by row."""

    name: NDArray[np.object_]
    ra: NDArray[np.float64]
    """(n,) ICRS degrees as they stand in the table, as ``dec``: NaN where there is none, infinite for other text."""
    dec: NDArray[np.float64]
    start: NDArray[np.int64]
    """(n + 1,) the points of row i are ``start[i]:start[i + 1]``."""
    points: NDArray[np.float64]
    """(3, m) time, magnitude, error as they stand in the table."""
    band: NDArray[np.uint8]
    """(m,) index into BANDS; of unknown ones, numbers from NO_BAND down (``_Report.unknown_band``)."""
    reason: NDArray[np.uint8]
    """(m,) LeftOut, as far as the values alone tell."""
    uneven: NDArray[np.bool_]
    """(n,) whether the row's lists differ in length; it then has no points."""

    def __len__(self) -> int:
        return len(self.name)

    def slice(self, first: int, last: int) -> Rows:
        """Rows ``first`` to ``last``, without the latter."""
        low, high = self.start[first], self.start[last]
        return Rows(
            self.name[first:last], self.ra[first:last], self.dec[first:last], self.start[first : last + 1] - low,
            self.points[:, low:high], self.band[low:high], self.reason[low:high], self.uneven[first:last],
        )  # fmt: skip

    def take(self, rows: NDArray[np.intp]) -> Rows:
        """The rows with these numbers, in this order."""
        size = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(size)])
        points = np.repeat(self.start[rows] - start[:-1], size) + np.arange(start[-1])
        return Rows(
            self.name[rows], self.ra[rows], self.dec[rows], start,
            self.points[:, points], self.band[points], self.reason[points], self.uneven[rows],
        )  # fmt: skip


def join(parts: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    sizes = np.concatenate([np.diff(part.start) for part in parts])
    return Rows(
        np.concatenate([part.name for part in parts]),
        np.concatenate([part.ra for part in parts]),
        np.concatenate([part.dec for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([part.points for part in parts], axis=1),
        np.concatenate([part.band for part in parts]),
        np.concatenate([part.reason for part in parts]),
        np.concatenate([part.uneven for part in parts]),
    )


def gather(rows: Rows) -> Rows:
    """The rows of each name together, names in the order of their first rows."""
    number = pa.array(rows.name, pa.string()).dictionary_encode().indices.to_numpy()
    return rows.take(np.argsort(number, kind="stable"))


def run_bounds(names: NDArray[np.object_]) -> NDArray[np.intp]:
    """Where runs of equal names begin, and the end of the last."""
    return np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1, [len(names)]])
