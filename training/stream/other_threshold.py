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
MOST_OF_FEW_STARS = {MOST_OF_RIGHT: 0.005, MOST_OF_RIGHT_OF_FEW: 0.02}
"""The same where a set has so few stars in a cell and those near to it that a single one would decide: a catalogue's
label may be wrong, and the second highest decides where it allows no more than this."""
MOST_OF_ALL = 0.02
"""Share of all stars of a set, those with a wrong class included."""
LEAST_OF_SET = 20
"""Histories in a cell with which a set is heard."""


def other_thresholds(
    probability: NDArray[np.floating],
    right: NDArray[np.bool_],
    group: NDArray[np.str_],
    detections: NDArray[np.integer],
    few: int = FEW,
) -> tuple[float, ...]:
    """For each of CALIBRATION_BINS the lowest threshold that takes too many of no set; 1, for never, without sets.

    ``probability`` (n,) of being none of the ten, from the same modalities, of stars of the ten that the network had
    not seen; ``right`` (n,) whether the ten-class answer is right; ``group`` (n,) the set of each. A set with too few
    right stars in a cell is helped by its nearest cells: the probabilities are calibrated in each. Below ``few``
    detections MOST_OF_RIGHT_OF_FEW may be taken.
    """
    cell = np.searchsorted(CALIBRATION_BINS[1:], detections, side="right")
    thresholds = []
    for number, first in enumerate(CALIBRATION_BINS):
        share = MOST_OF_RIGHT_OF_FEW if first < few else MOST_OF_RIGHT
        highest = []
        for name in np.unique(group).tolist():
            members = np.flatnonzero(group == name)
            distance = np.abs(cell[members] - number)
            own = probability[members[distance == 0]]
            if len(own) < LEAST_OF_SET:
                continue
            near = distance[right[members]]
            counts = [int((near <= d).sum()) for d in range(len(CALIBRATION_BINS))]
            reach = next((d for d, n in enumerate(counts) if _rank(n, MOST_OF_FEW_STARS[share]) > 1), None)
            helpers = probability[members[right[members]][near <= (np.inf if reach is None else reach)]]
            highest.append(_highest_but(own, _rank(len(own), MOST_OF_ALL)))
            highest.append(_highest_but(helpers, max(_rank(len(helpers), share), 1 if reach is None else 2)))
        # Above what the last star that must stay has, by more than the service's rounding.
        thresholds.append(min((math.floor(max(highest) * 1e4) + 1) / 1e4, 1.0) if highest else 1.0)
    return tuple(thresholds)


def _rank(count: int, share: float) -> int:
    """Rank from the top among ``count`` stars above which no more than ``share`` of stars to come are in the mean.

    Of those a share of 1 / (count + 1) lies above the highest, and so on (conformal); 0 where even that is too many.
    """
    return math.floor((count + 1) * Fraction(repr(share)))


def _highest_but(probability: NDArray[np.floating], rank: int) -> float:
    """The ``rank``-th largest of ``probability`` (n,), and the largest for 0; 0 of none."""
    return float(np.sort(probability)[-max(rank, 1)]) if len(probability) else 0.0
