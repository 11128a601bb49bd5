"""Classes that a period or an amplitude rules out: a Mira of 0.9 days or 0.2 mag, an RR Lyrae star of 30 days.

And stars that are none of the ten by their period: a Cepheid has an RR Lyrae star's shape, but not its period.
"""

from __future__ import annotations

from typing import Final, NamedTuple

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
PULSATORS: Final = ("RRAB", "RRC", "HADS", "DSCT")
"""Radial pulsators: how dense the star is sets their period, so that none has a much longer one."""
MIN_EVIDENCE: Final = 15.0
"""By so much the logarithm of the likelihood has to be better at the period than at the next best that is no simple
ratio of it, which is the true one where the period is an alias."""
OTHER_R_SQUARED: Final = 0.5
"""Share of the variance that such a period has to explain. Lower than MIN_R_SQUARED, since MIN_EVIDENCE asks for more
than that does: it suffices for faint stars, whose errors are as large as their amplitude. At 0.4 the first RR Lyrae
stars with an alias of such a period appear (two more of 6,900 of Catalina's)."""
OTHER_PROBABILITY: Final = 0.95
"""Published probability of Other of what is none of the ten by its period: 253 of 268 such stars were, 0.944 with a
standard error of 0.014, of real light curves of ASAS, Catalina, EROS-2, Gaia, Stripe 82 and ZTF
(model_repo/EVALUATION.md); rounded to a multiple of 0.05."""
MIRA_SCATTER: Final = 0.15
"""Standard deviation, mag, below which a light curve of MIRA_SPAN is none of a Mira. The GCVS has Miras from 2.5 mag in
V on, which is 0.9; of 2,581 stars of ASAS, Catalina and EROS-2 that the model takes for one the least is 0.22."""
MIRA_SPAN: Final = 200.0
"""Days: a large part of a cycle."""
_R_SQUARED, _NEXT, _SCATTER, _SPAN, _TOTAL = (
    LIGHT_CURVE_FEATURES.index(name)
    for name in ("r2_period", "r2_second_period", "log10_std", "log10_span", "is_total_flux")
)
_M, _SR = CLASS_NAMES.index("M"), CLASS_NAMES.index("SR")
_PULSATES: Final = np.array([name in PULSATORS for name in CLASS_NAMES])
_LEAST, _MOST = (np.array([PERIODS[name][i] for name in CLASS_NAMES]) for i in (0, 1))


def plausible_period(class_name: str, period: float) -> bool:
    """Whether a star of a class can have a period (days)."""
    low, high = PERIODS[class_name]
    return low <= period <= high


class Plausible(NamedTuple):
    """Answers of the model, after what physics says of them; arrays over the batch."""

    probabilities: NDArray[np.float32]
    """(batch, 10); all zero where the model gave none."""
    period: NDArray[np.float64]
    """Photometric period in days, NaN where there is none to be trusted."""
    none_of_ten: NDArray[np.bool_]
    """Whether the star is none of the ten classes, by its period."""

    @property
    def other(self) -> NDArray[np.float64]:
        """(batch,) OTHER_PROBABILITY where the star is none of the ten by its period, NaN elsewhere."""
        return np.where(self.none_of_ten, OTHER_PROBABILITY, np.nan)


def rule_out(probabilities: NDArray[np.float32], light_curves: LightCurveInputs) -> Plausible:
    """Probabilities (batch, 10) and periods (batch,) that do not contradict each other in the leading class.

    Where the leading class cannot have the period, one of the two goes. It is the period where that rests on fewer
    than MIN_DETECTIONS points, explains less than MIN_R_SQUARED of the variance or contradicts a class that is SURE:
    then it is an alias or noise, and NaN is returned. Otherwise all classes that cannot have it lose their
    probability to the others.

    But where one of PULSATORS leads and the period is too long for it, rests on as many points, explains
    OTHER_R_SQUARED and fits by MIN_EVIDENCE better than any other, the star is none of the ten, however sure the model:
    probabilities and period stay as they are.

    What M has goes to SR, before all this, where MIN_DETECTIONS points of total brightness and more scatter by less
    than MIRA_SCATTER: the GCVS tells the two by their amplitude.
    """
    probabilities = _without_small_miras(probabilities, light_curves)
    period = np.array(light_curves.period, np.float64)
    with np.errstate(invalid="ignore"):
        possible = (period[:, None] >= _LEAST) & (period[:, None] <= _MOST)
    row = np.arange(len(period))
    leading = probabilities.argmax(axis=1)
    conflict = np.isfinite(period) & probabilities.any(axis=1) & ~possible[row, leading]
    enough, explained = light_curves.detections >= MIN_DETECTIONS, light_curves.features[:, _R_SQUARED]
    firm = enough & (explained >= MIN_R_SQUARED)
    no_alias = enough & (explained >= OTHER_R_SQUARED) & (_evidence(light_curves) >= MIN_EVIDENCE)
    none_of_ten = conflict & no_alias & _PULSATES[leading]
    none_of_ten[none_of_ten] = period[none_of_ten] > _MOST[leading[none_of_ten]]
    left = np.where(possible, probabilities, 0.0)
    total = left.sum(axis=1)
    ruled_out = conflict & firm & ~none_of_ten & (probabilities[row, leading] < SURE) & (total > 0.02)
    result = probabilities
    result[ruled_out] = (left[ruled_out] / total[ruled_out, None]).astype(result.dtype)
    period[conflict & ~ruled_out & ~none_of_ten] = np.nan
    return Plausible(result, period, none_of_ten)


def _without_small_miras(probabilities: NDArray[np.float32], light_curves: LightCurveInputs) -> NDArray[np.float32]:
    """The probabilities, with that of M added to that of SR where the star hardly varies."""
    features = light_curves.features
    steady = (features[:, _SCATTER] < np.log10(MIRA_SCATTER)) & (features[:, _SPAN] >= np.log10(MIRA_SPAN))
    steady &= (light_curves.detections >= MIN_DETECTIONS) & (features[:, _TOTAL] > 0)
    result = np.array(probabilities)
    result[steady, _SR] += result[steady, _M]
    result[steady, _M] = 0.0
    return result


def _evidence(light_curves: LightCurveInputs) -> NDArray[np.float64]:
    """(batch,) the logarithm of how much more likely the points are at the period than at the next best one.

    For normal errors of unknown size: the maximum likelihood goes with the (-n/2)-th power of the residuals' variance.
    0 where no other period was found.
    """
    explained = light_curves.features[:, [_R_SQUARED, _NEXT]].astype(np.float64)
    unexplained = np.clip(1.0 - explained, 1e-6, 1.0)
    evidence = 0.5 * light_curves.detections * np.log(unexplained[:, 1] / unexplained[:, 0])
    return np.where(explained[:, 1] > 0.0, evidence, 0.0)
