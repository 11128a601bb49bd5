"""Rubin gives times in TAI, which is ahead of UTC: by as much as astropy says, in packets and in tables."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from broker.lightcurves.files import read_light_curves
from broker.surveys import Decoder
from tests.unit.surveys.test_decoder import alerts_of, lsst
from tests.unit.surveys.test_flags import rubin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of astropy's bundled earth-rotation tables, not used here
    from astropy.time import Time


def utc_of_tai(mjd: float) -> float:
    return float(Time(mjd, format="mjd", scale="tai").utc.mjd)


def test_astropy_has_utc_37_seconds_behind() -> None:
    assert (61000.0 - utc_of_tai(61000.0)) * 86400 == pytest.approx(37.0, abs=1e-5)


@pytest.mark.parametrize("version", [900, 1101])
def test_times_of_lsst_packets_are_utc(version: int) -> None:
    (alert,) = alerts_of(Decoder().decode(rubin(version, [{}, {}], [{}])))
    expected = [utc_of_tai(tai) for tai in (60980.0, 60990.0, 60991.0, 61000.0)]
    assert sorted(alert.light_curve.mjd.tolist()) == pytest.approx(expected, abs=1e-9)
    assert alert.mjd == pytest.approx(utc_of_tai(61000.0), abs=1e-9)


def test_when_lsst_detected_an_object_first_is_utc() -> None:
    (alert,) = alerts_of(Decoder().decode(lsst(1101, object_values={"firstDiaSourceMjdTai": 60500.25})))
    assert alert.first_detected == pytest.approx(utc_of_tai(60500.25), abs=1e-9)


@pytest.mark.parametrize(
    ("column", "ahead"), [("midpointMjdTai", 37.0), ("expMidptMJD", 37.0), ("mjd", 0.0), ("obsmjd", 0.0)]
)
def test_times_of_tables_are_utc(tmp_path: Path, column: str, ahead: float) -> None:
    path = tmp_path / "star.csv"
    rows = [f"S1,120.5,10.25,{59000.0 + day},15.{day},0.01,r" for day in range(6)]
    path.write_text("\n".join([f"name,ra,dec,{column},mag,magerr,band", *rows]) + "\n")
    (star,) = read_light_curves(path, lambda said: None)
    expected = [59000.0 + day - ahead / 86400 for day in range(6)]
    assert star.light_curve.mjd.tolist() == pytest.approx(expected, abs=1e-9)
