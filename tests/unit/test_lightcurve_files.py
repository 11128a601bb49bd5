"""Tables of light curves as archives write them: what is read, what is left out, and why."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import InputFileError
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.objects import NamedLightCurve
from broker.records import BANDS, TimeSystem

CASES = Path(__file__).parents[1] / "data" / "cases"
HEADER = "name,ra,dec,mjd,mag,mag_err,band"
BASELINE = (CASES / "00-baseline" / "star.csv").read_text().splitlines()[1:]

AT_THE_OBSERVATORY = ", UTC at the observatory (--times heliocentric or barycentric, if they are not)"


def read(path: Path) -> tuple[list[NamedLightCurve], list[str]]:
    said: list[str] = []
    return list(read_light_curves(path, said.append)), [line.removeprefix(f"{path}: ") for line in said]


def one(path: Path) -> tuple[NamedLightCurve, list[str]]:
    curves, said = read(path)
    assert len(curves) == 1
    return curves[0], said


def write(folder: Path, rows: Sequence[str], header: str = HEADER, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def same(first: NamedLightCurve, second: NamedLightCurve, time: float = 0.0) -> bool:
    """Whether two light curves hold the same points, up to ``time`` days."""
    a, b = first.light_curve, second.light_curve
    return (
        len(a) == len(b)
        and bool(np.all(np.abs(a.mjd - b.mjd) <= time))
        and np.array_equal(a.flux, b.flux)
        and np.array_equal(a.flux_error, b.flux_error)
        and np.array_equal(a.band, b.band)
    )


def baseline() -> NamedLightCurve:
    return one(CASES / "00-baseline" / "star.csv")[0]


@pytest.mark.parametrize("name", ["comments.csv", "latin1.csv", "space.txt", "tab.tsv"])
def test_dialects_of_text(name: str) -> None:
    curve, _ = one(CASES / "06-csv-dialects" / name)
    assert same(curve, baseline())
    assert (curve.ra, curve.dec, curve.problem) == (120.5, 10.25, None)
    assert curve.name == ("Étoile-1" if name == "latin1.csv" else "F1")


def _semicolons(text: str) -> bytes:
    return text.replace(",", ";").encode()


def _decimal_commas(text: str) -> bytes:
    return text.replace(",", ";").replace(".", ",").encode()


def _quoted(text: str) -> bytes:
    return "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()).encode()


def _vizier(text: str) -> bytes:
    header, *rows = text.splitlines()
    units = "\t".join(["", "deg", "deg", "d", "mag", "mag", ""])
    dashes = "\t".join("-" * len(name) for name in header.split(","))
    rows = [row.replace(",", "\t") for row in rows]
    return "\n".join(["#INFO of VizieR", "", header.replace(",", "\t"), units, dashes, *rows, ""]).encode()


def _ipac(text: str) -> bytes:
    header, *rows = text.splitlines()
    names = "|" + "|".join(f"{name:>12}" for name in header.split(",")) + "|"
    kinds = "|" + "|".join(f"{'double':>12}" for _ in header.split(",")) + "|"
    rows = [" " + " ".join(f"{cell:>12}" for cell in row.split(",")) for row in rows]
    return "\n".join(["\\fixlen = T", "\\RowsRetrieved = 60", names, kinds, kinds, *rows, ""]).encode()


DIALECTS = {
    "semicolons": _semicolons,
    "decimal commas": _decimal_commas,
    "quoted": _quoted,
    "bars": lambda text: text.replace(",", "|").encode(),
    "blanks of any number": lambda text: text.replace(",", "   ").replace("\n", "  \n  ").encode(),
    "blanks after commas": lambda text: text.replace(",", ", ").encode(),
    "a comma at the end": lambda text: text.replace("\n", ",\n").replace("band,", "band", 1).encode(),
    "capitals": lambda text: (HEADER.upper() + text[len(HEADER) :]).encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
    "carriage returns alone": lambda text: text.replace("\n", "\r").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "comments between rows": lambda text: text.replace("\n", "\n# night\n").encode(),
    "comments of IRAF": lambda text: ("! a comment\n" + text.replace("\n", "\n// another\n", 3)).encode(),
    "percent comments": lambda text: ("% a comment\n\n" + text).encode(),
    "names in a comment": lambda text: ("# a comment\n#" + text.replace(",", " ")).encode(),
    "D exponents": lambda text: text.replace("0.020", "2.0D-2").encode(),
    "VizieR": _vizier,
    "IPAC": _ipac,
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_dialects(dialect: str, tmp_path: Path) -> None:
    path = tmp_path / "star.dat"
    path.write_bytes(DIALECTS[dialect]("\n".join([HEADER, *BASELINE]) + "\n"))
    curve, said = one(path)
    assert same(curve, baseline())
    assert (curve.name, curve.ra, curve.dec, curve.problem) == ("S1", 120.5, 10.25, None)
    assert [line for line in said if "read as MJD" not in line] == []


def test_the_position_and_the_name_may_stand_in_comments(tmp_path: Path) -> None:
    rows = [",".join(row.split(",")[3:]) for row in BASELINE]
    path = write(tmp_path, rows, "# object: RR Xyz\n# RA = 08:02:00\n# Dec: +10.25\nMJD,Mag,Mag Error,Filter")
    curve, _ = one(path)
    assert (curve.name, curve.dec) == ("RR Xyz", 10.25)
    assert curve.ra == pytest.approx(120.5)
    assert same(curve, baseline())


def test_zwicky_data_release() -> None:
    folder = CASES / "01-ztf-dr-irsa-csv"
    curve, said = one(folder / "irsa.csv.gz")
    assert len(curve.light_curve) == 54
    assert {BANDS[b] for b in curve.light_curve.band} == {"ztf:g"}
    assert curve.problem == "6 of 60 points left out: 6 flagged as bad in column catflags"
    assert "6 of 60 points left out: 6 flagged as bad in column catflags" in said
    for name in ("renamed_band_fid.csv", "renamed_band_zg.csv"):
        curve, _ = one(folder / name)
        assert curve.name == "686103400034440"
        assert same(curve, baseline())


@pytest.mark.parametrize(
    ("spelling", "band"),
    [
        ("zr", "ztf:r"), ("2", "ztf:r"), ("3.0", "ztf:i"), ("ztf_g", "ztf:g"), ("ZTF r", "ztf:r"), ("ztfi", "ztf:i"),
        ("V", "asas:V"), ("'g'", "ztf:g"), ("lsst_y", "lsst:y"), ("LSST:u", "lsst:u"), ("o", "atlas:o"),
        ("cyan", "atlas:c"), ("ATLAS-o", "atlas:o"), ("Johnson V", "johnson:V"), ("SDSS_u", "sdss:u"),
        ("Pan-STARRS i", "ps1:i"), ("ASAS-SN g", "asassn:g"), ("Bessell R", "cousins:R"), ("G", "gaia:G"),
    ],
)  # fmt: skip
def test_spellings_of_bands(spelling: str, band: str, tmp_path: Path) -> None:
    curve, _ = one(write(tmp_path, [row.removesuffix("g") + spelling for row in BASELINE]))
    assert {BANDS[b] for b in curve.light_curve.band} == {band}
    assert len(curve.light_curve) == 60


def test_unknown_bands_are_named(tmp_path: Path) -> None:
    rows = [*BASELINE, *[row.removesuffix("g") + "F814W" for row in BASELINE[:3]]]
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 60
    assert any("3 of a band that is not known" in line and "'F814W'" in line for line in said)
    assert curve.unknown_bands == ("F814W",)
    curve, _ = one(write(tmp_path, rows[-3:]))
    assert curve.problem is not None
    assert "'F814W'" in curve.problem


def test_unknown_bands_are_those_of_the_object(tmp_path: Path) -> None:
    rows = [*BASELINE, *[row.removesuffix("g") + "F814W" for row in BASELINE[:3]]]
    second = [row.replace("S1", "S2").removesuffix("g") + band for row in BASELINE[:9] for band in ("F606W", "g", "Zz")]
    third = [row.replace("S1", "S3") for row in BASELINE]
    curves, _ = read(write(tmp_path, [*rows, *second, *third]))
    assert [curve.name for curve in curves] == ["S1", "S2", "S3"]
    assert [curve.unknown_bands for curve in curves] == [("F814W",), ("F606W", "Zz"), ()]
    assert [len(curve.light_curve) for curve in curves] == [60, 9, 60]
    assert curves[1].problem is not None
    assert "(in column band: 'F606W', 'Zz')" in curves[1].problem


def test_sky_patrol() -> None:
    curve, said = one(CASES / "03-asassn-csv" / "skypatrol_v1.csv")
    assert curve.name == "skypatrol_v1"
    assert np.isnan(curve.ra)
    assert {BANDS[b] for b in curve.light_curve.band} == {"asassn:V"}
    assert len(curve.light_curve) == 48
    assert "12 of 60 points left out: 12 upper limits (such as '>16.234')" in said
    adapted, _ = one(CASES / "03-asassn-csv" / "adapted_v1.csv")
    assert np.array_equal(adapted.light_curve.flux, curve.light_curve.flux)
    limits, _ = one(CASES / "03-asassn-csv" / "only_limits_v2.csv")
    assert len(limits.light_curve) == 0
    assert limits.problem is not None
    assert limits.problem.startswith("60 of 60 points left out: 60 with an error of 1.09 mag or more")


def test_sky_patrol_of_its_second_version(tmp_path: Path) -> None:
    rows = [
        f"{2400000.5 + float(t)},3.0,0.1,{mag},{error},17.1,1.5,{'gV'[n % 2]},{'B' if n < 4 else 'G'},bk"
        for n, (_, _, _, t, mag, error, _) in enumerate(row.split(",") for row in BASELINE)
    ]
    rows[-1] = rows[-1].replace(",0.020,", ",99.99,")
    header = "# ASAS-SN Sky Patrol 2.0\nJD,Flux,Flux Error,Mag,Mag Error,Limit,FWHM,Filter,Quality,Camera"
    curve, said = one(write(tmp_path, rows, header))
    assert len(curve.light_curve) == 55
    assert {BANDS[b] for b in curve.light_curve.band} == {"asassn:g", "asassn:V"}
    assert any("4 flagged as bad in column Quality" in line for line in said)


def test_atlas_as_its_server_writes_it(tmp_path: Path) -> None:
    rows = [
        f"{t} {mag} {error} 500 10 {'co'[n % 2]} 0 1.1 120.50001 10.25001 100.2 200.1 2.5 2.4 -30 -0.4 19.5 21.1 obs"
        for n, (_, _, _, t, mag, error, _) in enumerate(row.split(",") for row in BASELINE)
    ]
    rows.insert(5, rows[7].replace(rows[7].split()[1], "-20.754", 1))
    header = "###MJD m dm uJy duJy F err chi/N RA Dec x y maj min phi apfit mag5sig Sky Obs"
    curve, said = one(write(tmp_path, rows, header, "forced.txt"))
    assert curve.name == "forced"
    assert (curve.ra, curve.dec) == (120.50001, 10.25001)
    assert len(curve.light_curve) == 60
    assert {BANDS[b] for b in curve.light_curve.band} == {"atlas:c", "atlas:o"}
    assert any("1 without a possible magnitude in column m" in line for line in said)


ARCHIVES = {
    "Catalina": "MasterID,Mag,Magerr,RA,Decl,MJD,Blend",
    "AAVSO": "JD,Magnitude,Uncertainty,HQuncertainty,Band,Observer Code,Star Name",
    "ZTF by SNAD": "oid,filter,mjd,mag,magerr,clrcoeff",
    "ZTF by ALeRCE": "oid,fid,mjd,magpsf,sigmapsf",
    "VizieR": "Name,RAJ2000,DEJ2000,HJD,Vmag,e_Vmag",
    "ASAS-SN by its client": "asas_sn_id,jd,flux,flux_err,mag,mag_err,limit,fwhm,image_id,camera,quality,phot_filter",
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_columns_of_archives(archive: str, tmp_path: Path) -> None:
    header = ARCHIVES[archive].split(",")
    star = baseline()
    rows = []
    for row in BASELINE:
        _, ra, dec, mjd, mag, error, _ = row.split(",")
        time = mjd if "mjd" in ARCHIVES[archive].lower() else f"{float(mjd) + 2400000.5:.5f}"
        known = {
            "masterid": "S1", "oid": "S1", "star name": "S1", "name": "S1", "asas_sn_id": "S1", "ra": ra, "decl": dec,
            "raj2000": ra, "dej2000": dec, "mjd": time, "jd": time, "hjd": time, "mag": mag, "magnitude": mag,
            "magpsf": mag, "vmag": mag, "magerr": error, "uncertainty": error, "sigmapsf": error, "e_vmag": error,
            "mag_err": error, "band": "V", "filter": "zg", "fid": "1", "quality": "G", "phot_filter": "V",
        }  # fmt: skip
        rows.append(",".join(known.get(name.lower(), "7") for name in header))
    curve, said = one(write(tmp_path, rows, ",".join(header)))
    assert curve.name == "S1"
    assert curve.light_curve.mjd == pytest.approx(star.light_curve.mjd, abs=1e-8)
    assert np.array_equal(curve.light_curve.flux, star.light_curve.flux)
    assert np.array_equal(curve.light_curve.flux_error, star.light_curve.flux_error)
    assert curve.ra == 120.5 or archive not in ("Catalina", "VizieR")
    # The times, and the band where no column has it.
    assert len(said) == 1 + any(line.startswith("no column for the band: taken as asas:V") for line in said)


def test_lists_in_text(tmp_path: Path) -> None:
    mjd, mag, error = (" ".join(row.split(",")[n] for row in BASELINE) for n in (3, 4, 5))
    for quoted in (
        f'"[{mjd}]","[{mag}]","[{error}]"',
        ",".join(f'"[{v.replace(" ", ", ")}]"' for v in (mjd, mag, error)),
    ):
        curve, _ = one(write(tmp_path, [f"S1,120.5,10.25,{quoted},g"]))
        assert same(curve, baseline())


def test_negative_fluxes_of_atlas_are_left_out() -> None:
    good, _ = one(CASES / "12-atlas-forced" / "good.csv")
    curve, said = one(CASES / "12-atlas-forced" / "with_negative_flux.csv")
    assert same(curve, good)
    assert any(line.startswith("6 of 66 points left out: 6 without a possible magnitude") for line in said)


CODES = ["-9.99,0.02", "9.999,0.02", "9.99,0.02", "0,0.02", "0.000,0.000", "99.99,99.99", "99.999,9.999", "-99,-1",
         "-999.0,0.02", "nan,nan", ",", "15.3,0", "15.3,-1", "15.3,99.99", "15.3,9.999", "15.3,nan", ">16.2,0.02",
         "<16.2,99.99", "> 16.2,99.99", "-20.75,3.1", "1e20,0.1", "25.0,0.02", "INDEF,INDEF", "inf,0.02",
         "19.999,0.02x", "--,--", "N/A,0.1", "30.0,0.02", "-inf,0.1"]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_codes_are_no_photometry(code: str, tmp_path: Path) -> None:
    curve, said = one(write(tmp_path, [*BASELINE[:30], f"S1,120.5,10.25,58700.5,{code},g", *BASELINE[30:]]))
    assert same(curve, baseline())
    assert curve.problem is not None
    assert curve.problem.startswith("1 of 61 points left out: 1 ")
    assert any(line.startswith("1 of 61 points left out: 1 ") for line in said)


def test_a_star_as_bright_as_a_code_keeps_its_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    magnitudes = np.round(10 + 0.4 * np.sin(np.arange(200)) + rng.normal(0, 0.02, 200), 2)
    magnitudes[:3] = 9.99
    rows = [f"B,1,2,{58000 + 1.37 * n:.4f},{m},0.02,V" for n, m in enumerate(magnitudes)]
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 200
    assert said == [f"times in column mjd (58000, ...) are read as MJD{AT_THE_OBSERVATORY}"]


def test_eclipses_and_outbursts_stay_and_single_far_points_are_named(tmp_path: Path) -> None:
    magnitudes = np.full(100, 15.0) + 0.01 * (np.arange(100) % 7)
    magnitudes[40:44] = [16.1, 18.2, 18.3, 16.9]  # an eclipse
    magnitudes[70:76] = [12.2, 10.8, 11.1, 11.9, 12.8, 13.7]  # an outburst
    rows = [f"E,1,2,{58000 + 0.37 * n:.4f},{m:.3f},0.02,V" for n, m in enumerate(magnitudes)]
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 100
    assert not any("left out" in line for line in said)
    rows[90] = "E,1,2,58033.3000,20.400,0.02,V"
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 100
    assert said[1:] == [
        "E: magnitude 20.4 at MJD 58033.30000 is 5.4 mag from the median 15.03 in asas:V, and no other is near it: kept"
    ]
    rows[90] = "E,1,2,58033.3000,25.400,0.02,V"
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 99
    assert any("25.4 at MJD 58033.30000" in line and line.endswith("left out as impossible") for line in said)


def test_rows_that_are_there_twice_count_once(tmp_path: Path) -> None:
    curve, said = one(CASES / "05-duplicated-rows" / "one_point_five_times.csv")
    assert len(curve.light_curve) == 1
    assert curve.problem == "4 of 5 points left out: 4 repeated at the same time in the same band"
    assert said[-1] == curve.problem
    curve, _ = one(write(tmp_path, [row for row in BASELINE for _ in range(3)]))
    assert same(curve, baseline())


def test_many_points_at_one_instant_are_one(tmp_path: Path) -> None:
    rows = [f"X,1,2,58600.25,{15 + 0.0001 * n:.4f},0.02,g" for n in range(5000)]
    curve, _ = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 1
    assert curve.problem == "4999 of 5000 points left out: 4999 repeated at the same time in the same band"


def test_one_visit_is_no_light_curve(tmp_path: Path) -> None:
    rows = [f"X,1,2,{58600.25 + 1e-6 * n:.6f},{15 + 0.0001 * n:.4f},0.02,g" for n in range(5000)]
    rows += [f"Y,3,4,58600.25,{15 + n},0.02,lsst:{band}" for n, band in enumerate("ugrizy")]
    curves, _ = read(write(tmp_path, rows))
    for curve, count in zip(curves, (5000, 6), strict=True):
        assert len(curve.light_curve) == 0
        assert curve.problem is not None
        assert curve.problem.startswith(f"{count} of {count} points left out: ")
        assert "within 0.01 d, too short a time to tell how a star varies" in curve.problem


def test_a_code_that_is_there_often_is_left_out(tmp_path: Path) -> None:
    rows = [row.replace(row.split(",")[4], "25.000") for row in BASELINE[::4]]
    curve, said = one(write(tmp_path, [*BASELINE, *[row.replace(",58", ",57") for row in rows]]))
    assert same(curve, baseline())
    assert any(line.startswith("15 of 75 points left out: 15 further than 5 mag") for line in said)


@pytest.mark.parametrize("name", ["jd.csv", "jd_in_mjd.csv", "mjd_in_hjd.csv", "hjd_minus_2450000.csv"])
def test_times_are_told_by_their_range(name: str) -> None:
    curve, said = one(CASES / "04-time-columns" / name)
    assert same(curve, baseline(), time=1e-8)
    assert curve.light_curve.mjd[0] == pytest.approx(58611.02365, abs=1e-8)
    column, way, but = {
        "jd.csv": ("jd (2458611.524, ...)", "JD", AT_THE_OBSERVATORY),
        "jd_in_mjd.csv": (
            "mjd (2458611.524, ...)",
            "JD",
            f", although the column's name says MJD{AT_THE_OBSERVATORY}",
        ),
        "mjd_in_hjd.csv": ("hjd (58611.02365, ...)", "MJD", ", although the column's name says JD, heliocentric"),
        "hjd_minus_2450000.csv": (
            "hjd (8611.52365, ...)",
            "JD-2450000",
            ", although the column's name says JD, heliocentric",
        ),
    }[name]
    assert said == [f"times in column {column} are read as {way}{but}"]


@pytest.mark.parametrize(
    ("column", "offset"),
    [
        ("HJD", 2400000.5), ("BJD", 2400000.5), ("bjd_tdb", 2400000.5), ("obsjd", 2400000.5), ("time", 2400000.5),
        ("time", 0.0), ("hmjd", 0.0), ("MJD-OBS", 0.0), ("btjd", -56999.5), ("BJD", 0.0), ("BTJD", 2400000.5),
        ("HJD-2450000", -49999.5), ("HJD (2450000+)", -49999.5), ("hjd_2450000", -49999.5), ("jd-2400000", 0.5),
        ("bkjd", -54832.5), ("BJD - 2457000", -56999.5), ("BJD", -49999.5), ("rjd", 0.5),
    ],
)  # fmt: skip
def test_names_and_epochs_of_times(column: str, offset: float, tmp_path: Path) -> None:
    cells = [row.split(",") for row in BASELINE]
    rows = [",".join([*c[:3], f"{float(c[3]) + offset:.5f}", *c[4:]]) for c in cells]
    curve, said = one(write(tmp_path, rows, HEADER.replace("mjd", column)))
    assert same(curve, baseline(), time=1e-8)
    assert len(said) == 1
    assert column in said[0]


@pytest.mark.parametrize("column", ["date_time", "date", "DATE-OBS", "obs_date"])
def test_dates_in_text_and_timestamps(column: str, tmp_path: Path) -> None:
    mjd = np.array([float(row.split(",")[3]) for row in BASELINE])
    dates = (np.datetime64("1858-11-17", "us") + np.round(mjd * 86400e6).astype("timedelta64[us]")).astype(str)
    rows = [
        ",".join([*row.split(",")[:3], date, *row.split(",")[4:]]) for row, date in zip(BASELINE, dates, strict=True)
    ]
    curve, _ = one(write(tmp_path, rows, HEADER.replace("mjd", column)))
    assert same(curve, baseline(), time=1e-8)


def test_magnitudes_with_a_unit_are_no_lists(tmp_path: Path) -> None:
    cells = [row.split(",") for row in BASELINE]
    curve, said = one(write(tmp_path, [",".join([*c[:4], f"{c[4]} mag", *c[5:]]) for c in cells]))
    assert len(curve.light_curve) == 0
    assert any(f"(such as '{cells[0][4]} mag')" in line for line in said), said


@pytest.mark.parametrize("missing", ["nan", "NaN", "null", "None", "inf"])
def test_a_number_and_a_missing_value_are_a_list(missing: str, tmp_path: Path) -> None:
    row = f"F1,120.5,10.25,58000.5 58001.5,15.2 {missing},0.02 0.02,ztf:r"
    curve, said = one(write(tmp_path, [row], "name,ra,dec,mjd,mag,magerr,band"))
    assert curve.light_curve.mjd.tolist() == [58000.5], said


def test_a_date_beside_the_time_is_not_taken_for_it(tmp_path: Path) -> None:
    header = HEADER.replace("mjd", "t")
    rows = [f"{row},{57000 + number}" for number, row in enumerate(BASELINE)]
    for column in ("date", "DATE-OBS", "obs_date"):
        curve, _ = one(write(tmp_path, rows, f"{header},{column}"))
        assert same(curve, baseline())


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ("1325.3", "days since some epoch"), ("0.25", "a phase?"), ("-2341008", "is no date"),
        ("2019.37", "a decimal year"), ("1556700000", "Unix time"), ("1556700000000", "milliseconds"),
        ("5064000000", "MJD in seconds"), ("20190501", "a calendar date"), ("79000.5", "later than now"),
        ("yesterday", "no number in column mjd"), ("", "no number in column mjd"), ("12000.5", "days since some epoch"),
        ("2479001.0", "later than now"),
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_with_the_likely_mistake(value: str, mistake: str, tmp_path: Path) -> None:
    rows = [",".join([*row.split(",")[:3], value, *row.split(",")[4:]]) for row in BASELINE]
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 0
    assert curve.problem is not None
    assert curve.problem.startswith("60 of 60 points left out: 60 without a possible time")
    assert mistake in curve.problem
    assert curve.problem in said
    curve, _ = one(write(tmp_path, [*BASELINE, rows[0]]))
    assert same(curve, baseline())


@pytest.mark.parametrize("times", [("1325.3", "bjd"), ("1325.3", "time"), ("1325.3", "mjd")])
def test_times_that_may_be_of_tess_are_not_guessed(times: tuple[str, str], tmp_path: Path) -> None:
    value, column = times
    rows = [",".join([*row.split(",")[:3], value, *row.split(",")[4:]]) for row in BASELINE]
    curve, _ = one(write(tmp_path, rows, HEADER.replace("mjd", column)))
    assert curve.problem is not None
    assert "btjd (BJD-2457000)" in curve.problem


def test_ids_beyond_floating_point(tmp_path: Path) -> None:
    folder = CASES / "07-parquet-ids"
    with pytest.raises(InputFileError, match=r"float64.parquet: column name holds ids as double, such as 6861.*int64"):
        read(folder / "float64.parquet")
    curves, _ = read(folder / "int64.parquet")
    assert [curve.name for curve in curves] == ["686103400034440123", "686103400034440124"]
    table = pq.read_table(folder / "int64.parquet")
    for kind, names in (
        (pa.float64(), pa.array([2.0**53 - 1] * 40 + [7.0] * 40)),
        (pa.float32(), pa.array([2.0**24 - 1] * 40 + [7.0] * 40)),
        (pa.string(), pa.array([str(2**53 - 1)] * 40 + ["7.0"] * 40)),
        (pa.dictionary(pa.int32(), pa.string()), pa.array(["686103400034440123"] * 40 + ["7"] * 40)),
        (pa.binary(), pa.array([b"686103400034440123"] * 40 + [b"7"] * 40)),
    ):
        path = tmp_path / "names.parquet"
        pq.write_table(table.set_column(0, "name", names.cast(kind)), path)
        curves, _ = read(path)
        first = {pa.float64(): 2**53 - 1, pa.float32(): 2**24 - 1, pa.string(): 2**53 - 1}
        assert [curve.name for curve in curves] == [str(first.get(kind, 686103400034440123)), "7"]
        assert [len(curve.light_curve) for curve in curves] == [40, 40]
    for large in (pa.array([2.0**24] * 80, pa.float32()), pa.array(["6.861034000344401e+17"] * 80)):
        pq.write_table(table.set_column(0, "name", large), tmp_path / "names.parquet")
        with pytest.raises(InputFileError, match="skip integers"):
            read(tmp_path / "names.parquet")


def test_structs_of_lists_and_lists_of_structs(tmp_path: Path) -> None:
    curves, said = read(CASES / "08-nested-parquet" / "hats_struct.parquet")
    assert [(c.name, c.ra, c.dec, len(c.light_curve), c.problem) for c in curves] == [
        ("1", 120.5, 10.0, 40, None), ("2", 121.0, 11.0, 40, None),
    ]  # fmt: skip
    assert said == ["times in column lightcurve.hmjd (58611.02365, ...) are read as MJD, heliocentric"]
    table = pq.read_table(CASES / "08-nested-parquet" / "hats_struct.parquet")
    structs = [
        [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
        for row in table["lightcurve"].to_pylist()
    ]
    column = table.schema.get_field_index("lightcurve")
    pq.write_table(table.set_column(column, "lc", pa.array(structs)), tmp_path / "structs.parquet")
    others, _ = read(tmp_path / "structs.parquet")
    assert [c.name for c in others] == ["1", "2"]
    assert all(same(a, b) for a, b in zip(curves, others, strict=True))


def test_flags_inside_nested_light_curves(tmp_path: Path) -> None:
    light_curve = {
        "hmjd": [58000.1, 58001.1, 58002.1], "mag": [15.0, 15.1, 15.2], "magerr": [0.1] * 3, "catflags": [0, 32768, 2],
    }  # fmt: skip
    table = pa.table({"objectid": [5], "objra": [1.0], "objdec": [2.0], "filterid": [2], "lightcurve": [light_curve]})
    pq.write_table(table, tmp_path / "flags.parquet")
    curve, _ = one(tmp_path / "flags.parquet")
    assert curve.light_curve.mjd.tolist() == [58000.1, 58002.1]
    assert [BANDS[b] for b in curve.light_curve.band] == ["ztf:r", "ztf:r"]


def test_one_name_at_two_places_is_no_object(tmp_path: Path) -> None:
    rows = [*BASELINE[:30], *[row.replace("120.5,", "310.5,") for row in BASELINE[30:]]]
    curve, said = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 0
    assert np.isnan([curve.ra, curve.dec]).all()
    assert curve.problem is not None
    assert "the rows of this name lie up to 157 degrees apart: more than one object" in curve.problem
    assert any(line.startswith("S1: the rows of this name lie") for line in said)
    rows = [
        row.replace("120.5,", f"{359.9999 + 0.00005 * (n % 5) - 360 * (n % 5 > 2)},") for n, row in enumerate(BASELINE)
    ]
    curve, _ = one(write(tmp_path, rows))
    assert curve.ra == pytest.approx(0.0, abs=1e-9) or curve.ra == pytest.approx(360.0, abs=1e-9)
    assert len(curve.light_curve) == 60


@pytest.mark.parametrize("position", ["400,10.25", "120.5,100", "-200,10.25", "120.5,-95", "inf,10", "abc,10.25"])
def test_positions_that_cannot_be(position: str, tmp_path: Path) -> None:
    rows = [row.replace("120.5,10.25", position) for row in BASELINE]
    curve, _ = one(write(tmp_path, rows))
    assert len(curve.light_curve) == 0
    assert np.isnan([curve.ra, curve.dec]).all()
    assert curve.problem is not None
    assert "60 of 60 points left out: 60 at a position that cannot be (ra " in curve.problem
    curve, _ = one(write(tmp_path, [*BASELINE, rows[0]]))
    assert same(curve, baseline())
    assert (curve.ra, curve.dec) == (120.5, 10.25)


def test_a_table_without_positions_is_read(tmp_path: Path) -> None:
    rows = [",".join(row.split(",")[3:]) for row in BASELINE]
    curve, _ = one(write(tmp_path, rows, "mjd,mag,mag_err,band", "V0001 Cyg.csv"))
    assert curve.name == "V0001 Cyg"
    assert np.isnan([curve.ra, curve.dec]).all()
    assert same(curve, baseline())


@pytest.mark.parametrize("offset", [0.0, 2400000.5, -49999.5])
def test_three_columns_without_names(offset: float, tmp_path: Path) -> None:
    cells = [row.split(",") for row in BASELINE]
    rows = [f"{float(c[3]) + offset:.5f} {c[4]} {c[5]}" for c in cells]
    path = tmp_path / "OGLE-LMC-RRLYR-00001.dat"
    path.write_text("\n".join(rows))
    curve, said = one(path)
    assert said[0] == "no line of column names: the columns are taken as hjd, mag, mag_err"
    assert curve.name == "OGLE-LMC-RRLYR-00001"
    assert curve.light_curve.mjd == pytest.approx(baseline().light_curve.mjd, abs=1e-8)
    assert np.array_equal(curve.light_curve.flux, baseline().light_curve.flux)


def test_negative_right_ascensions_are_turned(tmp_path: Path) -> None:
    curve, _ = one(write(tmp_path, [row.replace("120.5,", "-100.5,") for row in BASELINE]))
    assert curve.ra == 259.5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name,ra,dec,mjd,mag\na,1,2,3,4\n", "no column for the error.*; the table has name, ra, dec, mjd, mag"),
        (
            b"mjd,magntiude,err\n1,2,3\n",
            r"has mjd, magntiude, err \(did you mean magntiude\? --column says which is what\)$",
        ),
        (b"x;y\n1;2\n", "no column for the time.*; no column for the magnitude.*; the table has x, y"),
        (b"", "no line that is no comment"),
        (b"# only\n# comments\n", "no line that is no comment"),
        (HEADER.encode() + b"\n", "a table without rows"),
        (b"1,2,58000.5,15.0,0.1\n", "no line of column names above the 5 columns"),
        (b"\x00\x01\x02" * 50, "neither text nor Parquet"),
        (b"<html><body>Not found</body></html>", "an HTML page, perhaps of an error where a download was meant"),
        (HEADER.encode() + b"\n1,2,3\n4,5,6\n", "rows of 3 cells below 7 names"),
        (
            gzip.compress(HEADER.encode() + b"\n" + b"a,1,2,58000,15,0.1,g\n" * 5000, mtime=0)[:-60],
            "cut short: its gzip data end early",
        ),
        (gzip.compress(b"PAR1" + b"\0" * 100, mtime=0), "cannot be read: Parquet magic bytes not found in footer"),
    ],
)
def test_what_is_no_such_table_is_an_error_that_says_why(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()


def test_lists_of_unequal_length_are_counted(tmp_path: Path) -> None:
    columns = {
        "name": ["a", "a"], "ra": [1.0, 1.0], "dec": [2.0, 2.0], "mjd": [[58000.1, 58001.1], [58002.1]],
        "mag": [[15.0, 15.1], [15.2]], "mag_err": [[0.1], [0.1]],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    curve, said = one(tmp_path / "lists.parquet")
    assert curve.light_curve.mjd.tolist() == [58002.1]
    assert said[-1] == "rows left out for lists mjd, mag, mag_err of unequal length: 1"
    columns["mag"] = [[True], [True]]
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    with pytest.raises(InputFileError, match=r"lists.parquet: truth values where numbers should be"):
        read(tmp_path / "lists.parquet")


def test_rows_of_another_length_are_counted(tmp_path: Path) -> None:
    curve, said = one(write(tmp_path, [*BASELINE[:30], "S1,120.5,10.25,58700.5", *BASELINE[30:]]))
    assert same(curve, baseline())
    assert said[-1] == "rows left out for another number of cells than the header: 1"


def test_an_object_of_very_many_points_is_bounded(tmp_path: Path) -> None:
    size = 300_000
    rng = np.random.default_rng(0)
    columns = {
        "name": pa.array(["dense"] * size), "ra": np.full(size, 1.0), "dec": np.full(size, 2.0),
        "mjd": rng.permutation(58000 + 0.01 * np.arange(size)), "mag": rng.normal(15, 0.1, size),
        "mag_err": np.full(size, 0.02),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "dense.parquet")
    curve, said = one(tmp_path / "dense.parquet")
    assert len(curve.light_curve) == 2000
    assert curve.light_curve.mjd[[0, -1]].tolist() == [58000.0, 58000 + 0.01 * (size - 1)]
    assert np.diff(curve.light_curve.mjd).max() < 1.6
    assert "298000 of 300000 points left out: 298000 beyond 2000 in a band (an even choice in time is kept)" in said


CODE_ROWS = st.sampled_from([f"S1,120.5,10.25,58700.5,{code},g" for code in CODES if "," in code]) | st.sampled_from(
    ["S1,120.5,10.25,1325.3,15.3,0.02,g", "S1,400,10.25,58700.5,15.3,0.02,g", "S1,120.5,10.25,58700.5,15.3,0.02,xyz"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    order=st.permutations(range(60)),
    twice=st.lists(st.integers(0, 59), max_size=30),
    codes=st.lists(CODE_ROWS, max_size=20),
    at=st.lists(st.integers(0, 200), min_size=50, max_size=50),
)
def test_order_duplicates_and_codes_change_nothing(
    order: list[int], twice: list[int], codes: list[str], at: list[int], tmp_path: Path
) -> None:
    rows = [BASELINE[n] for n in order]
    for row, where in zip([*(BASELINE[n] for n in twice), *codes], at, strict=False):
        rows.insert(where % (len(rows) + 1), row)
    curve, said = one(write(tmp_path, rows))
    assert same(curve, baseline())
    assert (curve.name, curve.ra, curve.dec) == ("S1", 120.5, 10.25)
    left_out = len(twice) + len(codes)
    assert (curve.problem or "0 of").startswith(f"{left_out} of " if left_out else "0 of")
    assert any(line.startswith(f"{left_out} of {60 + left_out} points") for line in said) == bool(left_out)


def test_who_says_what_the_times_are_is_not_asked_for_it(tmp_path: Path) -> None:
    said: list[str] = []
    list(read_light_curves(write(tmp_path, BASELINE), said.append, TimeSystem.HELIOCENTRIC))
    assert said[0].endswith("are read as MJD, heliocentric")


def test_of_a_table_without_bands_it_is_said_in_which_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, [row.rpartition(",")[0] for row in BASELINE], HEADER.removesuffix(",band"))
    curve, said = one(path)
    assert set(curve.light_curve.band) == {BANDS.index("asas:V")}
    assert "no column for the band: taken as asas:V (trifid classify --band, if another)" in said
    told: list[str] = []
    (gaia,) = read_light_curves(path, told.append, band="gaia:G")
    assert set(gaia.light_curve.band) == {BANDS.index("gaia:G")}
    assert not any("no column for the band" in line for line in told)
    with pytest.raises(InputFileError, match="the band gaia:Q is not known"):
        list(read_light_curves(path, band="gaia:Q"))
    # A table of ASAS-SN's, whose filters are told apart else, and one that has a column for the band.
    cameras = [f"{row.rpartition(',')[0]},ba" for row in BASELINE]
    (other,) = read_light_curves(write(tmp_path, cameras, HEADER.replace("band", "camera")), band="ASAS-SN g")
    assert set(other.light_curve.band) == {BANDS.index("asassn:g")}
    (own,) = read_light_curves(write(tmp_path, BASELINE), told.append, band="gaia:G")
    assert same(own, baseline())
