"""What the survey modules share: columns of a packet's photometry to a LightCurve, and checks of single values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import DecodeError
from broker.records import BAND_CODE, LightCurve, PhotometryKind
from broker.surveys.wire import Record

TAI_MINUS_UTC: Final = 37.0 / 86400.0
"""Days by which TAI is ahead of UTC since 2017 (IERS Bulletin C); no alert of LSST is older."""
MAX_MJD: Final = 1e10
"""Times outside of 0 to this are no numbers of days. Generous, since LSST's official sample packets hold times
near MJD 1.5e9; what is too far off for a light curve is left out when that is assembled."""
LIMIT_SIGMA: Final = 5.0
"""Upper limits are published at five sigma, by ZTF as by LSST."""
_UNKNOWN_BAND: Final = 255


def numbers(values: Iterable[Any]) -> NDArray[np.float64]:
    """Values of one field of several records, (n,); NaN for null."""
    return np.array([math.nan if value is None else value for value in values], np.float64)


def band_codes(names: Iterable[Any], table: dict[Any, str]) -> NDArray[np.uint8]:
    """Codes (n,) of the survey's own names of bands; those not in ``table`` are marked, and dropped later."""
    codes = {name: BAND_CODE[band] for name, band in table.items()}
    return np.array([codes.get(name, _UNKNOWN_BAND) for name in names], np.uint8)


@dataclass(slots=True)
class Photometry:
    """Collects the points of one packet."""

    _parts: list[tuple[NDArray[Any], ...]] = field(default_factory=list)

    def add(
        self,
        kind: PhotometryKind,
        mjd: NDArray[np.float64],
        flux: NDArray[np.float64],
        flux_error: NDArray[np.float64],
        reference_flux: NDArray[np.float64],
        band: NDArray[np.uint8],
    ) -> None:
        """Add n points, in the units of LightCurve; those without a usable time, band, flux or error are dropped."""
        with np.errstate(over="ignore"):
            columns = [flux.astype(np.float32), flux_error.astype(np.float32), reference_flux.astype(np.float32)]
        good = (mjd > 0) & (mjd < MAX_MJD) & (columns[1] > 0) & np.isfinite(columns[1]) & (band != _UNKNOWN_BAND)
        if kind is PhotometryKind.LIMIT:
            columns[0] = np.full(len(mjd), np.nan, np.float32)
        else:
            good &= np.isfinite(columns[0])
        columns[2][~np.isfinite(columns[2])] = np.nan
        self._parts.append((mjd[good], *(c[good] for c in columns), band[good], np.full(good.sum(), kind, np.uint8)))

    def light_curve(self) -> LightCurve:
        """All points, in order of time."""
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return LightCurve(*(column[order] for column in columns))


def required(record: Record, *names: str) -> Any:
    """The first of ``names`` that the record has; raises DecodeError where it has none or it is null."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise DecodeError(f"the packet has no {names[0]}")


def first(record: Record, *names: str) -> Any:
    """The first of ``names`` that the record has and that is not null, else None."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def position(ra: float, dec: float) -> tuple[float, float]:
    """Checked ICRS degrees; raises DecodeError where they are none."""
    if not (0.0 <= ra <= 360.0 and -90.0 <= dec <= 90.0):
        raise DecodeError(f"ra {ra}, dec {dec} is no position")
    return float(ra), float(dec)


def time(mjd: float) -> float:
    """A checked MJD; raises DecodeError where it is none."""
    if not 0.0 < mjd < MAX_MJD:
        raise DecodeError(f"MJD {mjd} is no time of observation")
    return float(mjd)


def score(value: Any) -> float | None:
    """A score between 0 and 1, None where it is missing or none."""
    return float(value) if value is not None and 0.0 <= value <= 1.0 else None


def column(records: Sequence[Record], *names: str) -> list[Any]:
    """One field of several records of one type, under the first of ``names`` that this type has."""
    if not records:
        return []
    name = next((name for name in names if name in records[0]), names[0])
    return [record.get(name) for record in records]
