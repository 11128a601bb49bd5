"""What the survey modules share: columns of a batch's photometry to light curves, and checks of single values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.metadata import METADATA_FEATURES
from broker.records import BAND_CODE, LightCurve, PhotometryKind, SourceMetadata
from broker.surveys.machine import NULL, OTHER
from broker.surveys.reader import Rows

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

TAI_MINUS_UTC: Final = 37.0 / 86400.0
"""Days by which TAI is ahead of UTC since 2017 (IERS Bulletin C); no alert of LSST is older."""
MAX_MJD: Final = 1e10
"""Times outside of 0 to this are no numbers of days. Generous, since LSST's official sample packets hold times
near MJD 1.5e9; what is too far off for a light curve is left out when that is assembled."""
LIMIT_SIGMA: Final = 5.0
"""Upper limits are published at five sigma, by ZTF as by LSST."""
UNKNOWN_BAND: Final = 255
_COLUMN: Final = {name: index for index, name in enumerate(METADATA_FEATURES)}


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


def light_curves(points: Points, count: int) -> list[LightCurve]:
    """The light curves of ``count`` records, each in order of time; points of one time stay in the order given.

    Points without a usable time, band, flux or error are dropped. The columns are views of one array each.
    """
    with np.errstate(over="ignore"):
        flux, error, reference = (
            column.astype(np.float32) for column in (points.flux, points.flux_error, points.reference_flux)
        )
    limit = points.kind == PhotometryKind.LIMIT
    good = (points.mjd > 0) & (points.mjd < MAX_MJD) & (error > 0) & np.isfinite(error) & (points.band != UNKNOWN_BAND)
    good &= limit | np.isfinite(flux)
    flux[limit] = np.nan
    reference[~np.isfinite(reference)] = np.nan
    kept = np.flatnonzero(good)
    owner = points.owner[kept]
    order = np.lexsort((points.mjd[kept], owner))
    kept = kept[order]
    columns = (points.mjd[kept], flux[kept], error[kept], reference[kept], points.band[kept], points.kind[kept])
    ends = np.searchsorted(owner[order], np.arange(count + 1)).tolist()
    mjd, flux, error, reference, band, kind = columns
    return [
        LightCurve(mjd[a:b], flux[a:b], error[a:b], reference[a:b], band[a:b], kind[a:b]) for a, b in pairwise(ends)
    ]


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


def score(values: Numbers) -> list[float | None]:
    """Scores (n,), None for what is not between 0 and 1."""
    good = (values >= 0) & (values <= 1)
    return [value if ok else None for value, ok in zip(values.tolist(), good.tolist(), strict=True)]


def or_none(values: Integers) -> list[int | None]:
    """Integers (n,), None for null."""
    return [None if value == NULL else value for value in values.tolist()]


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

    def position(self, packet: Rows) -> tuple[Numbers, Numbers]:
        """The columns ``ra`` and ``dec``; refused where they are missing or are no ICRS degrees."""
        ra, dec = packet.numbers("ra"), packet.numbers("dec")
        self.refuse(packet.is_null("ra"), "the packet has no ra")
        self.refuse(packet.is_null("dec"), "the packet has no dec")
        good = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
        self.refuse(~good, "ra {}, dec {} is no position", ra, dec)
        return ra, dec

    def time(self, mjd: Numbers) -> None:
        """MJD that is none."""
        self.refuse(~((mjd > 0) & (mjd < MAX_MJD)), "MJD {} is no time of observation", mjd)


def metadata(count: int, values: Iterable[tuple[str, Numbers]]) -> list[SourceMetadata | None]:
    """Catalogue values of ``count`` records from columns (count,) by name, NaN where unknown; None where all are."""
    table = np.full((count, len(METADATA_FEATURES)), np.nan, np.float32)
    known = np.zeros(count, np.bool_)
    for name, column in values:
        table[:, _COLUMN[name]] = column
        known |= ~np.isnan(column)
    return [SourceMetadata(row) if some else None for row, some in zip(table, known.tolist(), strict=True)]
