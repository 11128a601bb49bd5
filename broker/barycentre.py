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
    return _delay(mjd, *_direction(ra, dec))


def _direction(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Unit vectors (x, y, z) of positions in degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    across = np.cos(dec)
    return across * np.cos(ra), across * np.sin(ra), np.sin(dec)


def _delay(
    mjd: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``light_travel_time`` for unit vectors (n,) towards the star."""
    node = (mjd + (_TDB_MINUS_UTC - _FIRST)) / _STEP
    nodes = _earth()
    with np.errstate(invalid="ignore"):
        known = (node >= 0) & (node < nodes.shape[2] - 1)
    number = np.where(known, node, 0.0).astype(np.intp)
    t = np.where(known, node - number, 0.0)
    # Cubic Hermite interpolation between the nodes' positions and velocities. One coordinate after another: arrays of
    # all three would not stay in the cache.
    left, right = 1.0 - t, t * t
    weights = (1.0 + 2.0 * t) * left * left, t * left * left, right * (3.0 - 2.0 * t), right * (t - 1.0)
    following = number + 1
    delay = np.zeros(len(mjd))
    for (position, velocity), toward in zip(nodes, (x, y, z), strict=True):
        earth = weights[0] * position[number] + weights[1] * velocity[number]
        earth += weights[2] * position[following] + weights[3] * velocity[following]
        delay += earth * toward
    return np.where(known, delay * LIGHT_DAYS_OF_AU, 0.0)


@cache
def _earth() -> NDArray[np.float64]:
    """(3, 2, nodes) x, y and z of the Earth's barycentric position, au, and of its velocity, au a _STEP.

    Every four days, which interpolates to 0.1 ms of light; the ephemeris itself (``epv00``) is good to 0.1 ms, too.
    """
    _, barycentric = erfa.epv00(erfa.DJM0, np.arange(_FIRST, _LAST + _STEP / 2, _STEP))
    columns: NDArray[np.float64] = np.stack([barycentric["p"].T, _STEP * barycentric["v"].T], axis=1)
    return columns


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
    ra, dec = (np.array([getattr(states[row], name) for row in rows], np.float64) for name in ("ra", "dec"))
    corrected = mjd + _delay(mjd, *(np.repeat(each, length) for each in _direction(ra, dec)))
    for row, part in zip(rows, np.split(corrected, np.cumsum(length)[:-1]), strict=True):
        curves[row] = replace(curves[row], mjd=part)
    return curves
