"""Catalogues of known variable stars: every form in which VSX and the GCVS are distributed, and their matching."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table

from broker.catalog.memory import MemoryCatalogs
from broker.catalog.presets import KNOWN, PLAIN
from broker.catalog.tables import CatalogTable
from broker.errors import InputFileError
from broker.records import KnownObject

MJD_2000, MJD_2020 = 51544.5, 58849.5
# OID, Name, V, RA, Dec, Type, l_Period, Period; as VSX has them, but for the flags of the last three,
# and V0603 Aql's declination, which has minutes and a sign here, and no degrees.
STARS: list[tuple[int, str, int, float, float, str, str, float | None]] = [
    (1, "AA And", 0, 346.34537, 47.67631, "EA/SD", "", 0.9350970000),
    (2, "R And", 0, 6.00829, 38.57703, "M", "", 409.2),
    (3, "V0603 Aql", 0, 292.66083, -0.58222, "NA", "", None),
    (4, "UV Per", 0, 32.53333, 57.18944, "UGSU+E:", "(", 360.0),
    (5, "NSV 1", 1, 0.00500, -89.99999, "EW|ESD", ">", 100.0),
    (6, "a constant", 2, 10.0, 10.0, "CST", "", None),
    (7, "a duplicate", 3, 20.0, 20.0, "M", "", 300.0),
]
KEPT = {
    "AA And": ("EA/SD", 0.935097), "R And": ("M", 409.2), "V0603 Aql": ("NA", None), "UV Per": ("UGSU+E:", 360.0),
    "NSV 1": ("EW|ESD", None),
}  # fmt: skip


def row_of_vsx(star: tuple[int, str, int, float, float, str, str, float | None], digits: int = 7) -> str:
    """As ``vsx.dat`` has it: Byte-by-byte Description of B/vsx."""
    number, name, flag, ra, dec, kind, limit, period = star
    start = f"{number:{digits}d} {name:<30} {flag} {ra:9.5f} {dec:9.5f} {kind:<30}"
    magnitudes = "   10.200 V         11.200 V      36109.4080  "
    end = f"{limit or ' '}{'' if period is None else f'{period:.10f}':>16}"
    text = f"{start}{'':<61}"[: digits + 85] + magnitudes
    return f"{text[: digits + 131]:<{digits + 131}}{end}"


def fixed(path: Path, digits: int = 7) -> Path:
    rows = [row_of_vsx(star, digits) for star in STARS]
    assert [row[digits + 34 : digits + 43].strip() for row in rows] == [f"{star[3]:.5f}" for star in STARS]
    data = "".join(f"{row}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def vsx_dat(folder: Path) -> Path:
    return fixed(folder / "vsx.dat")


def vsx_dat_of_many_stars(folder: Path) -> Path:
    return fixed(folder / "vsx.dat.gz", 8)


def with_readme(folder: Path) -> Path:
    """The description counts, not what we know of VSX: here there is no OID, and the type comes first."""
    (folder / "ReadMe").write_text(
        "B/vsx  AAVSO\nByte-by-byte Description of file: refs.dat\n" + "-" * 80 + "\n   Bytes Format Units Label Expl\n"
        + "-" * 80 + "\n   1-  9  A9 --- Other  x\n" + "-" * 80 + "\n\n"
        "Byte-by-byte Description of file: vsx.dat\n" + "-" * 80 + "\n   Bytes Format Units   Label    Explanations\n"
        + "-" * 80 + "\n"
        "   1- 10  A10   ---     Type     Variability type, as in GCVS catalog\n"
        "      11  I1    ---     V        [0,3] Variability flag (2)\n"
        "  12- 21  F10.5 deg     RAdeg    Right ascension (J2000)\n"
        "  22- 31  F10.5 deg     DEdeg    Declination (J2000)\n"
        "  32- 45  A14   ---     Name     Variable star identifier\n"
        "      46  A1    ---   l_Period   [<>(] Limit flag on period (3)\n"
        "  47- 60  F14.7 d       Period   ? Period of the variable in days\n" + "-" * 80 + "\n"
    )  # fmt: skip
    rows = [
        f"{kind:<10}{flag}{ra:10.5f}{dec:10.5f}{name:<14}{limit or ' '}" + ("" if p is None else f"{p:14.7f}")
        for _, name, flag, ra, dec, kind, limit, p in STARS
    ]
    (folder / "vsx.dat").write_text("\n".join(rows) + "\n")
    return folder / "vsx.dat"


def machine_readable(folder: Path) -> Path:
    """A journal's table with its description above it, and positions in hours and degrees."""
    head = (
        "Title: Variable stars\n" + "=" * 80 + "\nByte-by-byte Description of file: t1.txt\n" + "-" * 80
        + "\n   Bytes Format Units   Label    Explanations\n" + "-" * 80 + "\n"
        "   1- 14  A14   ---     Name     Name\n  16- 17  I2    h       RAh      Hour of Right Ascension\n"
        "  19- 20  I2    min     RAm      Minute\n  22- 28  F7.4  s       RAs      Second\n"
        "      30  A1    ---     DE-      Sign of the Declination\n  31- 32  I2    deg     DEd      Degree\n"
        "  34- 35  I2    arcmin  DEm      Arcminute\n  37- 42  F6.3  arcsec  DEs      Arcsecond\n"
        "      44  I1    ---     V        Flag\n  46- 55  A10   ---     Type     Type\n"
        "      57  A1    ---     l_Period Limit\n  58- 70  F13.7 d       Period   ? Period\n" + "-" * 80
        + "\nNote (1): none\n" + "-" * 80 + "\n"
    )  # fmt: skip
    rows = []
    for _, name, flag, ra, dec, kind, limit, period in STARS:
        h, d = divmod(ra / 15 * 3600, 3600), divmod(abs(dec) * 3600, 3600)
        sign = "-" if dec < 0 else "+"
        rows.append(
            f"{name:<14} {int(h[0]):02d} {int(h[1] // 60):02d} {h[1] % 60:7.4f} {sign}{int(d[0]):02d} "
            f"{int(d[1] // 60):02d} {d[1] % 60:6.3f} {flag} {kind:<10} {limit or ' '}"
            + ("" if period is None else f"{period:13.7f}")
        )
    (folder / "t1.txt").write_text(head + "\n".join(rows) + "\n")
    return folder / "t1.txt"


def signed_degrees(folder: Path) -> Path:
    """The same with the sign of the declination in the column of the degrees."""
    path = machine_readable(folder)
    lines = path.read_text().splitlines(keepends=True)
    lines = [line.replace("  31- 32  I2 ", "  30- 32  I3 ") for line in lines if " DE-   " not in line]
    path.write_text("".join(lines))
    return path


def vizier_tsv(folder: Path) -> Path:
    lines = [
        "#RESOURCE=yCat_B", "#Name: B/vsx/vsx", "", "OID\tName\tV\tRAJ2000\tDEJ2000\tType\tmax\tmin\tl_Period\tPeriod",
        " \t \t \tdeg\tdeg\t \tmag\tmag\t \td",
        "-------\t----------\t-\t---------\t---------\t----------\t------\t------\t-\t----------------",
    ]  # fmt: skip
    lines += [
        f"{n:7d}\t{name:<30}\t{v}\t{ra:9.5f}\t{dec:9.5f}\t{kind:<30}\t12.5\t13.5\t{limit:1}\t{p or '':>16}"
        for n, name, v, ra, dec, kind, limit, p in STARS
    ]
    (folder / "vsx.tsv").write_text("\n".join(lines) + "\n")
    return folder / "vsx.tsv"


def columns() -> dict[str, list[object]]:
    names = ("OID", "Name", "V", "RAJ2000", "DEJ2000", "Type", "l_Period", "Period")
    return {name: list(values) for name, values in zip(names, zip(*STARS, strict=True), strict=True)}


def vizier_csv(folder: Path) -> Path:
    of = columns()
    rows = [",".join("" if v is None else str(v) for v in row) for row in zip(*of.values(), strict=True)]
    (folder / "vsx.csv").write_text("\n".join([",".join(of), *rows]) + "\n")
    return folder / "vsx.csv"


def sexagesimal_csv(folder: Path) -> Path:
    """As B/gcvs has positions in VizieR."""
    lines = ["GCVS;RAJ2000;DEJ2000;VarType;V;l_Period;Period"]
    for _, name, flag, ra, dec, kind, limit, period in STARS:
        h, d = divmod(ra / 15 * 3600, 3600), divmod(abs(dec) * 3600, 3600)
        at = f"{int(h[0]):02d} {int(h[1] // 60):02d} {h[1] % 60:07.4f}"
        lat = f"{'-' if dec < 0 else '+'}{int(d[0]):02d} {int(d[1] // 60):02d} {d[1] % 60:06.3f}"
        lines.append(";".join([name, at, lat, kind, str(flag), limit, "" if period is None else str(period)]))
    (folder / "gcvs.csv").write_text("\n".join(lines) + "\n")
    return folder / "gcvs.csv"


def astropy_table() -> Table:
    of = columns()
    period = MaskedColumn([p or 0.0 for p in of["Period"]], mask=[p is None for p in of["Period"]], unit="d")
    flag = MaskedColumn(np.array(of["V"], np.uint8))
    return Table({**{n: c for n, c in of.items() if n not in ("Period", "V")}, "V": flag, "Period": period})


def vizier_votable(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        astropy_table().write(folder / "vsx.vot", format="votable")
    return folder / "vsx.vot"


def vizier_fits(folder: Path) -> Path:
    astropy_table().write(folder / "vsx.fits")
    return folder / "vsx.fits"


def parquet(folder: Path) -> Path:
    of = columns()
    of["Type"] = pa.array(of["Type"]).dictionary_encode()
    pq.write_table(pa.table(of), folder / "vsx.parquet", row_group_size=3)
    return folder / "vsx.parquet"


FORMS = [
    vsx_dat, vsx_dat_of_many_stars, with_readme, machine_readable, signed_degrees, vizier_tsv, vizier_csv,
    sexagesimal_csv, vizier_votable, vizier_fits, parquet,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_same_stars(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    catalogs = MemoryCatalogs()
    assert catalogs.load("vsx", write(tmp_path), KNOWN).sources == 5
    ra, dec = (np.array([star[i] for star in STARS], np.float64) for i in (3, 4))
    found = catalogs.look_up(ra, dec, np.full(len(ra), MJD_2000))
    assert [c.metadata for c in found] == [None] * len(STARS)  # nothing for the model
    stars = [star for c in found for star in c.known_as]
    assert {star.name: (star.type, star.period) for star in stars} == KEPT
    assert {star.name: star.class_name for star in stars if star.class_name} == {
        "AA And": "EA", "R And": "M", "NSV 1": "Eclipsing",
    }  # fmt: skip
    assert max(star.distance for star in stars) < 0.002


@pytest.mark.parametrize("write", [vsx_dat, vizier_csv, vizier_fits, vizier_votable, parquet])
def test_a_table_goes_on_at_any_row(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    for start in range(len(STARS)):
        chunks = list(CatalogTable(path, KNOWN).chunks(start, 2))
        assert chunks[-1].rows_read == len(STARS)
        names = [name for chunk in chunks for name in chunk.values["name"].tolist()]
        assert names == [star[1].encode() for star in STARS[start:] if star[2] < 2]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    (chunk,) = CatalogTable(vsx_dat(tmp_path), KNOWN).chunks()
    assert chunk.skipped == 2
    assert chunk.unknown["flag"] == {"constant or not existing": 1, "possible duplicate": 1}
    assert chunk.unknown["period"] == {"blank": 2, "a limit": 1}
    (tmp_path / "t.csv").write_text(f"ra,dec,Name,Type,Period\n1,1,{'x' * 33},M,-5\n2,2,,,3\n,3,a,M,3\n")
    (chunk,) = CatalogTable(tmp_path / "t.csv", KNOWN).chunks()
    assert chunk.values["type"].tolist() == [b"M"]
    assert chunk.values["name"].tolist() == [b""]
    assert np.isnan(chunk.values["period"]).all()
    assert chunk.unknown == {
        "position": {"blank": 1}, "name": {"of more than 32 bytes": 1}, "period": {"not in 0 to 1e+06": 1},
        "row": {"no value": 1},
    }  # fmt: skip


def test_a_table_without_names_or_types_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ra,dec,ruwe\n1,1,1\n")
    with pytest.raises(InputFileError, match="no column of names or types; the table has ra, dec, ruwe"):
        CatalogTable(tmp_path / "t.csv", KNOWN)
    (tmp_path / "u.csv").write_text("ra,dec,Type\n1,1,\n")
    with pytest.raises(InputFileError, match="none of its rows is usable"):
        MemoryCatalogs().load("t", tmp_path / "u.csv", KNOWN)


def test_sexagesimal_positions_of_any_catalogue(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ra,dec,ruwe\n10:20:30,-00:30:36,1.0\n23h59m59.9s,+5d06m,2\n1:2:75,3:0:0,3\n")
    (chunk,) = CatalogTable(tmp_path / "t.csv", PLAIN).chunks()
    assert chunk.ra == pytest.approx([155.125, 359.999583333])
    assert chunk.dec == pytest.approx([-0.51, 5.1])
    assert chunk.unknown["position"] == {"not in degrees": 1}


def test_the_nearest_star_within_the_radius_of_each_catalogue(tmp_path: Path) -> None:
    arcsec = 1 / 3600
    (tmp_path / "vsx.csv").write_text(
        f"ra,dec,Name,Type\n100,0,far,M\n{100 + 1.5 * arcsec},0,near,EA\n200,60,other,RRC\n"
    )
    (tmp_path / "gcvs.csv").write_text("ra,dec,VarType\n200,60,RR:\n")
    catalogs = MemoryCatalogs()
    catalogs.load("vsx", tmp_path / "vsx.csv", KNOWN)
    catalogs.load("gcvs", tmp_path / "gcvs.csv", KNOWN)
    ra = np.array([100 + 1.0 * arcsec, 200 + 3.8 * arcsec, 200 + 4.2 * arcsec, np.nan])
    dec = np.array([0.0, 60.0, 60.0, np.nan])
    found = [c.known_as for c in catalogs.look_up(ra, dec, np.full(4, MJD_2020))]
    assert [[(k.catalogue, k.name, k.type, k.class_name) for k in stars] for stars in found] == [
        [("vsx", "near", "EA", "EA")],
        [("vsx", "other", "RRC", "RRC"), ("gcvs", None, "RR:", "RRLyrae")],  # 1.9 arcsec at 60 degrees
        [],
        [],
    ]
    assert found[0][0].distance == pytest.approx(0.5, abs=1e-3)


def test_a_catalogue_loaded_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ra,dec,Type\n100,0,M\n")
    (tmp_path / "b.csv").write_text("ra,dec,Type\n100,0,SR\n")
    catalogs = MemoryCatalogs()
    catalogs.load("vsx", tmp_path / "a.csv", KNOWN)
    catalogs.load("vsx", tmp_path / "b.csv", KNOWN)
    (found,) = catalogs.look_up(np.array([100.0]), np.array([0.0]), np.array([MJD_2000]))
    (star,) = found.known_as
    assert replace(star, distance=0.0) == KnownObject("vsx", None, "SR", None, 0.0, "SR")


def test_every_star_of_the_real_catalogue_is_found(shared: Path) -> None:
    """2,000 of the 1.9 million, each at its place."""
    path = shared / "data" / "vsx_2022.parquet"
    table = pq.read_table(path, columns=["ra_e5", "dec_e5", "vsx_type"])
    catalogs = MemoryCatalogs()
    assert catalogs.load("vsx", path, KNOWN).sources > 1_900_000
    rows = np.random.default_rng(1).choice(table.num_rows, 2000, replace=False)
    some = table.take(rows)
    ra, dec = (some[name].to_numpy() / 1e5 for name in ("ra_e5", "dec_e5"))
    found = catalogs.look_up(ra, dec, np.full(len(ra), MJD_2000))
    at_place = [c.known_as[0].type for c in found if c.known_as and c.known_as[0].distance < 0.001]
    assert len(at_place) >= 1990  # but for entries without a type and those in pairs
    types = some["vsx_type"].to_pylist()
    same = [c.known_as[0].type == kind for c, kind in zip(found, types, strict=True) if c.known_as]
    assert np.mean(same) > 0.995
