"""Times of observation at the solar system's barycentre, for `assemble` and the training sets alike.

Light of a star near the ecliptic reaches the Earth up to 8.3 minutes earlier in one season and later in another: a
sixth of the cycle of a delta Scuti star of 0.05 d. What surveys send of an observation is the time at the observatory,
and archives publish that or the time at the Sun's or the barycentre (which differ by 5 s at most).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import erfa
import numpy as np
from numba import types
from numpy.typing import NDArray

from broker.compiled import compiled
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
    return _delay(np.ascontiguousarray(mjd, np.float64), np.arange(len(mjd) + 1), _direction(ra, dec))


def _direction(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors (n, 3) of positions in degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    across = np.cos(dec)
    return np.stack([across * np.cos(ra), across * np.sin(ra), np.sin(dec)], axis=-1)


def _delay(mjd: NDArray[np.float64], start: NDArray[np.intp], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """``light_travel_time`` of times (n,), of which those of each star begin at ``start`` (g + 1,); ``towards`` (g, 3)
    are unit vectors."""
    delay = np.empty(len(mjd))
    _kernel()(mjd, start, towards, _earth(), delay)
    return delay


def warm_up() -> None:
    """Compile now and not at the first light curve."""
    _kernel()


def _delays(
    mjd: NDArray[np.float64],
    start: NDArray[np.intp],
    towards: NDArray[np.float64],
    nodes: NDArray[np.float64],
    delay: NDArray[np.float64],
) -> None:  # pragma: no mutate block - Numba compiles it, and cannot compile a choice between mutants
    """Fill ``delay`` (n,) from ``nodes`` as of ``_earth``."""
    for star in range(len(towards)):
        for i in range(start[star], start[star + 1]):
            node = (mjd[i] + (_TDB_MINUS_UTC - _FIRST)) / _STEP
            if not (node >= 0 and node < len(nodes) - 1):
                delay[i] = 0.0
                continue
            number = int(node)
            t = node - number
            # Cubic Hermite interpolation between the nodes' positions and velocities.
            left, right = 1.0 - t, t * t
            a, b = (1.0 + 2.0 * t) * left * left, t * left * left
            c, d = right * (3.0 - 2.0 * t), right * (t - 1.0)
            total = 0.0
            for axis in range(3):
                earth = a * nodes[number, 0, axis] + b * nodes[number, 1, axis]
                earth += c * nodes[number + 1, 0, axis] + d * nodes[number + 1, 1, axis]
                total += earth * towards[star, axis]
            delay[i] = total * LIGHT_DAYS_OF_AU


@cache
def _kernel() -> Callable[..., Any]:
    column, starts = types.Array(types.float64, 1, "C"), types.Array(types.intp, 1, "C")
    table, nodes = types.Array(types.float64, 2, "C"), types.Array(types.float64, 3, "C")
    return compiled(_delays, types.void(column, starts, table, nodes, column))


@cache
def _earth() -> NDArray[np.float64]:
    """(nodes, 2, 3) the Earth's barycentric position, au, and velocity, au a _STEP.

    Every four days, which interpolates to 0.1 ms of light; the ephemeris itself (``epv00``) is good to 0.1 ms, too.
    """
    _, barycentric = erfa.epv00(erfa.DJM0, np.arange(_FIRST, _LAST + _STEP / 2, _STEP))
    return np.ascontiguousarray(np.stack([barycentric["p"], _STEP * barycentric["v"]], axis=1))


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
    edges = np.cumsum([0, *(len(curves[row]) for row in rows)])
    mjd = np.concatenate([curves[row].mjd for row in rows])
    ra, dec = (np.array([getattr(states[row], name) for row in rows], np.float64) for name in ("ra", "dec"))
    corrected = mjd + _delay(mjd, edges, _direction(ra, dec))
    for row, first, last in zip(rows, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        curves[row] = replace(curves[row], mjd=corrected[first:last])
    return curves
