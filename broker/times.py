"""Times: everything inside is MJD (UTC) in days. Epochs and clocks; conversions of other times are in
``lightcurves/columns`` (JD, HJD, BJD of tables), ``surveys/ztf`` (JD), ``surveys/lsst`` (TAI) and ``barycentre``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

JD_OF_MJD_0: Final = 2_400_000.5
JD_OF_J2000: Final = 2_451_545.0
MJD_OF_J2000: Final = JD_OF_J2000 - JD_OF_MJD_0
MJD_OF_1970: Final = 40_587.0
"""MJD at which Unix time begins."""
TAI_MINUS_UTC: Final = 37.0 / 86400.0
"""Days by which TAI is ahead of UTC since 2017 (IERS Bulletin C); at most a second more than before that."""
_MJD_0: Final = datetime(1858, 11, 17, tzinfo=UTC)


def mjd_now() -> float:
    """The current time, MJD UTC."""
    return mjd_of(datetime.now(UTC))


def mjd_of(time: datetime) -> float:
    """A time with a time zone as MJD UTC."""
    return (time - _MJD_0) / timedelta(days=1)


def datetime_of(mjd: float) -> datetime:
    """An MJD UTC as a time of the zone UTC; raises OverflowError outside of the years 1 to 9999, ValueError for NaN."""
    return _MJD_0 + timedelta(days=mjd)
