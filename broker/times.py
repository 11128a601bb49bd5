"""Times: everything inside is MJD (UTC) in days; JD, TAI, Unix time and Julian years are converted here.

What depends on where and in which direction one looks, from the observatory to the solar system's barycentre, is in
``barycentre``; which of these scales a column of a table has is told in ``lightcurves/time_column``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

JD_OF_MJD_0: Final = 2_400_000.5
MJD_OF_J2000: Final = 51_544.5
"""MJD at which Julian year 2000.0 begins (JD 2451545.0)."""
JULIAN_YEAR: Final = 365.25
"""Days."""
MJD_OF_1970: Final = 40_587.0
"""MJD at which Unix time begins."""
TAI_MINUS_UTC: Final = 37.0 / 86400.0
"""Days by which TAI is ahead of UTC since 2017 (IERS Bulletin C); at most a second more than before that."""
_LATEST: Final = 1e6
"""MJD, in the year 4596."""
_MJD_0: Final = datetime(1858, 11, 17, tzinfo=UTC)

T = TypeVar("T", float, NDArray[np.float64])


def mjd_now() -> float:
    """The current time, MJD UTC."""
    return mjd_of(datetime.now(UTC))


def mjd_of(time: datetime) -> float:
    """A time with a time zone as MJD UTC."""
    return (time - _MJD_0) / timedelta(days=1)


def datetime_of(mjd: float) -> datetime:
    """An MJD UTC as a time of the zone UTC; raises OverflowError outside of the years 1 to 9999, ValueError for NaN.

    To the nearest 10 microseconds: an MJD of our time is a multiple of 0.6, and a time in whole milliseconds would else
    lose one where they are cut off, as they are in Avro.
    """
    time = timedelta(days=mjd)
    return _MJD_0 + timedelta(time.days, time.seconds, 10 * round(time.microseconds / 10))


def moment_of(text: str) -> float:
    """MJD UTC of an MJD, or of an ISO 8601 time, which is UTC where it names no zone; raises ValueError for others."""
    try:
        mjd = float(text)
    except ValueError:
        time = datetime.fromisoformat(text.strip())
        return mjd_of(time if time.tzinfo else time.replace(tzinfo=UTC))
    if not abs(mjd) <= _LATEST:
        raise ValueError(f"{text} is no MJD")
    return mjd


def mjd_of_jd(jd: T) -> T:
    """A Julian date as MJD, on the same scale."""
    return jd - JD_OF_MJD_0


def jd_of_mjd(mjd: T) -> T:
    """An MJD as a Julian date, on the same scale."""
    return mjd + JD_OF_MJD_0


def utc_of_tai(mjd: T) -> T:
    """An MJD TAI as MJD UTC."""
    return mjd - TAI_MINUS_UTC


def mjd_of_unix(seconds: T) -> T:
    """Seconds since 1970 as MJD UTC."""
    return MJD_OF_1970 + seconds / 86400.0


def julian_year_of(mjd: T) -> T:
    """An MJD as a Julian year, such as 2016.0, in which epochs of positions are given."""
    return 2000.0 + (mjd - MJD_OF_J2000) / JULIAN_YEAR
