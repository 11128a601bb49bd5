"""Objects from the rows of their names: one position and one light curve each, without points that are mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.lightcurves.asassn import UNNAMED, split_filters
from broker.lightcurves.columns import Columns
from broker.lightcurves.outliers import leave_out_far
from broker.lightcurves.report import SHORTEST, LeftOut, Report
from broker.lightcurves.rows import Rows
from broker.lightcurves.time_column import TimeColumn
from broker.photometry import magnitude_to_flux
from broker.records import LightCurve, PhotometryKind, TimeSystem
from broker.sky import separation
from broker.state.merge import MAX_POINTS, merge
from broker.surveys.columns import MAX_UNKNOWN_BANDS

_SAME_PLACE: Final = 360.0
"""Arcsec within which the rows of one name must lie: moving stars and poor positions do."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedLightCurve:
    """One object of a table."""

    name: str
    ra: float
    """ICRS degrees, as ``dec``; NaN where the table has none, or none that can be."""
    dec: float
    light_curve: LightCurve
    """In order of time; points at the same time and band are merged."""
    problem: str | None
    """Why points had to be left out, None where all are in."""
    unknown_bands: tuple[str, ...] = ()
    """Bands, as the table spells them, of points that were left out because no wavelength is known for them."""
    time_system: TimeSystem = TimeSystem.UTC
    """Of the times of ``light_curve``."""


class ObjectBuilder:
    """Objects of one file, from its rows."""

    def __init__(self, columns: Columns, report: Report, time: TimeColumn, time_system: TimeSystem) -> None:
        """``time`` and ``time_system`` say what the times of the table are; ``report`` gets what is left out."""
        self._columns, self._report, self._time, self._time_system = columns, report, time, time_system

    def objects(self, rows: Rows, bounds: NDArray[np.intp]) -> Iterator[NamedLightCurve]:
        """One object for the rows between each two ``bounds``."""
        time, magnitude, error = rows.points
        mjd, _ = self._time.to_mjd(time)
        flux, flux_error = magnitude_to_flux(np.where(rows.reason == 0, magnitude, np.nan), error)
        for first, last in pairwise(bounds):
            low, high = rows.start[first], rows.start[last]
            own = slice(low, high)
            reason = rows.reason[own].copy()
            problems = []
            if rows.uneven[first:last].any():
                columns = self._columns
                problems.append(f"lists {columns.time}, {columns.magnitude}, {columns.error} of unequal length")
            ra, dec, apart = _place(rows.ra[first:last], rows.dec[first:last])
            if apart > _SAME_PLACE:
                problems.append(
                    f"the rows of this name lie up to {apart / 3600:.3g} degrees apart: more than one object; "
                    "name them apart"
                )
                self._report.line(f"{rows.name[first]}: {problems[-1]}")
                reason[:] = LeftOut.POSITION
                ra = dec = float("nan")
            self._report.wide += 3.0 < apart <= _SAME_PLACE
            band = rows.band[own]
            if (band == UNNAMED).any():
                good = reason == 0
                band = band.copy()
                band[good] = split_filters(mjd[own][good], magnitude[own][good], band[good])
                reason[good & (band == UNNAMED)] = LeftOut.FILTER
            leave_out_far(self._report, rows.name[first], mjd[own], magnitude[own], band, reason)
            used = low + np.flatnonzero(reason == 0)
            curve = merge(
                LightCurve(
                    mjd[used], flux[used].astype(np.float32), flux_error[used].astype(np.float32),
                    np.zeros(len(used), np.float32), band[used - low],
                    np.full(len(used), PhotometryKind.DETECTION, np.uint8),
                ),
                LightCurve.empty(), 0,
            )  # fmt: skip
            counts = Counter(reason[reason > 0].tolist())
            unknown: tuple[str, ...] = ()
            if len(curve) < len(used):
                counts[LeftOut.REPEATED] = len(used) - len(curve)
            thinned = _thinned(curve)
            if len(thinned) < len(curve):
                counts[LeftOut.THINNED] = len(curve) - len(thinned)
            if len(thinned) > 1 and np.ptp(thinned.mjd) < SHORTEST:
                counts[LeftOut.AT_ONCE] = len(thinned)
                thinned = LightCurve.empty()
            if counts:
                examples: dict[int, str] = {}
                if counts[LeftOut.TIME]:
                    bad = int(low) + int(np.argmax(reason == LeftOut.TIME))
                    examples[LeftOut.TIME] = self._time.mistake(float(time[bad]))
                if counts[LeftOut.POSITION] and apart <= _SAME_PLACE:
                    row = first + int(np.argmax(is_wrong(rows.ra[first:last], rows.dec[first:last])))
                    examples[LeftOut.POSITION] = f"ra {rows.ra[row]:g}, dec {rows.dec[row]:g}"
                if unknown := self._report.band_names(band[reason == LeftOut.BAND]):
                    named = ", ".join(map(repr, unknown[:MAX_UNKNOWN_BANDS]))
                    examples[LeftOut.BAND] = f"in column {self._columns.band}: {named}"
                problems.append(self._report.describe(counts, high - low, examples))
            self._report.left_out.update(counts)
            yield NamedLightCurve(
                rows.name[first], ra, dec, thinned, "; ".join(problems) or None, unknown[:MAX_UNKNOWN_BANDS],
                self._time_system,
            )  # fmt: skip


def _thinned(curve: LightCurve) -> LightCurve:
    """At most MAX_POINTS in each band, evenly chosen in order of time."""
    if len(curve) <= MAX_POINTS:
        return curve
    kept = []
    for band in np.unique(curve.band):
        own = np.flatnonzero(curve.band == band)
        if len(own) > MAX_POINTS:
            own = own[np.arange(MAX_POINTS) * (len(own) - 1) // (MAX_POINTS - 1)]
        kept.append(own)
    index = np.sort(np.concatenate(kept))
    return replace(
        curve,
        **{
            name: getattr(curve, name)[index]
            for name in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
        },
    )


def is_wrong(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which positions are given, but cannot be."""
    with np.errstate(invalid="ignore"):
        return (ra < -180.0) | (ra > 360.0) | (np.abs(dec) > 90.0)


def _place(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median position of rows, and how far they lie apart, in arcsec; NaN, NaN, 0 where none has one."""
    good = np.isfinite(ra) & np.isfinite(dec) & ~is_wrong(ra, dec)
    if not good.any():
        return float("nan"), float("nan"), 0.0
    ra, dec = np.mod(ra[good], 360.0), dec[good]
    if (ra == ra[0]).all() and (dec == dec[0]).all():
        return float(ra[0]), float(dec[0]), 0.0
    # Relative to a whole degree near all of them, so that 359.9 and 0.1 are neighbours.
    around = np.exp(1j * np.radians(ra)).sum()
    middle = float(np.round(np.degrees(np.angle(around))))
    centre_ra = float(np.mod(middle + np.median(np.mod(ra - middle + 180.0, 360.0) - 180.0), 360.0))
    centre_dec = float(np.median(dec))
    from_centre = separation(ra, dec, np.full(len(ra), centre_ra), np.full(len(ra), centre_dec))
    furthest = int(np.argmax(from_centre))
    apart = separation(ra, dec, np.full(len(ra), ra[furthest]), np.full(len(ra), dec[furthest]))
    return centre_ra, centre_dec, float(apart.max())
