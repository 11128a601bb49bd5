"""Every format, with every compression, of light curves, spectra and catalogues: written here by other programs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from broker.catalog.presets import PLAIN
from broker.catalog.tables import CatalogTable
from broker.errors import InputFileError
from broker.lightcurves.files import read_light_curves
from broker.spectra.files import read_raw
from broker.tables.files import open_table

LIGHT_CURVE = {
    "name": ["a", "a", "a", "b", "b"], "ra": [10.5, 10.5, 10.5, 11.0, 11.0], "dec": [-5.25, -5.25, -5.25, 6.0, 6.0],
    "mjd": [58000.5, 58001.25, 58003.0, 58000.5, 58002.0], "mag": [15.0, 16.0, np.nan, 17.0, 17.5],
    "mag_err": [0.1, 0.2, 0.1, 0.05, 0.05], "band": ["ztf:g", "ztf:r", "ztf:g", "ztf:g", "ztf:g"],
}  # fmt: skip
CATALOGUE = {
    "ra": [10.5, 20.25, 30.0], "dec": [-5.25, 6.0, 7.5], "mean_vmag": [12.5, np.nan, 14.0], "ruwe": [1.0, 1.5, np.nan],
}  # fmt: skip
PIXELS = 60
SPECTRUM = {
    "wavelength": (380.0 + 0.5 * np.arange(PIXELS)).tolist(), "flux": (2.0 + np.arange(PIXELS) % 7).tolist(),
    "error": [np.nan if n == 3 else 0.25 for n in range(PIXELS)],
}  # fmt: skip
UNITS = {"wavelength": "nm", "flux": "mJy", "error": "mJy", "ra": "deg", "dec": "deg"}


def masked(columns: dict[str, list[Any]]) -> Table:
    """An astropy table, masked where a number is NaN."""
    table = Table()
    for name, values in columns.items():
        mask = [value != value for value in values]
        table[name] = MaskedColumn(values, mask=mask, unit=UNITS.get(name), description=f"the {name}")
    return table


def write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    rows = [",".join("" if v != v else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    arrays = [pa.array([None if v != v else v for v in values]) for values in columns.values()]
    fields = [
        pa.field(name, a.type, metadata={"unit": UNITS.get(name, ""), "description": f"the {name}"})
        for name, a in zip(columns, arrays, strict=True)
    ]
    pq.write_table(pa.table(arrays, schema=pa.schema(fields)), path)


def write_astropy(format_name: str) -> Callable[[Path, dict[str, list[Any]]], None]:
    def write(path: Path, columns: dict[str, list[Any]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masked(columns).write(path, format=format_name)

    return write


def write_ipac(path: Path, columns: dict[str, list[Any]]) -> None:
    write_astropy("ascii.ipac")(path, columns)


FORMATS: dict[str, Callable[[Path, dict[str, list[Any]]], None]] = {
    "CSV": write_csv,
    "ECSV": write_astropy("ascii.ecsv"),
    "IPAC": write_ipac,
    "FITS": write_astropy("fits"),
    "VOTable": write_astropy("votable"),
    "Parquet": write_parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstandard": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.fixture(params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=COMPRESSIONS)
def write(request: pytest.FixtureRequest, format_name: str, tmp_path: Path) -> Callable[[dict[str, list[Any]]], Path]:
    """Writes columns to a file whose name tells neither format nor compression."""

    def written(columns: dict[str, list[Any]]) -> Path:
        FORMATS[format_name](tmp_path / "plain", columns)
        path = tmp_path / "table.dat"
        path.write_bytes(COMPRESSIONS[request.param]((tmp_path / "plain").read_bytes()))
        return path

    return written


Write = Callable[[dict[str, list[Any]]], Path]


def test_light_curves(write: Write) -> None:
    first, second = read_light_curves(write(LIGHT_CURVE))
    assert (first.name, first.ra, first.dec) == ("a", 10.5, -5.25)
    assert first.light_curve.mjd.tolist() == [58000.5, 58001.25]  # the third has no magnitude
    # 3631 Jy are 0 mag (AB): 15 mag are 3.631e6 nJy, and a magnitude more is a factor of 2.512 less.
    np.testing.assert_allclose(first.light_curve.flux, [3.6308e6, 1.4454e6], rtol=1e-4)
    assert first.problem is not None
    assert first.problem.startswith("1 of 3 points left out: 1 without a possible magnitude")
    assert (second.name, second.light_curve.mjd.tolist(), second.problem) == ("b", [58000.5, 58002.0], None)


def test_catalogues(write: Write) -> None:
    chunks = list(CatalogTable(write(CATALOGUE), PLAIN).chunks())
    assert np.concatenate([c.ra for c in chunks]).tolist() == [10.5, 20.25, 30.0]
    assert np.concatenate([c.dec for c in chunks]).tolist() == [-5.25, 6.0, 7.5]
    for name in ("mean_vmag", "ruwe"):
        np.testing.assert_array_equal(np.concatenate([c.values[name] for c in chunks]), CATALOGUE[name])
    assert chunks[0].unknown == {"mean_vmag": {"blank": 1}, "ruwe": {"blank": 1}}


def test_spectra(write: Write, format_name: str) -> None:
    [raw] = read_raw(write(SPECTRUM))
    np.testing.assert_allclose(raw.wavelength, SPECTRUM["wavelength"])
    np.testing.assert_allclose(raw.flux, SPECTRUM["flux"])
    assert raw.error is not None
    np.testing.assert_array_equal(raw.error, SPECTRUM["error"])
    if format_name != "CSV":
        assert (raw.wavelength_unit, raw.flux_unit) == ("nm", "mJy")


def test_columns_have_their_units_and_descriptions(write: Write, format_name: str) -> None:
    table = open_table(write(CATALOGUE))
    assert table.names == ["ra", "dec", "mean_vmag", "ruwe"]
    if format_name != "CSV":
        assert table.units == {"ra": "deg", "dec": "deg"}
    if format_name in ("ECSV", "VOTable", "Parquet"):
        assert table.columns[0].description == "the ra"


def test_missing_values_are_null_or_no_number(write: Write) -> None:
    names = ["mean_vmag", "ra"]
    [batch] = open_table(write(CATALOGUE)).batches(names, start=1, numbers=names)
    assert batch.schema.names == names
    assert batch.column("ra").to_pylist() == [20.25, 30.0]
    values = batch.column("mean_vmag").to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(values, [np.nan, 14.0])


LIST_COLUMNS = {
    "name": ["a", "b"], "ra": [10.5, 11.0], "dec": [-5.25, 6.0],
    "mjd": [[58000.5, 58001.25], [58000.5, 58002.0]], "mag": [[15.0, 16.0], [17.0, 17.5]],
    "mag_err": [[0.1, 0.2], [0.05, 0.05]], "band": ["ztf:g", "ztf:r"],
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["fits", "votable", "parquet"])
def test_light_curves_with_a_row_an_object(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(LIST_COLUMNS), path)
    else:
        Table({n: np.array(v) for n, v in LIST_COLUMNS.items()}).write(path, format=suffix)
    curves = list(read_light_curves(path))
    assert [c.name for c in curves] == ["a", "b"]
    assert [c.light_curve.mjd.tolist() for c in curves] == LIST_COLUMNS["mjd"]


def test_arrays_of_different_lengths_in_fits_and_votable(tmp_path: Path) -> None:
    arrays = {n: np.array([np.arange(k) + 0.5 for k in (2, 3)], object) for n in ("mjd", "mag", "mag_err")}
    arrays["mjd"] = np.array([58000.5 + np.arange(k) for k in (2, 3)], object)
    arrays["mag"] = np.array([15.0 + np.arange(k) / 4 for k in (2, 3)], object)
    arrays["mag_err"] = np.array([np.full(k, 0.1) for k in (2, 3)], object)
    columns = [fits.Column(n, "PD()", array=v) for n, v in arrays.items()]
    names = fits.Column("name", "4A", array=["a", "b"])
    fits.BinTableHDU.from_columns([names, *columns]).writeto(tmp_path / "t.fits")
    Table({"name": ["a", "b"], **arrays}).write(tmp_path / "t.vot", format="votable")
    for name in ("t.fits", "t.vot"):
        curves = list(read_light_curves(tmp_path / name))
        assert [c.light_curve.mjd.tolist() for c in curves] == [[58000.5, 58001.5], [58000.5, 58001.5, 58002.5]], name


def test_spectra_as_structs_of_arrays_and_in_ecsv(tmp_path: Path) -> None:
    rows = [{n: v[:50] for n, v in SPECTRUM.items()}, SPECTRUM]
    pq.write_table(pa.table({"id": ["x", "y"], "spectrum": rows}), tmp_path / "t.parquet")
    table = Table({n: np.array([v, v]) for n, v in SPECTRUM.items()})
    table["id"] = ["x", "y"]
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    for name, lengths in (("t.parquet", [50, PIXELS]), ("t.ecsv", [PIXELS, PIXELS])):
        found = list(read_raw(tmp_path / name))
        assert [(raw.spectrum_id, len(raw.flux)) for raw in found] == [("x", lengths[0]), ("y", lengths[1])]
        np.testing.assert_array_equal(found[1].error, SPECTRUM["error"])


def test_rows_of_a_spectrum_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    FORMATS["ECSV"](tmp_path / "t", SPECTRUM)
    with (tmp_path / "t").open("a") as file:
        file.write("1 2\n")
    with pytest.raises(InputFileError, match="rows with another number of cells than the header: 1"):
        list(read_raw(tmp_path / "t"))


CDS_ROWS = """\
Byte-by-byte Description of file: t.dat
--------------------------------------------------------------------------------
   Bytes Format Units   Label     Explanations
--------------------------------------------------------------------------------
   1-  6  F6.2  deg     RAdeg     Right ascension
   8- 12  F5.2  deg     DEdeg     Declination
  14- 22  F9.3  d       MJD       Time of the observation
  24- 28  F5.2  mag     mag       Magnitude
  30- 33  F4.2  mag     e_mag     Its error
--------------------------------------------------------------------------------
 10.50 -5.25 58000.500 15.00 0.10
 10.50 -5.25 58001.250 16.00 0.20
 10.50 -5.25 58003.000       0.10
"""


def test_light_curves_in_fixed_columns_of_the_cds(tmp_path: Path) -> None:
    (tmp_path / "t.dat.xz").write_bytes(lzma.compress(CDS_ROWS.encode()))
    [curve] = read_light_curves(tmp_path / "t.dat.xz")
    assert (curve.ra, curve.dec, curve.light_curve.mjd.tolist()) == (10.5, -5.25, [58000.5, 58001.25])
    assert open_table(tmp_path / "t.dat.xz").columns[4].description == "Its error"


def test_decimal_commas_in_catalogues(tmp_path: Path) -> None:
    rows = "ra;dec;mean_vmag;ruwe\n10,5;-5,25;12,5;1\n11,5;6;>16,2;1,5\n"
    (tmp_path / "t.csv").write_text(rows)
    [chunk] = CatalogTable(tmp_path / "t.csv", PLAIN).chunks()
    assert (chunk.ra.tolist(), chunk.values["ruwe"].tolist()) == ([10.5, 11.5], [1.0, 1.5])
    np.testing.assert_array_equal(chunk.values["mean_vmag"], [12.5, np.nan])


def test_a_process_that_stops_within_a_table_ends(tmp_path: Path) -> None:
    """pyarrow's reader of streams, dropped before its end, aborted it or let it wait for ever."""
    with (tmp_path / "t.csv").open("w") as file:
        file.write("ra,dec,ruwe,note\n")
        file.writelines(f"{i % 360},1,1,{'x' * 200}\n" for i in range(150_000))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from broker.tables.files import open_table\n"
        "table = open_table(Path(sys.argv[1]))\n"
        "for _ in range(40):\n"
        "    print(next(table.batches(['ra'], size=2, numbers=['ra'])).column('ra').to_pylist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.csv")], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[0.0, 1.0]"] * 40


def test_damaged_and_foreign_files_are_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for data, reason in (
        (b"Obj\x01 rest", "Avro, no table"),
        (b"\0\1\2\3", "neither text nor Parquet, neither FITS nor VOTable: it holds zero bytes"),
        (gzip.compress(bz2.compress(b"a,b\n1,2\n")), "compressed with gzip and, in it, with bzip2: unpack it first"),
        (lzma.compress(b"ra,dec,ruwe\n" * 1000)[:-30], "cut short: its xz data end early"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputFileError, match=reason) as error:
            open_table(path)
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).count(str(path)) == 1
