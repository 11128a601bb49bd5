"""From which probability on an object is called ``Other``, by modalities and number of detections.

One threshold for all is that of the worst: of version 2026.11.28.3 it was 0.994, which only stars with 20 points and
more ever reach, so that nothing with fewer was called Other.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from broker.inference.manifest import CALIBRATION_BINS

FEW = 20
"""Detections, below which one class in four is wrong, and most of a real stream is none of the ten."""
MOST_OF_RIGHT, MOST_OF_RIGHT_OF_FEW = 0.003, 0.01
"""Share of the stars of a set, among those whose class is right, that may be called Other: each is a mistake made."""
MOST_OF_ALL = 0.02
"""Share of all stars of a set, those with a wrong class included."""
LEAST_OF_SET = 20
"""Histories in a cell with which a set is heard."""


def other_thresholds(
    probability: NDArray[np.floating],
    right: NDArray[np.bool_],
    group: NDArray[np.str_],
    detections: NDArray[np.integer],
) -> tuple[float, ...]:
    """For each of CALIBRATION_BINS the lowest threshold that takes too many of no set; 1, for never, without sets.

    ``probability`` (n,) of being none of the ten, from the same modalities, of stars of the ten that the network had
    not seen; ``right`` (n,) whether the ten-class answer is right; ``group`` (n,) the set of each. A set with too few
    right stars in a cell to allow one of them is helped by its nearest cells: the probabilities are calibrated in each.
    """
    cell = np.searchsorted(CALIBRATION_BINS[1:], detections, side="right")
    thresholds = []
    for number, first in enumerate(CALIBRATION_BINS):
        share = MOST_OF_RIGHT_OF_FEW if first < FEW else MOST_OF_RIGHT
        highest = []
        for name in np.unique(group).tolist():
            members = np.flatnonzero(group == name)
            distance = np.abs(cell[members] - number)
            own = probability[members[distance == 0]]
            if len(own) < LEAST_OF_SET:
                continue
            near = distance[right[members]]
            reach = next((d for d in range(len(CALIBRATION_BINS)) if _allowed(int((near <= d).sum()), share)), np.inf)
            highest.append(_highest_kept(own, MOST_OF_ALL))
            highest.append(_highest_kept(probability[members[right[members]][near <= reach]], share))
        # Above what the last star that must stay has, by more than the service's rounding.
        thresholds.append(min((math.floor(max(highest) * 1e4) + 1) / 1e4, 1.0) if highest else 1.0)
    return tuple(thresholds)


def _allowed(count: int, share: float) -> int:
    """How many of ``count`` may be called Other so that in the mean ``share`` of stars to come are (conformal)."""
    return math.floor((count + 1) * Fraction(repr(share)))


def _highest_kept(probability: NDArray[np.floating], share: float) -> float:
    """The largest of ``probability`` (n,) but for those that may be taken; 0 for none."""
    size, allowed = len(probability), _allowed(len(probability), share)
    return float(np.sort(probability)[size - 1 - allowed]) if allowed < size else 0.0
