"""Times at the solar system's barycentre: against astropy, and in light curves."""

from __future__ import annotations

import json
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers
from click.testing import CliRunner
from numpy.typing import NDArray

from broker.assemble import assemble
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.barycentre import barycentric_light_curves, light_travel_time
from broker.cli import main
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.time_column import TimeColumn
from broker.records import BAND_CODE, LightCurve, ObjectState, TimeSystem
from broker.times import JD_OF_MJD_0

PALOMAR = EarthLocation.from_geodetic(-116.863 * u.deg, 33.356 * u.deg, 1712 * u.m)
R_SQUARED = LIGHT_CURVE_FEATURES.index("r2_period")
PERIOD = 0.05


def of_astropy(mjd: NDArray[np.float64], ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Days by which light reaches the barycentre later than Palomar."""
    time = Time(mjd, format="mjd", scale="utc", location=PALOMAR)
    time.delta_ut1_utc = 0.0
    place = SkyCoord(ra, dec, unit="deg")
    # The table of the Earth's rotation that astropy has with it: newer ones come from the network.
    with iers.earth_orientation_table.set(iers.IERS_B.open()):
        return np.asarray(time.light_travel_time(place, kind="barycentric", ephemeris="builtin").to_value("day"))


def test_light_travel_time_is_astropys() -> None:
    rng = np.random.default_rng(0)
    mjd = rng.uniform(45_000, 60_000, 500)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    difference = (light_travel_time(mjd, ra, dec) - of_astropy(mjd, ra, dec)) * 86400
    assert np.abs(difference).max() < 0.05  # the Earth's radius is 0.021 light seconds
    assert np.abs(of_astropy(mjd, ra, dec)).max() * 86400 > 480


def test_times_outside_the_ephemeris_and_unknown_places() -> None:
    mjd = np.array([15_000.0, 90_000.0, 58_000.0, np.nan])
    correction = light_travel_time(mjd, np.array([10.0, 10.0, np.nan, 10.0]), np.zeros(4))
    assert correction[:2].tolist() == [0.0, 0.0]
    assert np.isnan(correction[2])
    assert correction[3] == 0.0


def star(seed: int = 0) -> tuple[LightCurve, LightCurve]:
    """600 points of a star of 0.05 d at the vernal equinox over three years: at Palomar, and at the barycentre."""
    rng = np.random.default_rng(seed)
    mjd = 58_000 + np.sort(rng.uniform(0, 1000, 600))
    at_barycentre = mjd + of_astropy(mjd, np.zeros(600), np.zeros(600))
    magnitude = 15 + 0.2 * np.cos(2 * np.pi * at_barycentre / PERIOD) + rng.normal(0, 0.02, 600)
    flux = (3631e9 * 10 ** (-0.4 * magnitude)).astype(np.float32)
    columns = (
        flux, 0.02 * flux, np.zeros(600, np.float32), np.full(600, BAND_CODE["ztf:g"], np.uint8),
        np.zeros(600, np.uint8),
    )  # fmt: skip
    return LightCurve(mjd, *columns), LightCurve(at_barycentre, *columns)


def test_a_short_period_is_found_in_times_of_the_observatory() -> None:
    observed, at_barycentre = star()
    states = [
        ObjectState("alert", 0.0, 0.0, observed),
        ObjectState("table of BJD", 0.0, 0.0, at_barycentre, time_system=TimeSystem.BARYCENTRIC),
        ObjectState("table of HJD", 0.0, 0.0, at_barycentre, time_system=TimeSystem.HELIOCENTRIC),
        ObjectState("as it was before", 0.0, 0.0, observed, time_system=TimeSystem.BARYCENTRIC),
        ObjectState("corrected twice", 0.0, 0.0, at_barycentre),
    ]
    inputs = assemble(states).light_curve
    r_squared = inputs.features[:, R_SQUARED]
    assert r_squared[:3] == pytest.approx(0.98, abs=0.01)
    assert r_squared[3:].max() < 0.85
    np.testing.assert_allclose(inputs.period[:3], PERIOD, rtol=1e-5)


def test_only_what_needs_it_is_corrected() -> None:
    observed, at_barycentre = star()
    known = ObjectState("a", 0.0, 0.0, observed)
    empty = ObjectState("b", 0.0, 0.0, LightCurve.empty())
    lost = ObjectState("c", float("nan"), float("nan"), observed)
    done = ObjectState("d", 0.0, 0.0, at_barycentre, time_system=TimeSystem.HELIOCENTRIC)
    curves = barycentric_light_curves([known, empty, lost, done, known])
    np.testing.assert_allclose(curves[0].mjd, at_barycentre.mjd, rtol=0, atol=0.05 / 86400)
    np.testing.assert_array_equal(curves[4].mjd, curves[0].mjd)
    np.testing.assert_array_equal(curves[0].flux, observed.flux)
    assert [curves[1], curves[2], curves[3]] == [empty.light_curve, observed, at_barycentre]
    assert barycentric_light_curves([]) == []


@pytest.mark.parametrize(
    ("column", "system"),
    [
        ("mjd", "UTC"), ("jd", "UTC"), ("time", "UTC"), ("obsmjd", "UTC"), ("midpointMjdTai", "UTC"),
        ("hjd", "HELIOCENTRIC"), ("HMJD", "HELIOCENTRIC"), ("HJD-2450000", "HELIOCENTRIC"),
        ("lc.hmjd", "HELIOCENTRIC"), ("bjd", "BARYCENTRIC"), ("bmjd", "BARYCENTRIC"), ("BJD_TDB", "BARYCENTRIC"),
        ("BTJD", "BARYCENTRIC"), ("bkjd", "BARYCENTRIC"),
    ],
)  # fmt: skip
def test_the_column_says_where_the_times_are(column: str, system: str) -> None:
    assert TimeColumn(column, 70_000.0).system is TimeSystem[system]


@pytest.mark.parametrize("column", ["midpointMjdTai", "mjd_tai", "expMidptMJD"])
def test_times_of_tai_become_utc(column: str) -> None:
    mjd, _ = TimeColumn(column, 70_000.0).to_mjd(np.array([60_000.0]))
    assert (60_000.0 - mjd[0]) * 86400 == pytest.approx(37.0, abs=1e-5)


def table(path: Path, column: str, time: NDArray[np.float64], curve: LightCurve) -> Path:
    magnitude = -2.5 * np.log10(curve.flux.astype(np.float64) / 3631e9)
    columns = {
        "name": ["a"], "ra": [0.0], "dec": [0.0], column: [time.tolist()], "mag": [magnitude.tolist()],
        "magerr": [[0.02] * len(time)], "filter": ["zg"],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)
    return path


def test_a_table_is_corrected_once_and_its_times_are_not_called_utc(tmp_path: Path) -> None:
    observed, at_barycentre = star()
    heliocentric = table(tmp_path / "h.parquet", "hjd", at_barycentre.mjd + JD_OF_MJD_0, observed)
    (curve,) = read_light_curves(heliocentric)
    assert curve.time_system is TimeSystem.HELIOCENTRIC
    records = {}
    for path, *options in (
        (heliocentric,),
        (table(tmp_path / "m.parquet", "mjd", observed.mjd, observed),),
        (table(tmp_path / "said.parquet", "mjd", at_barycentre.mjd, observed), "--times", "barycentric"),
        (table(tmp_path / "short.parquet", "bjd", at_barycentre.mjd[:3], observed.take(np.arange(3))),),
    ):
        result = CliRunner().invoke(main, ["classify", "--lightcurves", str(path), *options, "--json"])
        assert result.exit_code == 0
        records[path.stem] = json.loads(result.stdout)
    systems = {name: record["timeSystem"] for name, record in records.items()}
    assert systems == {"h": "HMJD", "m": "MJD UTC", "said": "BMJD", "short": "BMJD"}
    assert records["h"]["mjd"] == pytest.approx(at_barycentre.mjd[-1], abs=1e-8)
    assert records["m"]["mjd"] == observed.mjd[-1]  # published as observed
