"""Points of one object that are codes for missing values or impossible, and those that are far from all others."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.lightcurves.report import IMPOSSIBLE_GAP, LeftOut, Report

_CODES: Final = np.array(
    [float("9." + "9" * digits) for digits in range(2, 7)] + [float("19." + "9" * n) for n in (2, 3)]
)
"""Codes that might be magnitudes."""
_CODE_GAP: Final = 1.0
"""Magnitudes between a code and the object's nearest point; a star as bright as 9.999 has others near it."""
_OTHER_BAND_GAP: Final = 4.0
"""The same where the band has no other point: colours differ."""
_FEW: Final = 0.02
"""Share of the points that may be taken for mistakes."""
_NAMED_GAP, _NAMED_SIGMA = 1.0, 10.0
"""A point that is so far from all others, in magnitudes, and from the median, in deviations, is named and kept."""


def leave_out_far(
    report: Report,
    name: str,
    mjd: NDArray[np.float64],
    magnitude: NDArray[np.float64],
    band: NDArray[np.uint8],
    reason: NDArray[np.uint8],
) -> None:
    """Mark points of one object that are codes or impossible, and name those that are far from the others.

    ``reason`` (m,) is changed. A row that is there twice is counted once.
    """
    used = reason == 0
    all_values = magnitude[used]
    if not len(all_values) or (np.ptp(all_values) < _NAMED_GAP and not _is_code(all_values).any()):
        return
    regular = np.unique(all_values[~_is_code(all_values)])
    for code in np.unique(band[used]):
        own = np.flatnonzero(used & (band == code))
        value = magnitude[own]
        codes = _is_code(value)
        others = np.unique(value[~codes])
        if codes.any():
            near, gap = (others, _CODE_GAP) if len(others) else (regular, _OTHER_BAND_GAP)
            wrong = codes & (_nearest(value, near) > gap)
            reason[own[wrong]] = LeftOut.CODE
            own, value = own[~wrong], value[~wrong]
        each = np.sort(np.unique(mjd[own] + 1j * value).imag)
        if len(each) < 5:
            continue
        median = float(np.median(each))
        low, high = _cluster(each, median, IMPOSSIBLE_GAP)
        outside = (each < low) | (each > high)
        if 0 < len(np.unique(each[outside])) <= max(1, int(_FEW * len(each))):  # a code may be there often
            wrong = (value < low) | (value > high)
            reason[own[wrong]] = LeftOut.FAR
            for point in own[wrong]:
                report.far(name, mjd[point], magnitude[point], median, code, "left out as impossible")
            own, value, each = own[~wrong], value[~wrong], each[~outside]
        deviation = 1.4826 * float(np.median(np.abs(each - median)))
        alone = each[_alone(each) & (np.abs(each - median) > max(_NAMED_GAP, _NAMED_SIGMA * deviation))]
        for point in own[np.isin(value, alone)]:
            report.far(name, mjd[point], magnitude[point], median, code, "kept")


def _is_code(magnitude: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Single precision gives 9.99899959 for 9.999.
    return np.asarray((np.abs(magnitude[:, None] - _CODES) < 1e-6).any(axis=1))


def _nearest(value: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) distance to the nearest of ``others``, which are sorted; infinite without any."""
    padded = np.concatenate([[-np.inf], others, [np.inf]])
    at = np.searchsorted(padded, value)
    distance: NDArray[np.float64] = np.minimum(padded[at] - value, value - padded[at - 1])
    return distance


def _cluster(value: NDArray[np.float64], median: float, gap: float) -> tuple[float, float]:
    """The least and the largest of the sorted values around the median between which there is no such gap."""
    ends = np.flatnonzero(np.diff(value) > gap)
    bounds = np.concatenate([[0], ends + 1, [len(value)]])
    runs = [(value[a], value[b - 1]) for a, b in pairwise(bounds)]
    return next(((float(a), float(b)) for a, b in runs if a <= median <= b), (float(value[0]), float(value[-1])))


def _alone(value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which of the sorted values have none within _NAMED_GAP."""
    gap = np.concatenate([[np.inf], np.diff(value), [np.inf]])
    return np.asarray((gap[1:] > _NAMED_GAP) & (gap[:-1] > _NAMED_GAP))
