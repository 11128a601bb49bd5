"""Times of observation at the solar system's barycentre, for `assemble` and the training sets alike.

Light of a star near the ecliptic reaches the Earth up to 8.3 minutes earlier in one season and later in another: a
sixth of the cycle of a delta Scuti star of 0.05 d. What surveys send of an observation is the time at the observatory,
and archives publish that or the time at the Sun's or the barycentre (which differ by 5 s at most).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final

import erfa
import numpy as np
from numpy.typing import NDArray

from broker.records import LightCurve, ObjectState, TimeSystem

LIGHT_DAYS_OF_AU: Final = erfa.AULT / erfa.DAYSEC
"""Light takes so many days over the astronomical unit."""
_TDB_MINUS_UTC: Final = 69.184 / erfa.DAYSEC
"""Since 2017; that it was a minute less in 1972 moves the Earth by less than 6 ms of light."""
_FIRST, _LAST, _STEP = 15_020.0, 88_068.0, 4.0
"""MJD from 1900 to 2100, for which the ephemeris holds."""


def light_travel_time(
    mjd: NDArray[np.float64], ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Days (n,) to add to times of observation for those at the barycentre.

    ``mjd`` (n,) UTC; ``ra``, ``dec`` (n,) ICRS degrees. The Earth's centre stands for the observatory (21 ms at
    most), and the light's front is taken as plane. Times before 1900 or after 2100 get 0, unknown positions NaN.
    """
    node = (mjd + (_TDB_MINUS_UTC - _FIRST)) / _STEP
    nodes = _earth()
    with np.errstate(invalid="ignore"):
        known = (node >= 0) & (node < len(nodes) - 1)
    number = np.where(known, node, 0.0).astype(np.intp)
    t = np.where(known, node - number, 0.0)
    # Cubic Hermite interpolation between the nodes' positions and velocities.
    weight = np.stack([(1 + 2 * t) * (1 - t) ** 2, t * (1 - t) ** 2, t**2 * (3 - 2 * t), t**2 * (t - 1)], axis=1)
    earth = np.einsum("nk,nkx->nx", weight, nodes[number[:, None] + (0, 0, 1, 1), (0, 1, 0, 1)])
    ra, dec = np.radians(ra), np.radians(dec)
    across = np.cos(dec)
    delay = earth[:, 0] * (across * np.cos(ra)) + earth[:, 1] * (across * np.sin(ra)) + earth[:, 2] * np.sin(dec)
    return np.where(known, delay * LIGHT_DAYS_OF_AU, 0.0)


@cache
def _earth() -> NDArray[np.float64]:
    """(nodes, 2, 3) the Earth's barycentric position, au, and its velocity, au a _STEP.

    Every four days, which interpolates to 0.1 ms of light; the ephemeris itself (``epv00``) is good to 0.1 ms, too.
    """
    _, barycentric = erfa.epv00(erfa.DJM0, np.arange(_FIRST, _LAST + _STEP / 2, _STEP))
    return np.stack([barycentric["p"], _STEP * barycentric["v"]], axis=1)


def barycentric_light_curves(states: Sequence[ObjectState]) -> list[LightCurve]:
    """The light curves of a batch with all times at the barycentre (or the Sun), where the objects' places are known.

    Only the light's travel time is corrected, the scale stays UTC: periods do not depend on it. Light curves whose
    times are heliocentric or barycentric already, or that have no position, stay as they are.
    """
    curves = [state.light_curve for state in states]
    rows = [
        row
        for row, state in enumerate(states)
        if state.time_system is TimeSystem.UTC and len(state.light_curve) and np.isfinite(state.ra + state.dec)
    ]
    if not rows:
        return curves
    length = [len(curves[row]) for row in rows]
    mjd = np.concatenate([curves[row].mjd for row in rows])
    ra, dec = (np.repeat([getattr(states[row], name) for row in rows], length) for name in ("ra", "dec"))
    corrected = mjd + light_travel_time(mjd, ra, dec)
    for row, part in zip(rows, np.split(corrected, np.cumsum(length)[:-1]), strict=True):
        curves[row] = replace(curves[row], mjd=part)
    return curves
