"""Light curves in fluxes, and layouts of archives beyond magnitudes in a table: values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from broker.errors import InputFileError
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.objects import NamedLightCurve
from broker.records import BANDS, TimeSystem

NJY = 2.5 * np.log10(3631e9)
"""AB magnitude of 1 nJy: magnitude 0 is 3631 Jy."""
FLUX = np.array([1000.0, 1210.0, 1331.0, 900.0, 950.0, np.nan, 1100.0, -5.0])
ERROR = np.array([10.0, 11.0, 12.0, 9.0, 9.5, 10.0, 11.0, 10.0])


def one(path: Path) -> tuple[NamedLightCurve, list[str]]:
    said: list[str] = []
    (curve,) = read_light_curves(path, said.append)
    return curve, said


def mission_file(path: Path, mission: str, unit: str, quality: str, columns: dict[str, tuple[str, object]]) -> Path:
    """A light curve as the missions' pipelines write it: primary header, a table LIGHTCURVE."""
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = mission
    primary.header["OBJECT"] = {"TESS": "TIC 25155310", "Kepler": "KIC 757076"}[mission]
    primary.header["RA_OBJ"], primary.header["DEC_OBJ"] = 63.37389, -69.22678
    time = 1325.5 + 0.5 * np.arange(len(FLUX))
    flags = np.array([0, 64, 0, 128 if mission == "TESS" else 256, 0, 0, 0, 0], np.int32)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TIME", "D", unit, array=time),
            fits.Column("TIMECORR", "E", "d", array=np.zeros(len(FLUX))),
            fits.Column("CADENCENO", "J", array=np.arange(len(FLUX))),
            *(fits.Column(name, "E", its, array=values) for name, (its, values) in columns.items()),
            fits.Column(quality, "J", array=flags),
        ],
        name="LIGHTCURVE",
    )
    fits.HDUList([primary, table]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("mission", "unit", "quality", "epoch", "band", "zero"),
    [
        ("TESS", "BJD - 2457000, days", "QUALITY", 2457000.0, "tess:T", 20.44),
        ("Kepler", "BJD - 2454833", "SAP_QUALITY", 2454833.0, "kepler:Kp", 25.10),
    ],
)
def test_light_curves_of_tess_and_kepler(
    mission: str, unit: str, quality: str, epoch: float, band: str, zero: float, tmp_path: Path
) -> None:
    columns = {
        "SAP_FLUX": ("e-/s", 2 * FLUX), "SAP_FLUX_ERR": ("e-/s", ERROR),
        "PDCSAP_FLUX": ("e-/s", FLUX), "PDCSAP_FLUX_ERR": ("e-/s", ERROR),
    }  # fmt: skip
    curve, said = one(mission_file(tmp_path / "lc.fits", mission, unit, quality, columns))
    kept = [0, 1, 2, 4, 6]  # not the flagged one, the missing one and the negative one
    assert curve.light_curve.mjd.tolist() == pytest.approx(
        [epoch + 1325.5 + 0.5 * n - 2400000.5 for n in kept], abs=1e-9
    )
    assert curve.light_curve.flux == pytest.approx(10 ** ((NJY - zero) / 2.5) * FLUX[kept], rel=1e-5)
    assert curve.light_curve.flux_error == pytest.approx(10 ** ((NJY - zero) / 2.5) * ERROR[kept], rel=1e-5)
    assert {BANDS[b] for b in curve.light_curve.band} == {band}
    assert (curve.ra, curve.dec) == (63.37389, -69.22678)
    assert curve.name == {"TESS": "TIC 25155310", "Kepler": "KIC 757076"}[mission]
    assert curve.time_system is TimeSystem.BARYCENTRIC
    assert f"1 flagged as bad in column {quality}" in (curve.problem or "")
    assert "2 without a flux above 0 in column PDCSAP_FLUX" in (curve.problem or "")
    assert any(f"fluxes in column PDCSAP_FLUX are read with {zero:.2f} mag for a flux of 1" in line for line in said)


def test_what_lightkurve_writes(tmp_path: Path) -> None:
    """``LightCurve.to_fits`` of a normalised light curve: the unit of the time is its format, the flux has none."""
    columns = {"FLUX": ("", FLUX / 1000), "FLUX_ERR": ("", ERROR / 1000)}
    curve, said = one(mission_file(tmp_path / "lc.fits", "TESS", "btjd", "QUALITY", columns))
    assert curve.light_curve.mjd[0] == 2457000.0 + 1325.5 - 2400000.5
    flux = curve.light_curve.flux
    assert flux / flux[0] == pytest.approx([1.0, 1.21, 1.331, 0.95, 1.1], rel=1e-5)
    assert curve.light_curve.flux_error / flux == pytest.approx((ERROR / FLUX)[[0, 1, 2, 4, 6]], rel=1e-5)
    assert any("whose unit is not known: only their variation is used" in line for line in said)


def test_epoch_photometry_of_gaia(tmp_path: Path) -> None:
    """As Gaia's archive gives it by DataLink (EPOCH_PHOTOMETRY, CSV): the error of a magnitude is a ratio of fluxes."""
    path = tmp_path / "EPOCH_PHOTOMETRY-Gaia DR3 5937173203239393664.csv"
    path.write_text(
        "source_id,transit_id,band,time,mag,flux,flux_error,flux_over_error,rejected_by_photometry,"
        "rejected_by_variability,other_flags,solution_id\n"
        "5937173203239393664,17096015000000000,G,1705.9437360,15.216572,15442.5,50.0,308.85,false,false,1,375316653866487564\n"
        "5937173203239393664,17096015000000001,BP,1705.9438360,15.61,7000.0,70.0,100.0,false,false,0,375316653866487564\n"
        "5937173203239393664,17096015000000002,RP,1706.0,14.7,9000.0,90.0,100.0,true,false,0,375316653866487564\n"
        "5937173203239393664,17096015000000003,RP,1707.0,14.8,8000.0,160.0,50.0,false,false,0,375316653866487564\n"
    )
    curve, _ = one(path)
    assert curve.name == "5937173203239393664"
    assert curve.light_curve.mjd == pytest.approx([56902.943736, 56902.943836, 56904.0], abs=1e-7)
    assert [BANDS[b] for b in curve.light_curve.band] == ["gaia:G", "gaia:BP", "gaia:RP"]
    assert curve.light_curve.flux == pytest.approx(10 ** ((NJY - np.array([15.216572, 15.61, 14.8])) / 2.5), rel=1e-5)
    assert curve.light_curve.flux_error / curve.light_curve.flux == pytest.approx([1 / 308.85, 0.01, 0.02], rel=1e-5)
    assert curve.time_system is TimeSystem.BARYCENTRIC


def test_the_aavso_as_its_download_writes_it(tmp_path: Path) -> None:
    """Most rows have no HJD; visual estimates have no error; limits begin with <."""
    path = tmp_path / "aavsodata.txt"
    path.write_text(
        "JD,Magnitude,Uncertainty,HQuncertainty,Band,Observer Code,Comment Code(s),Comp Star 1,Comp Star 2,Charts,"
        "Comments,Transfomed,Airmass,Validation Flag,Cmag,Kmag,HJD,Star Name,Observer Affiliation,Measurement Method,"
        "Grouping Method,ADS Reference,Digitizer,Credit\n"
        "2459454.919896,14.844,0.088,,V,HMB,,UCAC4 254-024861,,,,0,1.791,Z,17.689,17.636,,ASASSN-21QJ,VVS,STD,,,,\n"
        "2459455.919896,14.744,0.02,,CV,HMB,,,,,,0,1.791,Z,,,2459455.9191,ASASSN-21QJ,VVS,STD,,,,\n"
        "2459456.5,13.9,,,Vis.,XYZ,,,,,,0,,Z,,,,ASASSN-21QJ,,STD,,,,\n"
        "2459457.5,<15.2,0.1,,V,XYZ,,,,,,0,,Z,,,,ASASSN-21QJ,,STD,,,,\n"
        "2459458.5,14.1,0.05,,TG,XYZ,,,,,,0,,Z,,,,ASASSN-21QJ,,STD,,,,\n"
    )
    curve, _ = one(path)
    assert curve.name == "ASASSN-21QJ"
    assert curve.light_curve.mjd == pytest.approx([59454.419896, 59455.419896, 59458.0], abs=1e-7)
    assert curve.light_curve.flux == pytest.approx(10 ** ((NJY - np.array([14.844, 14.744, 14.1])) / 2.5), rel=1e-5)
    assert curve.time_system is TimeSystem.UTC


@pytest.mark.parametrize(
    ("header", "nanojansky"),
    [("mjd,flux_ujy,fluxerr_ujy,band", None), ("mjd,flux [uJy],flux_err [uJy],band", 1e3), ("mjd,uJy,duJy,F", 1e3),
     ("mjd,flux(mJy),flux_err,filter", 1e6), ("midpointMjdTai,psfFlux,psfFluxErr,band", 1.0)],
)  # fmt: skip
def test_units_of_fluxes(header: str, nanojansky: float | None, tmp_path: Path) -> None:
    path = tmp_path / "star.csv"
    path.write_text("\n".join([header, *(f"{60000 + n},{100 + n},{1 + n / 100},o" for n in range(6))]) + "\n")
    if header.startswith("midpoint"):
        path.write_text(path.read_text().replace(",o", ",r"))
    if nanojansky is None:
        with pytest.raises(InputFileError, match=r"no column for the magnitude.*nor one of fluxes"):
            one(path)
        return
    curve, _ = one(path)
    assert curve.light_curve.flux == pytest.approx(nanojansky * (100 + np.arange(6)), rel=1e-5)
    assert curve.light_curve.flux_error == pytest.approx(nanojansky * (1 + np.arange(6) / 100), rel=1e-5)
    assert {BANDS[b] for b in curve.light_curve.band} == {"lsst:r" if header.startswith("midpoint") else "atlas:o"}


@pytest.mark.parametrize(
    ("value", "error", "flux_error"),
    [(("flux", "uJy"), ("flux_err", "mJy"), 10e6), (("flux", "uJy"), ("flux_err", "nJy"), 10.0),
     (("flux", "uJy"), ("flux_err", None), 10e3), (("flux", "uJy"), ("flux_err", "m"), None),
     (("mag", "mag"), ("magerr", "mmag"), 0.01), (("mag", "mag"), ("magerr", "mag"), None)],
)  # fmt: skip
def test_errors_have_a_unit_of_their_own(
    value: tuple[str, str], error: tuple[str, str | None], flux_error: float | None, tmp_path: Path
) -> None:
    """20,000 of a flux with an error of 10, or magnitude 20 with an error of 10: nJy, and magnitudes."""
    path = tmp_path / "star.ecsv"
    table = Table({"mjd": 60000.0 + np.arange(6), value[0]: np.full(6, 20.0 if value[0] == "mag" else 2e4)})
    table[error[0]] = np.full(6, 10.0)
    table[value[0]].unit, table[error[0]].unit = value[1], error[1]
    table["band"] = ["ztf:g"] * 6
    table.write(path, format="ascii.ecsv")
    if flux_error is None and value[0] == "mag":
        assert len(one(path)[0].light_curve.mjd) == 0  # an error of over a magnitude says nothing
    elif flux_error is None:
        with pytest.raises(InputFileError, match="flux_err are in m, fluxes in flux in uJy"):
            one(path)
    else:
        curve = one(path)[0].light_curve
        expected = flux_error if value[0] == "flux" else curve.flux * flux_error * np.log(10) / 2.5
        assert curve.flux_error == pytest.approx(expected, rel=1e-5)


def test_nested_light_curves_of_rubin(tmp_path: Path) -> None:
    """``dia_object_collection`` of DP1 in HATS: two nested columns, whose points are not mixed; bands are LSST's."""

    def nested(points: int, names: list[str]) -> dict[str, list[object]]:
        values = {
            "band": list("gr" * points)[:points], "midpointMjdTai": (60600.0 + np.arange(points)).tolist(),
            "psfMag": [20.0] * points, "psfMagErr": [0.1] * points, "psfFlux": [7.0] * points,
            "psfFluxErr": [1.0] * points, "psfFlux_flag": [False] * (points - 1) + [True],
        }  # fmt: skip
        return {name: values[name] for name in names}

    forced = ["band", "midpointMjdTai", "psfFlux", "psfFluxErr", "psfMag", "psfMagErr", "psfFlux_flag"]
    table = pa.table(
        {
            "dec": [-28.28], "diaObjectId": [609782208097419314], "nDiaSources": [4], "ra": [52.838269],
            "diaSource": [nested(4, ["band", "midpointMjdTai", "psfFlux", "psfFluxErr"])],
            "diaObjectForcedSource": [nested(7, forced)],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "Npix=1.parquet")
    curve, _ = one(tmp_path / "Npix=1.parquet")
    assert curve.name == "609782208097419314"
    assert len(curve.light_curve) == 6
    assert [BANDS[b] for b in curve.light_curve.band] == ["lsst:g", "lsst:r"] * 3
    assert curve.light_curve.flux == pytest.approx([10 ** ((NJY - 20.0) / 2.5)] * 6, rel=1e-6)
    assert curve.light_curve.mjd[0] == pytest.approx(60600.0 - 37 / 86400, abs=1e-9)
