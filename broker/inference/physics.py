"""Classes that a period rules out: a Mira of 0.9 days, an RR Lyrae star of 30 days."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.taxonomy import CLASS_NAMES

PERIODS: Final[dict[str, tuple[float, float]]] = {
    "RRAB": (0.2, 1.5), "RRC": (0.1, 1.0), "HADS": (0.02, 0.6), "DSCT": (0.01, 0.6),
    "M": (40.0, 4000.0), "SR": (4.0, 4000.0),
    "EW": (0.08, 20.0), "EB": (0.08, 400.0), "EA": (0.04, 20000.0), "ROT": (0.02, 1000.0),
}  # fmt: skip
"""Shortest and longest period in days of each class, after the GCVS's definitions (Samus et al. 2017, ARep 61, 80),
halved below and doubled above, since a light curve may show half or twice the period."""

MIN_DETECTIONS: Final = 50
MIN_R_SQUARED: Final = 0.6
SURE: Final = 0.7
_R_SQUARED: Final = LIGHT_CURVE_FEATURES.index("r2_period")
_LEAST, _MOST = (np.array([PERIODS[name][i] for name in CLASS_NAMES]) for i in (0, 1))


def plausible_period(class_name: str, period: float) -> bool:
    """Whether a star of a class can have a period (days)."""
    low, high = PERIODS[class_name]
    return low <= period <= high


def rule_out(
    probabilities: NDArray[np.float32], light_curves: LightCurveInputs
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Probabilities (batch, 10) and periods (batch,) that do not contradict each other in the leading class.

    Where the leading class cannot have the period, one of the two goes. It is the period where that rests on fewer
    than MIN_DETECTIONS points, explains less than MIN_R_SQUARED of the variance or contradicts a class that is SURE:
    then it is an alias or noise, and NaN is returned. Otherwise all classes that cannot have it lose their
    probability to the others.
    """
    period = np.array(light_curves.period, np.float64)
    with np.errstate(invalid="ignore"):
        possible = (period[:, None] >= _LEAST) & (period[:, None] <= _MOST)
    row = np.arange(len(period))
    leading = probabilities.argmax(axis=1)
    conflict = np.isfinite(period) & probabilities.any(axis=1) & ~possible[row, leading]
    firm = (light_curves.detections >= MIN_DETECTIONS) & (light_curves.features[:, _R_SQUARED] >= MIN_R_SQUARED)
    left = np.where(possible, probabilities, 0.0)
    total = left.sum(axis=1)
    ruled_out = conflict & firm & (probabilities[row, leading] < SURE) & (total > 0.02)
    result = np.array(probabilities)
    result[ruled_out] = (left[ruled_out] / total[ruled_out, None]).astype(result.dtype)
    period[conflict & ~ruled_out] = np.nan
    return result, period
