"""The union of two light curves.

A point is known by exposure time, band and kind; ``merge`` keeps one point of each. Times are compared to
2e-6 day, a sixth of a second: the same exposure arrives in many packets, and reprocessing or a change of
float format moves it by less, while no survey exposes twice in that time. Times closer than that are one
instant wherever they lie: rounded to a fixed grid, two that are 4e-7 day apart fall on both sides of a
boundary in one case of five. As long as the times of one exposure stay within 2e-6 day and exposures are
further apart than that, merging is idempotent, commutative and associative.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.records import LightCurve, PhotometryKind

TIME_STEP: Final = 2e-6  # days
MAX_POINTS: Final = 2000
"""Points kept of one object in one survey: more than any of the ten classes needs, and 44 kB."""


def merge(first: LightCurve, second: LightCurve, max_points: int = MAX_POINTS) -> LightCurve:
    """All points of both, in order of time, band and kind; at most ``max_points``, any number where it is 0.

    Where there are more, upper limits go first, which no class is told by, and of the rest the oldest.

    Of two points with one identity and different values the one with a reference flux is kept, then the one
    with the smaller error, then the larger flux, then the larger reference: an order of the values alone.
    Cutting keeps the result independent of order too, as it goes by what identifies a point: one that was cut
    comes after all that are kept, whatever is merged later.
    """
    columns = [
        np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
    ]
    return _unique(LightCurve(*columns), max_points)


def _unique(curve: LightCurve, max_points: int) -> LightCurve:
    # What identifies a point, in the order of the result.
    identity = (_instants(curve.mjd) << 16) | (curve.band.astype(np.int64) << 8) | curve.kind
    order = np.argsort(identity, kind="stable")
    own = identity[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = own[1:] != own[:-1]
    if not first.all():  # only of points that are there more than once the values need be compared
        starts = np.flatnonzero(first)
        size = np.diff(np.append(starts, len(order)))
        order[starts[size > 1]] = _best(curve, identity, order[np.repeat(size > 1, size)])
    index = order[first]
    if max_points and len(index) > max_points:
        no_limit = curve.kind[index] != PhotometryKind.LIMIT
        last = np.argsort(no_limit, kind="stable")[-max_points:]
        index = index[np.sort(last)]
    return LightCurve(
        curve.mjd[index], curve.flux[index], curve.flux_error[index],
        curve.reference_flux[index], curve.band[index], curve.kind[index],
    )  # fmt: skip


def _best(curve: LightCurve, identity: NDArray[np.int64], index: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of the points ``index`` the one that is kept of each identity, in order of identity."""
    mjd, flux, error, reference = (
        getattr(curve, name)[index] for name in ("mjd", "flux", "flux_error", "reference_flux")
    )
    # Least significant key first; NaN sorts last, but "has a reference" matters more than the error.
    order = np.lexsort((-mjd, -reference, -flux, error, np.isnan(reference), identity[index]))
    index = index[order]
    own = identity[index]
    first = np.ones(len(index), np.bool_)
    first[1:] = own[1:] != own[:-1]
    return index[first]


def _instants(mjd: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) the number of each time's instant, in order of time: times of one instant are within TIME_STEP.

    A new instant begins after a gap of more than TIME_STEP. Where times follow each other more closely, as in
    photometry of many frames a second, one also ends TIME_STEP after the first time without a gap before it:
    a chain of close times is no single exposure.
    """
    if not len(mjd):
        return np.empty(0, np.int64)
    order = mjd.argsort(kind="stable")  # fast where two sorted light curves follow each other
    time = mjd[order]
    begins = np.ones(len(mjd), np.bool_)
    begins[1:] = ~(time[1:] - time[:-1] <= TIME_STEP)
    if not begins.all():
        starts = np.flatnonzero(begins)
        since = time - np.repeat(time[starts], np.diff(np.append(starts, len(mjd))))
        # A hair more than TIME_STEP: the difference of two times is rounded.
        if since.max() > 1.001 * TIME_STEP:
            step = np.floor(since / (1.001 * TIME_STEP))
            begins[1:] |= step[1:] != step[:-1]
    instant = np.empty(len(mjd), np.int64)
    instant[order] = np.cumsum(begins)
    return instant
