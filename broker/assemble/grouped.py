"""Medians and quantiles of many groups at once: no loop over the objects of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_median(value: NDArray[np.float64], group: NDArray[np.intp], groups: int) -> NDArray[np.float64]:
    """Median of each group, (groups,); 0 for an empty group."""
    median: NDArray[np.float64] = group_quantiles(value, group, groups, (0.5,))[0]
    return median


def group_quantiles(
    value: NDArray[np.float64], group: NDArray[np.intp], groups: int, quantiles: Sequence[float]
) -> NDArray[np.float64]:
    """(len(quantiles), groups) the quantiles, interpolated between ranks; 0 for an empty group."""
    count = np.bincount(group, minlength=groups)
    ordered = value[np.lexsort((value, group))]
    result = np.zeros((len(quantiles), groups))
    filled = count > 0
    start, last = (np.cumsum(count) - count)[filled], count[filled] - 1
    for out, quantile in zip(result, quantiles, strict=True):
        rank = last * quantile
        below = rank.astype(np.intp)
        low, high = ordered[start + below], ordered[start + np.minimum(below + 1, last)]
        out[filled] = low + (rank - below) * (high - low)
    return result
