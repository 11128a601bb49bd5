"""How surprising a value is among those of calibration stars: a rank, and beyond the largest an exponential tail."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_TAIL: Final = 0.02
"""Share of the calibration that the tail is fitted to (peaks over a threshold: Coles 2001, chapter 4)."""
_LEAST: Final = 10


class Tail:
    """The distribution of one statistic among n calibration stars of one stratum."""

    def __init__(self, values: NDArray[np.floating]) -> None:
        """``values`` (n,): large ones are strange. Needs two or more."""
        self._sorted = np.sort(values.astype(np.float64))
        size = len(self._sorted)
        above = min(max(_LEAST, int(_TAIL * size)), size - 1)
        self._threshold = self._sorted[size - 1 - above]
        # The (n + 1) makes a new star of the same kind uniform, whatever n is.
        self._at_threshold = float(np.log((size + 1) / (above + 1)))
        excess = self._sorted[size - above :] - self._threshold
        self._scale = max(float(excess.mean()), 1e-6)

    def __len__(self) -> int:
        return len(self._sorted)

    def surprise(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(m,) minus the logarithm of the share of stars that are as strange as each of ``values`` (m,); NaN for NaN.

        The share is (1 + those no smaller) / (n + 1), which of a new star of the same kind is uniform, up to the
        largest 2 %; from there it falls exponentially, so that two objects beyond all stars are still told apart.
        """
        size = len(self._sorted)
        no_smaller = size - np.searchsorted(self._sorted, values, side="left")
        inside = np.log((size + 1) / (no_smaller + 1))
        beyond = self._at_threshold + (values - self._threshold) / self._scale
        found: NDArray[np.float64] = np.where(values > self._threshold, beyond, np.minimum(inside, self._at_threshold))
        return np.where(np.isnan(values), np.nan, found)


def share(surprise: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score, 0 to 1, of a surprise: the share of calibration stars that are less strange."""
    result: NDArray[np.float64] = -np.expm1(-surprise)
    return result
