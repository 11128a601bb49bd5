"""The orbital period of an eclipsing binary, from the folded light curve.

A binary has two minima each orbit. A period search finds the time between them, half of the orbit, where they are
about equally deep, and often where they are not: then only one of several harmonics tells. Where it found the orbit
itself, the cycle shows a second minimum about half-way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.inference.physics import plausible_period
from broker.taxonomy import CLASS_NAMES, PARENTS

SECOND_MINIMUM: Final = 3.0
"""Standard errors by which the second minimum is fainter than the light between the minima."""
HALF_EXPLAINS: Final = 0.4
"""Share of what the period explains that half the period explains, too, where there are two minima. This and
SECOND_MINIMUM are of 600 stars of each class of Catalina."""
HALVES_DIFFER: Final = 5.0
"""Standard deviations by which chi^2 of the odd cycles against the even ones is above the number of bins compared."""
_R_SQUARED, _R_SQUARED_HALF, _VON_NEUMANN = map(
    LIGHT_CURVE_FEATURES.index, ("r2_period", "r2_half_period", "von_neumann_phase")
)
_WINDOW: Final = 2
"""Bins on either side of the middle of a minimum."""
_LEAST_NOISE: Final = 0.02  # of the light curve's standard deviation


ECLIPSING: Final = PARENTS["Eclipsing"]
_IS_ECLIPSING: Final = np.array([name in ECLIPSING for name in CLASS_NAMES])


@dataclass(frozen=True, slots=True, eq=False)
class Periods:
    """What is published of the periods of a batch."""

    period: NDArray[np.float64]
    """(batch,) days: the orbital period of eclipsing binaries, else the one that was searched and found."""
    ambiguous: NDArray[np.bool_]
    """(batch,) whether half of that, or twice, may as well be the orbit. Not so where odd and even minima differ, nor
    where a second minimum is seen in each cycle and the cycles are alike; False for other stars."""


def orbital_periods(
    light_curves: LightCurveInputs, photometric: NDArray[np.float64], leading: NDArray[np.intp], use: NDArray[np.bool_]
) -> Periods:
    """Periods of a batch whose leading classes are ``leading`` (batch,), positions in CLASSES.

    ``photometric`` (batch,) are the periods at which ``light_curves`` were folded, days, NaN where there is none; only
    rows of ``use`` (batch,) are taken for their leading class. A binary without a second minimum in its cycle gets
    twice the photometric period: nearly all in contact, and most others, have minima so alike that a search finds half
    of their orbit. Not so where no star of the class has such a period.
    """
    period, ambiguous = photometric.copy(), np.zeros(len(photometric), np.bool_)
    rows = np.flatnonzero(use & _IS_ECLIPSING[leading] & np.isfinite(photometric))
    if not len(rows):
        return Periods(period, ambiguous)
    double, ambiguous[rows] = _orbits(light_curves.folded[rows], light_curves.features[rows])
    for row in rows[double].tolist():
        if plausible_period(CLASS_NAMES[leading[row]], 2.0 * period[row]):
            period[row] *= 2.0
        else:
            ambiguous[row] = True
    return Periods(period, ambiguous)


def _orbits(folded: NDArray[np.float32], features: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the orbits of n binaries are twice their periods, and whether the other one is as possible, each (n,)."""
    mean = folded[:, 0].astype(np.float64)
    count = np.rint(10.0 ** folded[:, 2].astype(np.float64) - 1.0)
    noise = np.maximum(np.sqrt(0.5 * features[:, _VON_NEUMANN]), _LEAST_NOISE)
    odd, even = np.split(np.stack([count, count * mean]), 2, axis=2)
    second = _second_minimum(odd[0] + even[0], odd[1] + even[1], noise)
    explained = features[:, _R_SQUARED_HALF] / np.maximum(features[:, _R_SQUARED], 1e-3)
    single = (second > SECOND_MINIMUM) & (explained > HALF_EXPLAINS)
    differ = _difference(odd, even, noise) > HALVES_DIFFER
    return ~single, single == differ


def _second_minimum(
    count: NDArray[np.float64], total: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Standard errors (n,) by which the faintest light at phase 0.3 to 0.7 lies below that of the rest.

    ``count`` and ``total`` (n, bins) are points of each bin of the cycle, which begins in the deepest minimum, and the
    sum of their values, with the noise (n,) of one point.
    """
    size, bins = count.shape
    shifts = range(-_WINDOW, _WINDOW + 1)
    points, sums = (sum((np.roll(x, shift, axis=1) for shift in shifts), np.zeros_like(x)) for x in (count, total))
    mean = sums / np.maximum(points, 1.0)
    phase = np.arange(bins) / bins
    middle = (phase >= 0.3) & (phase <= 0.7) & (points >= 2)
    at = np.where(middle, mean, np.inf).argmin(axis=1)
    row = np.arange(size)
    apart = np.abs(np.arange(bins) - at[:, None])
    between = (phase >= 0.12) & (phase <= 0.88) & (np.minimum(apart, bins - apart) > bins // 8) & (count > 0)
    # The median: what is not between the minima is sorted behind.
    level = np.sort(np.where(between, total / np.maximum(count, 1.0), np.inf), axis=1)[row, between.sum(axis=1) // 2]
    depth = (level - mean[row, at]) * np.sqrt(points[row, at]) / noise
    return np.where(middle.any(axis=1) & np.isfinite(depth), depth, 0.0)


def _difference(odd: NDArray[np.float64], even: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) standard deviations by which chi^2 between two cycles is above its mean; each has (2, n, bins) as above."""
    both = (odd[0] > 0) & (even[0] > 0)
    weight = np.where(both, 1.0 / (1.0 / np.maximum(odd[0], 1.0) + 1.0 / np.maximum(even[0], 1.0)), 0.0)
    apart = odd[1] / np.maximum(odd[0], 1.0) - even[1] / np.maximum(even[0], 1.0)
    compared = both.sum(axis=1)
    chi_square = (weight * apart**2).sum(axis=1) / noise**2
    above: NDArray[np.float64] = (chi_square - compared) / np.sqrt(2.0 * np.maximum(compared, 1))
    return above
