"""Conversions of times against numbers worked out by hand and against astropy."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from astropy.time import Time

from broker import times


def test_julian_dates() -> None:
    assert times.mjd_of_jd(2_458_119.5) == 58_119.0  # 2018 January 1, 0 h
    assert times.jd_of_mjd(58_119.25) == 2_458_119.75
    found = times.mjd_of_jd(np.array([2_451_545.0, 2_400_000.5]))
    assert (found.tolist(), found.dtype) == ([51_544.5, 0.0], np.float64)


def test_tai_is_37_seconds_ahead_of_utc() -> None:
    tai = Time("2025-06-01T12:00:00", scale="tai")
    found = times.utc_of_tai(float(tai.mjd))
    assert found == pytest.approx(float(tai.utc.mjd), abs=1e-9)
    assert (tai.mjd - found) * 86_400 == pytest.approx(37.0, abs=1e-5)


def test_unix_seconds() -> None:
    assert times.mjd_of_unix(0.0) == 40_587.0
    assert times.mjd_of_unix(1_514_764_800.0 + 43_200) == 58_119.5
    assert times.mjd_of_unix(1.75e9) == pytest.approx(float(Time(1.75e9, format="unix").mjd), abs=1e-9)


def test_julian_years() -> None:
    assert times.julian_year_of(51_544.5) == 2000.0
    assert times.julian_year_of(np.array([51_544.5 + 16 * 365.25])).tolist() == [2016.0]  # Gaia's epoch
    assert times.julian_year_of(60_000.0) == pytest.approx(float(Time(60_000.0, format="mjd").jyear), abs=1e-9)


def test_times_with_a_zone() -> None:
    noon = datetime(2018, 1, 1, 12, tzinfo=UTC)
    assert times.mjd_of(noon) == 58_119.5
    assert times.datetime_of(58_119.5) == noon
    before = times.mjd_of(datetime.now(UTC))
    assert before <= times.mjd_now() <= times.mjd_of(datetime.now(UTC))
