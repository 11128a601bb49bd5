"""What the survey modules share: columns of a batch's photometry to light curves, and checks of single values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.avro.machine import NULL, OTHER
from broker.avro.reader import FilledTable
from broker.records import BAND_CODE, BANDS, SOURCE_FEATURES, LightCurve, PhotometryKind, SourceMetadata

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_MJD: Final = 1e10
"""Times outside of 0 to this are no numbers of days, whatever the survey: LSST's official sample packets hold times
near MJD 1.5e9."""
MAX_FLUX: Final = 3.631e10
"""nJy, AB magnitude 5: ZTF saturates near 12.5 mag (Bellm et al. 2019, PASP 131, 018002), LSST near 16; a brighter
"measurement", or an error as large, is a code or damage."""
FUTURE_DAYS: Final = 30.0
"""Days by which a detection may be later than the receipt of its alert, where the settings say nothing else
(``pipeline.future_days``). Simulated streams run ahead of the clock by some days; and what one alert can spoil within
them, the next ones put right."""
HISTORY_ALLOWANCE: Final = 1.0
"""Days by which points of a packet may be later than its own detection. Surveys send earlier points only; packets
that brokers wrote again hold the whole night (up to 0.25 d later in 95 of 420 packets of ZTF)."""
LIMIT_SIGMA: Final = 5.0
"""Upper limits are published at five sigma, by ZTF as by LSST."""
UNKNOWN_BAND: Final = 255
MAX_UNKNOWN_BANDS: Final = 8
"""Of one object that are named."""
_COLUMN: Final = {name: index for index, name in enumerate(SOURCE_FEATURES)}


@dataclass(frozen=True, slots=True)
class TimeRange:
    """When a survey can have observed, MJD UTC."""

    first: float = 0.0
    last: float = MAX_MJD
    """For real surveys the alert's receipt is the bound that matters."""
    simulated: bool = False
    """Whether times are not those of the sky above us, so that they may be later than the alert's receipt."""

    def bound(self, latest: Numbers) -> Numbers:
        """The latest time (n,) that detections can have, where by their receipt it is ``latest`` (n,)."""
        return np.full(len(latest), self.last) if self.simulated else np.minimum(latest, self.last)


ANY_TIME: Final = TimeRange()


class PointFlaw(IntEnum):
    """Why a point of a packet is not used."""

    NONE = 0
    """It is used."""
    NO_VALUE = 1
    """No time, flux or positive error: nulls, NaN and the survey's codes for a missing value."""
    FLAGGED = 2
    """The survey itself says that the measurement failed, or is withdrawn."""
    SIGN = 3
    """The sign of a difference flux is not given, or in an unknown spelling."""
    BAND = 4
    """A band that the survey does not have."""
    BEFORE_SURVEY = 5
    AFTER_RECEIPT = 6
    """Later than the receipt of the alert that it came in."""
    AFTER_DETECTION = 7
    """Later than the detection of which the packet tells the past."""
    FLUX = 8
    """Flux or error beyond MAX_FLUX."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Photometry of a batch: columns of n points, in the units of LightCurve."""

    owner: Integers
    """(n,) the record that each point belongs to."""
    mjd: Numbers
    flux: Numbers
    flux_error: Numbers
    reference_flux: Numbers
    band: NDArray[np.uint8]
    """(n,) index into BANDS, or UNKNOWN_BAND."""
    kind: NDArray[np.uint8]
    """(n,) PhotometryKind."""
    left_out: NDArray[np.uint8] | None = None
    """(n,) LeftOut of what the survey's module leaves out by itself; None for nothing."""


def light_curves(
    points: Points,
    count: int,
    *,
    times: TimeRange = ANY_TIME,
    detected: Numbers | None = None,
    latest: Numbers | None = None,
    left_out: Counter[str] | None = None,
) -> list[LightCurve]:
    """The light curves of ``count`` records, each in order of time; points of one time stay in the order given.

    Points are left out as LeftOut says, and counted in ``left_out`` by its names in lower case. ``detected`` (count,)
    is the MJD of each record's own detection, ``latest`` (count,) see ``Records.latest``; None where not known. The
    columns are views of one array each.
    """
    with np.errstate(over="ignore"):
        flux, error, reference = (
            column.astype(np.float32) for column in (points.flux, points.flux_error, points.reference_flux)
        )
    limit = points.kind == PhotometryKind.LIMIT
    flux[limit] = np.nan
    reference[~(np.abs(reference) <= MAX_FLUX)] = np.nan
    why = _why_left_out(points, flux, error, limit, times, detected, latest)
    if left_out is not None:
        found = np.bincount(why, minlength=len(PointFlaw)).tolist()
        left_out.update({reason.name.lower(): found[reason] for reason in PointFlaw if reason and found[reason]})
    kept = np.flatnonzero(why == PointFlaw.NONE)
    owner = points.owner[kept]
    order = np.lexsort((points.mjd[kept], owner))
    kept = kept[order]
    columns = (points.mjd[kept], flux[kept], error[kept], reference[kept], points.band[kept], points.kind[kept])
    ends = np.searchsorted(owner[order], np.arange(count + 1)).tolist()
    mjd, flux, error, reference, band, kind = columns
    return [
        LightCurve(mjd[a:b], flux[a:b], error[a:b], reference[a:b], band[a:b], kind[a:b]) for a, b in pairwise(ends)
    ]


def _why_left_out(
    points: Points, flux: NDArray[np.float32], error: NDArray[np.float32], limit: Mask, times: TimeRange,
    detected: Numbers | None, latest: Numbers | None,
) -> NDArray[np.uint8]:  # fmt: skip
    """LeftOut (n,) of each point, the first that applies of those in the order of its values."""
    mjd, owner = points.mjd, points.owner
    checks = [
        # What is assigned last wins.
        (PointFlaw.FLUX, (np.abs(flux) > MAX_FLUX) | (error > MAX_FLUX)),
        (PointFlaw.AFTER_DETECTION, None if detected is None else mjd > (detected + HISTORY_ALLOWANCE)[owner]),
        (PointFlaw.AFTER_RECEIPT, mjd > (times.last if latest is None else times.bound(latest)[owner])),
        (PointFlaw.BEFORE_SURVEY, mjd < times.first),
        (PointFlaw.BAND, points.band == UNKNOWN_BAND),
    ]
    why = np.zeros(len(mjd), np.uint8)
    for reason, wrong in checks:
        if wrong is not None:
            why[wrong] = reason
    if points.left_out is not None:
        np.copyto(why, points.left_out, where=points.left_out != PointFlaw.NONE)
    why[~((mjd > 0) & (mjd < MAX_MJD) & (error > 0) & (limit | ~np.isnan(flux)))] = PointFlaw.NO_VALUE
    return why


def implausible(curve: LightCurve, times: TimeRange, latest: float) -> NDArray[np.uint8]:
    """LeftOut (n,) of the points of a stored light curve, whose times can be MJD ``latest`` at most."""
    limit = curve.kind == PhotometryKind.LIMIT
    known = (curve.band < len(BANDS)) & (curve.kind <= max(PhotometryKind))
    points = Points(
        np.zeros(len(curve), np.int64), curve.mjd, curve.flux.astype(np.float64), curve.flux_error.astype(np.float64),
        curve.reference_flux.astype(np.float64), np.where(known, curve.band, UNKNOWN_BAND).astype(np.uint8), curve.kind,
    )  # fmt: skip
    return _why_left_out(points, curve.flux, curve.flux_error, limit, times, None, np.array([latest]))


def label(text: str) -> int:
    """How the machine holds a string of up to eight bytes."""
    return int.from_bytes(text.encode().ljust(8, b"\0"), "little", signed=True)


def label_text(value: int) -> str:
    """The inverse of ``label``; empty for null and longer strings."""
    return "" if value in (NULL, OTHER) else value.to_bytes(8, "little", signed=True).rstrip(b"\0").decode()


def band_codes(values: Integers, table: Mapping[int, str]) -> NDArray[np.uint8]:
    """Codes (n,) of a survey's own bands, numbers or labels; those not in ``table`` become UNKNOWN_BAND."""
    codes = np.full(len(values), UNKNOWN_BAND, np.uint8)
    for value, band in table.items():
        codes[values == value] = BAND_CODE[band]
    return codes


def unknown_bands(
    owner: Integers, values: Integers, codes: NDArray[np.uint8], text: Callable[[int], str]
) -> dict[int, tuple[str, ...]]:
    """The survey's own bands ``values`` (n,) of which ``codes`` (n,) are UNKNOWN_BAND, by record; ``text`` spells them.

    Of each record in ``owner`` (n,) the first MAX_UNKNOWN_BANDS.
    """
    rows = np.flatnonzero(codes == UNKNOWN_BAND)
    found: dict[int, tuple[str, ...]] = {}
    if len(rows):
        for record, value in np.unique(np.stack([owner[rows], values[rows]]), axis=1).T.tolist():
            named = found.setdefault(record, ())
            if len(named) < MAX_UNKNOWN_BANDS:
                found[record] = (*named, "null" if value == NULL else text(value) or "more than 8 characters")
    return found


def share_or_none(values: Numbers) -> list[float | None]:
    """Scores (n,), None for what is not between 0 and 1."""
    good = (values >= 0) & (values <= 1)
    return [value if ok else None for value, ok in zip(values.tolist(), good.tolist(), strict=True)]


def or_none(values: Integers) -> list[int | None]:
    """Integers (n,), None for null."""
    return [None if value == NULL else value for value in values.tolist()]


def counts(values: Integers) -> list[int | None]:
    """Numbers of detections (n,), None for what is none."""
    return [value if 0 < value < 2**31 else None for value in values.tolist()]


def times(mjd: Numbers, within: TimeRange) -> list[float | None]:
    """Times (n,), None for those at which the survey cannot have observed."""
    return [time if within.first <= time <= within.last else None for time in mjd.tolist()]


@dataclass(slots=True)
class Checks:
    """Finds the first thing wrong with each of n records."""

    reasons: list[str | None]

    @staticmethod
    def of(count: int) -> Checks:
        """Nothing wrong yet."""
        return Checks([None] * count)

    def refuse(self, wrong: Mask, reason: str, *values: Sequence[Any] | NDArray[Any]) -> None:
        """Note ``reason`` for records (n,) where ``wrong`` and nothing was noted before; ``values`` fill it in."""
        if not wrong.any():
            return
        for row in np.flatnonzero(wrong).tolist():
            if self.reasons[row] is None:
                filled = (v[row].item() if isinstance(v, np.ndarray) else v[row] for v in values)
                self.reasons[row] = reason.format(*filled)

    def position(self, packet: FilledTable) -> tuple[Numbers, Numbers]:
        """The columns ``ra`` and ``dec``; refused where they are missing or are no ICRS degrees."""
        ra, dec = packet.numbers("ra"), packet.numbers("dec")
        self.refuse(packet.is_null("ra"), "the packet has no ra")
        self.refuse(packet.is_null("dec"), "the packet has no dec")
        good = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
        self.refuse(~good, "ra {}, dec {} is no position", ra, dec)
        return ra, dec

    def time(self, mjd: Numbers, times: TimeRange = ANY_TIME, latest: Numbers | None = None) -> None:
        """MJD (n,) of the detections that is none, or at which the survey cannot have observed.

        ``latest`` (n,) see ``Records.latest``; None where not known.
        """
        self.refuse(~((mjd > 0) & (mjd < MAX_MJD)), "MJD {} is no time of observation", mjd)
        self.refuse(mjd < times.first, f"MJD {{}} is before the survey began (MJD {times.first:.0f})", mjd)
        if latest is not None and not times.simulated:
            self.refuse(
                mjd > latest,
                "MJD {} is after the alert was received, the latest allowed is {:.3f} (pipeline.future_days): "
                "its time, or this machine's clock, is wrong",
                mjd, latest,
            )  # fmt: skip
        self.refuse(mjd > times.last, f"MJD {{}} is after the survey's last (MJD {times.last:.0f})", mjd)


def metadata(count: int, values: Iterable[tuple[str, Numbers]]) -> list[SourceMetadata | None]:
    """Catalogue values of ``count`` records from columns (count,) by name, NaN where unknown; None where all are."""
    table = np.full((count, len(SOURCE_FEATURES)), np.nan, np.float32)
    known = np.zeros(count, np.bool_)
    for name, column in values:
        table[:, _COLUMN[name]] = column
        known |= ~np.isnan(column)
    return [SourceMetadata(row) if some else None for row, some in zip(table, known.tolist(), strict=True)]
