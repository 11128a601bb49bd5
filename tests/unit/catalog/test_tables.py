"""Tables of every format, written here with pyarrow and astropy, to columns of ours."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from broker.catalog.presets import PLAIN, PRESETS, Preset
from broker.catalog.tables import CatalogTable, Chunk, expand
from broker.errors import ConfigurationError, InputFileError

N = 1000
GAIA = PRESETS["gaia"]


def gaia(n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "source_id": np.arange(n), "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n),
        "ref_epoch": np.full(n, 2016.0), "parallax": rng.normal(1, 1, n), "pmra": rng.normal(0, 9, n),
        "pmdec": rng.normal(0, 9, n), "phot_g_mean_mag": rng.uniform(8, 20, n),
        "phot_g_mean_flux_over_error": rng.uniform(10, 1000, n), "ruwe": np.where(np.arange(n) % 5, 1.0, np.nan),
    }  # fmt: skip


def write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    text = ["\n", ",".join(columns)] if path.name.startswith("x") else [",".join(columns)]
    rows = zip(*(c.tolist() for c in columns.values()), strict=True)
    text += [",".join("null" if v != v else repr(v) for v in row) for row in rows]
    data = ("\n".join(text) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_parquet(path: Path, columns: dict[str, np.ndarray]) -> None:
    pq.write_table(pa.table({n: pa.array(c, from_pandas=True) for n, c in columns.items()}), path, row_group_size=300)


def write_astropy(path: Path, columns: dict[str, np.ndarray]) -> None:
    Table({n: MaskedColumn(c, mask=np.isnan(c)) for n, c in columns.items()}).write(path)


def write_votable(path: Path, columns: dict[str, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        Table({n: MaskedColumn(c, mask=np.isnan(c)) for n, c in columns.items()}).write(plain, format="votable")
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))


FORMATS: list[tuple[str, Callable[[Path, dict[str, np.ndarray]], None]]] = [
    ("t.csv", write_csv), ("t.csv.gz", write_csv), ("x.csv", write_csv), ("t.parquet", write_parquet),
    ("t.fits", write_astropy), ("t.fits.gz", write_astropy), ("t.vot", write_votable), ("t.vot.gz", write_votable),
    ("t.ecsv", write_astropy),
]  # fmt: skip


def read(path: Path, preset: Preset, start: int = 0, size: int = 100_000) -> dict[str, np.ndarray]:
    chunks = list(CatalogTable(path, preset).chunks(start, size))
    assert all(len(c.ra) <= size for c in chunks)
    names = chunks[0].values
    return {
        "ra": np.concatenate([c.ra for c in chunks]), "dec": np.concatenate([c.dec for c in chunks]),
        "epoch": np.concatenate([c.epoch for c in chunks]),
        **{n: np.concatenate([c.values[n] for c in chunks]) for n in names},
    }  # fmt: skip


def one(path: Path, preset: Preset) -> Chunk:
    (chunk,) = CatalogTable(path, preset).chunks()
    return chunk


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_format_gives_the_same_columns(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, np.ndarray]], None]
) -> None:
    columns = gaia()
    write(tmp_path / name, columns)
    table = CatalogTable(tmp_path / name, GAIA)
    assert set(table.columns) == {
        "epoch", "phot_g_mean_mag", "e_phot_g_mean_mag", "parallax", "pmra", "pmdec", "ruwe",
    }  # fmt: skip
    found = read(tmp_path / name, GAIA)
    for ours in ("ra", "dec", "parallax", "pmra", "pmdec", "phot_g_mean_mag", "ruwe"):
        np.testing.assert_allclose(found[ours], columns[ours], rtol=1e-12)
    np.testing.assert_allclose(found["epoch"], 2016.0)
    np.testing.assert_allclose(found["e_phot_g_mean_mag"], 1.0857362 / columns["phot_g_mean_flux_over_error"])


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
@pytest.mark.parametrize("start", [0, 1, 299, 300, 650, 999, 1000])
def test_reading_goes_on_at_any_row(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, np.ndarray]], None], start: int
) -> None:
    columns = gaia()
    write(tmp_path / name, columns)
    chunks = list(CatalogTable(tmp_path / name, GAIA).chunks(start, 128))
    got = np.concatenate([c.ra for c in chunks]) if chunks else np.empty(0)
    np.testing.assert_allclose(got, columns["ra"][start:])
    read_rows = [c.rows_read for c in chunks]
    assert read_rows == sorted(read_rows)
    assert not chunks or (read_rows[-1] == N and chunks[-1].bytes_read <= (tmp_path / name).stat().st_size)


def test_units_are_respected(tmp_path: Path) -> None:
    table = Table(
        {
            "ra": np.array([1.0, 2.0]) * u.rad, "dec": np.array([30.0, -30.0]) * u.arcmin,
            "pmra": np.array([0.1, -0.2]) * u.arcsec / u.yr, "pmdec": np.array([1.0, 2.0]) * u.mas / u.yr,
            "parallax": np.array([0.002, 0.001]) * u.arcsec, "phot_g_mean_mag": np.array([10.0, 11.0]) * u.mag,
        }
    )  # fmt: skip
    for name in ("t.fits", "t.vot"):
        table.write(tmp_path / name, **({"format": "votable"} if name == "t.vot" else {}))
        found = one(tmp_path / name, GAIA)
        np.testing.assert_allclose(found.ra, np.degrees([1.0, 2.0]))
        np.testing.assert_allclose(found.dec, [0.5, -0.5])
        np.testing.assert_allclose(found.values["pmra"], [100.0, -200.0])
        np.testing.assert_allclose(found.values["pmdec"], [1.0, 2.0])
        np.testing.assert_allclose(found.values["parallax"], [2.0, 1.0])


def test_a_unit_of_another_kind_is_an_error(tmp_path: Path) -> None:
    Table({"ra": [1.0], "dec": [2.0], "pmra": [3.0] * u.km / u.s}).write(tmp_path / "t.fits")
    with pytest.raises(InputFileError, match=r"pmra is in km s-1, which is not mas/yr"):
        CatalogTable(tmp_path / "t.fits", GAIA)


def test_vizier_names_and_masked_values(tmp_path: Path) -> None:
    table = Table(
        {
            "RA_ICRS": [10.0, 20.0, 30.0], "DE_ICRS": [1.0, 2.0, 3.0], "RAJ2000": [0.0, 0.0, 0.0],
            "Plx": MaskedColumn([1.0, 2.0, 3.0], mask=[False, True, False]), "pmDE": [5.0, 6.0, 7.0],
            "Gmag": MaskedColumn([10.0, 11.0, 12.0], mask=[False, False, True]), "e_Gmag": [0.1, 0.2, 0.3],
            "RUWE": [1.0, 1.1, 1.2], "BP-RP": [0.5, 0.6, 0.7],
        }
    )  # fmt: skip
    table.write(tmp_path / "t.vot", format="votable")
    table.write(tmp_path / "t.fits")
    for name in ("t.vot", "t.fits"):
        found = one(tmp_path / name, GAIA.with_columns(["bp_rp=BP-RP"]))
        np.testing.assert_array_equal(found.ra, [10.0, 20.0, 30.0])
        np.testing.assert_array_equal(found.values["parallax"], [1.0, np.nan, 3.0])
        np.testing.assert_array_equal(found.values["phot_g_mean_mag"], [10.0, 11.0, np.nan])
        np.testing.assert_array_equal(found.values["bp_rp"], [0.5, 0.6, 0.7])
        np.testing.assert_array_equal(found.values["pmdec"], [5.0, 6.0, 7.0])


def test_vizier_tab_separated(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(
        "#\n#   VizieR Astronomical Server\n#Name: II/246/out\n\n"
        "RAJ2000\tDEJ2000\tJmag\te_Jmag\tKmag\tJD\n"
        "deg\tdeg\tmag\tmag\tmag\td\n"
        "----------\t----------\t------\t-----\t------\t------------\n"
        "010.684737\t+41.269035\t 9.453\t0.052\t 8.475\t2450760.6632\n"
        "010.700000\t+41.300000\t12.100\t     \t      \t2451545.0000\n\n#END\n"
    )
    found = one(tmp_path / "t.tsv", PRESETS["2mass"])
    np.testing.assert_allclose(found.ra, [10.684737, 10.7])
    np.testing.assert_allclose(found.values["j_mag"], [9.453, 12.1])
    np.testing.assert_array_equal(found.values["e_j_mag"], [0.052, np.nan])
    np.testing.assert_allclose(found.epoch, [2000 + (2450760.6632 - 2451545) / 365.25, 2000.0])


def test_archive_names_of_2mass_and_allwise(tmp_path: Path) -> None:
    names = {"j_m": 1.0, "j_msigcom": 0.1, "h_m": 2.0, "h_msigcom": 0.2, "ks_m": 3.0, "ks_msigcom": 0.3}
    write_csv(tmp_path / "m.csv", {n: np.array([v]) for n, v in {"RA": 1.0, "Dec": 2.0, **names}.items()})
    found = one(tmp_path / "m.csv", PRESETS["2mass"])
    assert {n: float(v[0]) for n, v in found.values.items()} == {
        "j_mag": 1.0, "e_j_mag": 0.1, "h_mag": 2.0, "e_h_mag": 0.2, "k_mag": 3.0, "e_k_mag": 0.3,
    }  # fmt: skip
    names = {"w1mpro": 1.0, "w1sigmpro": 0.1, "w2mpro": 2.0, "w2sigmpro": 0.2, "w3mpro": 3.0, "w4mpro": 4.0, "pmra": 9}
    write_csv(tmp_path / "w.csv", {n: np.array([v]) for n, v in {"ra": 1.0, "dec": 2.0, **names}.items()})
    found = one(tmp_path / "w.csv", PRESETS["wise"])
    assert {n: float(v[0]) for n, v in found.values.items()} == {
        "w1_mag": 1.0, "e_w1_mag": 0.1, "w2_mag": 2.0, "e_w2_mag": 0.2, "w3_mag": 3.0, "w4_mag": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "dialect",
    [
        lambda text: text.replace(",", "   ").replace("\n", "  \n"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace("\n", "\n# between\n"),
        lambda text: "! of IRAF\n\\ of IPAC\n" + text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", ",\n").replace("ruwe,", "ruwe", 1),
        lambda text: "#" + text.replace(",", " "),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_dialects_of_text(tmp_path: Path, dialect: Callable[[str], str], encoding: str) -> None:
    write_csv(tmp_path / "plain.csv", gaia())
    (tmp_path / "other.txt").write_bytes(dialect((tmp_path / "plain.csv").read_text()).encode(encoding))
    plain, other = (read(tmp_path / name, GAIA, 0, 300) for name in ("plain.csv", "other.txt"))
    assert len(other["ra"]) == N
    for name, column in plain.items():
        assert np.array_equal(column, other[name], equal_nan=True), name


def test_names_in_latin_1_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        "Étoile,ra,dec,phot_g_mean_mag\nAlgol β é,1.0,2.0,3.5\n".encode("latin-1", "replace")
    )
    assert one(tmp_path / "t.csv", GAIA).values["phot_g_mean_mag"].tolist() == [3.5]


def test_unusable_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    columns = {
        "ra": np.array([1.0, np.nan, 3.0, 400.0, 5.0, -10.0]), "dec": np.array([1.0, 2.0, 95.0, 4.0, 5.0, 6.0]),
        "j_m": np.array([10.0, 10.0, 10.0, 10.0, 99.999, 12.0]),
        "j_msigcom": np.array([0.1, 0.1, 0.1, 0.1, np.nan, -1.0]),
    }  # fmt: skip
    write_parquet(tmp_path / "t.parquet", columns)
    found = one(tmp_path / "t.parquet", PRESETS["2mass"])
    assert (found.rows_read, found.skipped) == (6, 4)
    np.testing.assert_array_equal(found.ra, [1.0, 350.0])
    np.testing.assert_array_equal(found.values["e_j_mag"], [0.1, np.nan])


def test_integers_of_fits_have_their_own_null(tmp_path: Path) -> None:
    from astropy.io import fits

    columns = [
        fits.Column("ra", "D", array=[1.0, 2.0]), fits.Column("dec", "D", array=[1.0, 2.0]),
        fits.Column("mean_vmag", "J", null=-99, array=[12, -99]), fits.Column("ruwe", "E", array=[1.0, 1.0]),
    ]  # fmt: skip
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    np.testing.assert_array_equal(one(tmp_path / "t.fits", PLAIN).values["mean_vmag"], [12.0, np.nan])


def test_integers_and_decimals_of_parquet_may_be_null(tmp_path: Path) -> None:
    table = {"ra": [1, 2], "dec": [1, 2], "mean_vmag": [12, None], "ruwe": [None, Decimal("1.5")]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = one(tmp_path / "t.parquet", PLAIN)
    np.testing.assert_array_equal(found.values["mean_vmag"], [12.0, np.nan])
    np.testing.assert_array_equal(found.values["ruwe"], [np.nan, 1.5])


def test_any_table_by_naming_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"lon": np.array([5.0]), "lat": np.array([6.0]), "V": np.array([12.5])})
    found = one(tmp_path / "t.csv", PLAIN.with_columns(["ra=lon", "dec=lat", "mean_vmag=V"]))
    assert (found.ra[0], found.dec[0], found.values["mean_vmag"][0]) == (5.0, 6.0, 12.5)


@pytest.mark.parametrize("pair", ["ra", "ra=", "nonsense=V"])
def test_a_wrong_column_option_is_an_error(pair: str) -> None:
    with pytest.raises(ConfigurationError, match=pair):
        PLAIN.with_columns([pair])


def test_a_table_without_positions_says_what_it_has(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"RA_deg": np.array([5.0]), "G": np.array([12.5])})
    with pytest.raises(InputFileError, match=r"no column for ra and dec .*the table has RA_deg, G"):
        CatalogTable(tmp_path / "t.csv", GAIA)


def test_a_table_without_values_says_what_it_has(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"ra": np.array([5.0]), "dec": np.array([5.0]), "G": np.array([12.5])})
    with pytest.raises(InputFileError, match=r"no column of catalogue values; the table has ra, dec, G"):
        CatalogTable(tmp_path / "t.csv", GAIA)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")  # that the file is short
@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize("name", ["t.parquet", "t.fits", "t.fits.gz", "t.vot", "t.csv.gz"])
def test_a_damaged_file_is_an_input_error(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    dict(FORMATS)[name](path, gaia())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    def read_all() -> None:
        list(CatalogTable(path, GAIA).chunks())

    with pytest.raises(InputFileError, match=name):
        read_all()


@pytest.mark.filterwarnings("ignore")  # of astropy, on what it can still read
@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
def test_damaged_bytes_never_do_anything_else_than_fail(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, np.ndarray]], None]
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / name
    write(path, gaia(100))
    whole = path.read_bytes()
    for number in range(40):
        data = bytearray(whole)
        for _ in range(1 + number % 6):
            data[rng.integers(0, len(data) if number % 2 else min(3000, len(data)))] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            list(CatalogTable(path, GAIA).chunks(0, 50))
        except InputFileError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("data", [b"", b"# only a comment\n", b"\0\1\2\3", b"<html>no table</html>"])
def test_what_is_no_table_is_an_input_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputFileError):
        CatalogTable(tmp_path / "t.csv", GAIA)


def test_text_where_numbers_belong_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ra,dec,ruwe\n10:20:61,-5:00:00,1.0\n")
    with pytest.raises(InputFileError, match="10:20:61"):
        list(CatalogTable(tmp_path / "t.csv", GAIA).chunks())
    Table({"ra": ["10:20:30 east"], "dec": ["-5"], "ruwe": [1.0]}).write(tmp_path / "t.fits")
    with pytest.raises(InputFileError, match="column ra"):
        list(CatalogTable(tmp_path / "t.fits", GAIA).chunks())
    pq.write_table(pa.table({"ra": ["10:20:30.5.5"], "dec": ["-5"], "ruwe": [1.0]}), tmp_path / "t.parquet")
    with pytest.raises(InputFileError, match="column ra"):
        list(CatalogTable(tmp_path / "t.parquet", GAIA).chunks())


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ra,dec,ruwe\n")
    assert list(CatalogTable(tmp_path / "t.csv", GAIA).chunks()) == []
    write_parquet(tmp_path / "t.parquet", gaia(0))
    assert list(CatalogTable(tmp_path / "t.parquet", GAIA).chunks()) == []


def test_folders_are_searched_for_tables(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/c.csv.gz", "_SUCCESS", "note.md", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in expand([tmp_path])] == ["c.csv.gz", "b.parquet"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="no tables in this folder"):
        expand([tmp_path / "empty"])


def test_real_stars(shared: Path) -> None:
    columns = [
        "ra=gaia_ra", "dec=gaia_dec", "parallax=gaia_parallax", "parallax_error=gaia_parallax_error",
        "phot_g_mean_mag=gaia_phot_g_mean_mag", "bp_rp=gaia_bp_rp", "ruwe=gaia_ruwe", "pmra=asassn_pmRA",
        "pmdec=asassn_pmDE", "j_k=asassn_J-K",
    ]  # fmt: skip
    found = one(shared / "data" / "asassn_gaia.csv", GAIA.with_columns(columns))
    assert (found.rows_read, found.skipped) == (980, 0)
    assert np.isfinite(found.values["phot_g_mean_mag"]).all()


def test_text_between_numbers_is_unknown_and_counted(tmp_path: Path) -> None:
    rows = [
        "10,10,12.5,1.5",
        "11,10,>16.2,null",
        "12,10, ,-",
        "13,10,1.35D+01,#N/A",
        "14,x,12,1",
        "15,10,,12,1",
        "16,10,14,2",
    ]
    (tmp_path / "t.csv").write_text("ra,dec,mean_vmag,ruwe\n" + "\n".join(rows) + "\n# end\n", encoding="latin-1")
    found = one(tmp_path / "t.csv", PLAIN)
    np.testing.assert_array_equal(found.ra, [10.0, 13.0, 16.0])
    np.testing.assert_array_equal(found.values["mean_vmag"], [12.5, 13.5, 14.0])
    assert found.unknown == {
        "position": {"not in degrees": 1},
        "mean_vmag": {"not a number": 1, "blank": 1},
        "ruwe": {"blank": 3},
        "row": {"no value": 2, "another number of cells than the header": 1},
    }
    texts = {"ra": [10.0, 11.0], "dec": [10.0, 10.0], "mean_vmag": ["12.5", "-9.99"], "ruwe": ["1.5", "null"]}
    pq.write_table(pa.table(texts), tmp_path / "t.parquet")
    Table(texts).write(tmp_path / "t.fits")
    Table(texts).write(tmp_path / "t.vot", format="votable")
    for name in ("t.parquet", "t.fits", "t.vot"):
        found = one(tmp_path / name, PLAIN)
        np.testing.assert_array_equal(found.values["mean_vmag"], [12.5])
        assert found.unknown["mean_vmag"] == {"a code such as -9.99 or 0": 1}
        assert found.unknown["ruwe"] == {"blank": 1}


def test_reading_goes_on_past_text_far_into_a_file(tmp_path: Path) -> None:
    rows = "".join(f"{i % 360},10,12.5,{'x' * 300}\n" for i in range(80_000))
    (tmp_path / "t.csv").write_text(f"ra,dec,mean_vmag,note\n{rows}7,10,<15,x\n8,10,13.5,x\n")
    chunks = list(CatalogTable(tmp_path / "t.csv", PLAIN).chunks(0, 20_000))
    assert sum(len(c.ra) for c in chunks) == 80_001
    assert chunks[-1].rows_read == 80_002
    assert chunks[-1].values["mean_vmag"][-1] == 13.5
    assert chunks[-1].unknown["mean_vmag"] == {"not a number": 1}


def test_the_case_from_the_field() -> None:
    path = Path(__file__).parents[2] / "data" / "cases" / "18-catalogue-codes" / "cat.csv"
    found = one(path, PLAIN)
    np.testing.assert_array_equal(found.ra, [10.2])
    assert {name: column.tolist() for name, column in found.values.items()} == {"mean_vmag": [12.3], "k_mag": [11.1]}
    assert found.unknown == {
        "mean_vmag": {"a code such as -9.99 or 0": 2},
        "k_mag": {"a code such as -9.99 or 0": 2},
        "row": {"no value": 2},
    }
