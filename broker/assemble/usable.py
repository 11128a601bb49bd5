"""Which points of light curves can be used: each exposure once, without upper limits, which are only counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.assemble import point_passes
from broker.assemble.grouped import order_within
from broker.bands import BANDS
from broker.records import LightCurve, PhotometryKind

T = TypeVar("T", bound=np.generic)

_SAME_EXPOSURE: Final = 1e-5  # days
_MAX_MJD: Final = 200_000.0
"""Times beyond this (the year 2406) are mistakes, and one of them would spoil the whole light curve's span."""


@dataclass(frozen=True, slots=True, eq=False)
class UsablePoints:
    """The m measurements of a batch that can be used, by object, band and time; upper limits are only counted."""

    size: int
    """Objects in the batch."""
    row: NDArray[np.intp]
    """(m,) the object of each point."""
    time: NDArray[np.float64]
    """(m,) MJD."""
    flux: NDArray[np.float64]
    """(m,) nJy, as in ``LightCurve``."""
    error: NDArray[np.float64]
    reference: NDArray[np.float64]
    """(m,) nJy; NaN where unknown, 0 where ``flux`` is total."""
    band: NDArray[np.intp]
    limits: NDArray[np.intp]
    """(size,) upper limits of each object."""
    limits_before: NDArray[np.intp]
    """(size,) those earlier than its first point."""
    limits_between: NDArray[np.intp]
    """(size,) those between its first and last point."""
    days_before: NDArray[np.float64]
    """(size,) days from the first of all limits to the first point; 0 where none is before it."""
    index: NDArray[np.intp]
    """(m,) numbers of the points among all of the batch's, one light curve after another."""
    by_time: NDArray[np.intp]
    """(m,) the order by object and time, of equal times by band."""

    @property
    def total_flux(self) -> NDArray[np.float64]:
        """(m,) nJy; NaN where the reference flux is unknown."""
        return self.flux + self.reference


def usable_points(light_curves: Sequence[LightCurve]) -> UsablePoints:
    """The points of a batch of light curves that can be used, each exposure once, by object, band and time."""
    size = len(light_curves)
    lengths = np.array([len(curve) for curve in light_curves], np.intp)

    def column(name: str, dtype: type[T]) -> NDArray[T]:
        parts = [*(getattr(curve, name) for curve in light_curves), np.empty(0, dtype)]
        return np.concatenate(parts, dtype=dtype, casting="unsafe")

    time, flux, error, reference = (column(n, np.float64) for n in ("mjd", "flux", "flux_error", "reference_flux"))
    band, kind = column("band", np.uint8), column("kind", np.uint8)
    edges = np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp)
    # An exposure may give a detection and a forced measurement; limits are the last kind.
    order, count = point_passes.exposures(
        time, flux, error, band, kind, edges, len(BANDS), PhotometryKind.LIMIT, _MAX_MJD, _SAME_EXPOSURE
    )
    limit = np.flatnonzero(kind == PhotometryKind.LIMIT)
    limit_row = np.searchsorted(edges, limit, side="right") - 1
    row, used = np.repeat(np.arange(size), count), time[order]
    return UsablePoints(
        size, row, used, flux[order], error[order], reference[order], band[order].astype(np.intp),
        np.bincount(limit_row, minlength=size).astype(np.intp),
        *_limits(limit_row, time[limit], row, used, size), order, order_within(used, count),
    )  # fmt: skip


def _limits(
    limit_row: NDArray[np.intp],
    limit_time: NDArray[np.float64],
    row: NDArray[np.intp],
    time: NDArray[np.float64],
    size: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Upper limits before the first and between first and last point of each object, and days before it, (size,)."""
    known = np.isfinite(limit_time) & (limit_time < _MAX_MJD)
    limit_row, limit_time = limit_row[known], limit_time[known]
    if not len(limit_row):
        none = np.zeros(size, np.intp)
        return none, none, np.zeros(size)
    first, last, earliest = np.full(size, np.inf), np.full(size, -np.inf), np.full(size, np.inf)
    np.minimum.at(first, row, time)
    np.maximum.at(last, row, time)
    np.minimum.at(earliest, limit_row, limit_time)
    some = np.isfinite(first) & np.isfinite(earliest)
    before = (limit_time < first[limit_row]) & some[limit_row]
    between = ~before & (limit_time < last[limit_row])
    days = np.where(some, np.where(some, first, 0.0) - np.where(some, earliest, 0.0), 0.0)
    return (
        np.bincount(limit_row[before], minlength=size).astype(np.intp),
        np.bincount(limit_row[between], minlength=size).astype(np.intp),
        np.maximum(days, 0.0),
    )
