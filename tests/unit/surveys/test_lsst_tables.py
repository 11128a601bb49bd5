"""LSST alerts in Parquet, as brokers export them: rows made by the schema, and real ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.errors import DecodeError, InputFileError
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.lsst_tables import read_lsst_table

ID = 169813006680588318
"""As a 64-bit floating-point number it ends in 320."""
SCHEMA = lsst_schema(1000)


def types() -> dict[str, Any]:
    """The record types of the schema by the field that they are first used in."""
    found = {}
    for field in SCHEMA["fields"]:
        kind = field["type"]
        kind = next(b for b in kind if b != "null") if isinstance(kind, list) else kind
        if isinstance(kind, dict):
            found[field["name"]] = kind["items"] if kind["type"] == "array" else kind
    return found


def record(kind: Any, **values: Any) -> dict[str, Any]:
    """A record with what the schema requires, and nulls."""
    plain = {"long": 7, "int": 7, "double": 1.5, "float": 1.5, "string": "x", "boolean": False, "bytes": b""}
    return {f["name"]: None if isinstance(f["type"], list) else plain[f["type"]] for f in kind["fields"]} | values


def row(number: int = 0) -> dict[str, Any]:
    """An alert as a table has it, all of it there."""
    ids = {"diaSourceId": ID + number, "diaObjectId": ID + 1}
    place = {"ra": 30.0, "dec": -20.0, "midpointMjdTai": 61041.2}
    source = record(types()["diaSource"], **ids, **place, band="r", psfFlux=1000.0, psfFluxErr=10.0)
    return {
        "diaSourceId": ID + number,
        "observation_reason": "science",
        "target_name": None,
        "diaSource": source,
        "prvDiaSources": [source | {"midpointMjdTai": 61040.2, "diaSourceId": 5}],
        "prvDiaForcedSources": None,
        "diaObject": record(types()["diaObject"], diaObjectId=ID + 1),
        "ssSource": record(types()["ssSource"]),
        "mpc_orbits": record(types()["mpc_orbits"]),
        "cutoutScience": b"FITS",
        "cutoutTemplate": None,
        "cutoutDifference": None,
        "lsst_schema_version": "lsst.v10_0",
    }


def nulls(name: str) -> dict[str, Any]:
    return dict.fromkeys(record(types()[name]))


def read(path: Path, rows: list[dict[str, Any]] | pa.Table) -> list[dict[str, Any] | str]:
    """What comes of each row: the record of its message, or why there is none."""
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path / "t.parquet")
    found: list[dict[str, Any] | str] = []
    for message in read_lsst_table(path / "t.parquet"):
        if isinstance(message, DecodeError):
            found.append(str(message))
        else:
            found.append(fastavro.schemaless_reader(io.BytesIO(message[5:]), SCHEMA))  # type: ignore[call-arg,arg-type]
            Decoder().decode(message)
    return found


def plain(tmp_path: Path) -> dict[str, Any]:
    (found,) = read(tmp_path, [row()])
    assert isinstance(found, dict)
    return found


def test_a_row_as_the_schema_has_it_is_kept(tmp_path: Path) -> None:
    found, given = plain(tmp_path), row()
    assert found["diaSource"] == given["diaSource"]
    assert found["prvDiaSources"] == given["prvDiaSources"]
    assert found["ssSource"] == given["ssSource"]
    assert found["cutoutScience"] == b"FITS"
    assert found["prvDiaForcedSources"] is None


@pytest.mark.parametrize("name", ["ssSource", "mpc_orbits", "diaObject"])
@pytest.mark.parametrize("extra", [{}, {"brokers_own": 5.0}])
def test_a_struct_of_nulls_is_a_null_record(tmp_path: Path, name: str, extra: dict[str, float]) -> None:
    first, second = row(), row(1)
    second[name] = nulls(name)
    for r in (first, second):
        r[name] |= extra
        r["brokers_score"] = 0.5
    before, after = read(tmp_path, [first, second])
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before[name] == plain(tmp_path)[name]
    assert after[name] is None
    assert after["diaSource"]["diaSourceId"] == ID + 1


def test_a_nullable_record_without_what_it_requires_is_null(tmp_path: Path) -> None:
    given = row()
    del given["mpc_orbits"]["designation"]
    given["ssSource"]["diaSourceId"] = None
    (found,) = read(tmp_path, [given])
    assert found == plain(tmp_path) | {"mpc_orbits": None, "ssSource": None}


@pytest.mark.parametrize("name", ["ssSource", "mpc_orbits", "diaObject", "prvDiaSources", "cutoutScience"])
def test_a_nullable_column_that_is_missing_is_null(tmp_path: Path, name: str) -> None:
    given = row()
    del given[name]
    (found,) = read(tmp_path, [given])
    assert found == plain(tmp_path) | {name: None}


def test_missing_and_extra_fields_at_any_depth(tmp_path: Path) -> None:
    given = row()
    wanted = plain(tmp_path)
    for source in (given["diaSource"], *given["prvDiaSources"]):
        del source["apFlux"]
        source["own"] = {"a": [1]}
    assert read(tmp_path, [given]) == [wanted]


def test_a_list_of_one_struct_of_nulls_has_no_items(tmp_path: Path) -> None:
    given = row()
    given["prvDiaSources"].append(nulls("diaSource"))
    given["prvDiaForcedSources"] = [nulls("prvDiaForcedSources")]
    (found,) = read(tmp_path, [given])
    assert found == plain(tmp_path) | {"prvDiaForcedSources": []}


def test_a_struct_of_lists_is_a_list_of_records(tmp_path: Path) -> None:
    given = row()
    sources = [*given["prvDiaSources"], given["prvDiaSources"][0] | {"diaSourceId": 6}]
    given["prvDiaSources"] = {name: [source[name] for source in sources] for name in sources[0]}
    given["prvDiaForcedSources"] = nulls("prvDiaForcedSources")
    (found,) = read(tmp_path, [given])
    assert found == plain(tmp_path) | {"prvDiaSources": sources}
    given["prvDiaSources"]["ra"].append(3.0)
    (found,) = read(tmp_path, [given])
    assert found == "prvDiaSources is a record, not a list, nor a record of lists of one length"


def test_integers_of_other_widths_and_kinds(tmp_path: Path) -> None:
    given = row()
    given["diaSource"]["detector"] = 12.0
    given["diaSource"]["visit"] = "2026112500123"
    given["diaSource"]["apFlux_flag"] = 1
    given["diaObject"]["nDiaSources"] = 3.0
    (found,) = read(tmp_path, [given])
    assert isinstance(found, dict)
    assert (found["diaSource"]["detector"], found["diaSource"]["visit"]) == (12, 2026112500123)
    assert found["diaSource"]["apFlux_flag"] is True
    assert found["diaObject"]["nDiaSources"] == 3


def test_an_id_rounded_beside_the_detection_is_told_by_it(tmp_path: Path) -> None:
    given = row()
    given["diaObject"]["diaObjectId"] = float(ID + 1)
    (found,) = read(tmp_path, [given])
    assert isinstance(found, dict)
    assert found["diaObject"]["diaObjectId"] == ID + 1


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/Santiago"])
def test_times_of_any_unit_and_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    given = row()
    orbit = pa.array([datetime(2026, 11, 25, 3, tzinfo=UTC)]).cast(pa.timestamp(unit, zone))
    table = pa.Table.from_pylist([given])
    column = table["mpc_orbits"].combine_chunks()
    fields = {f.name: column.field(f.name) for f in column.type} | {"created_at": orbit}
    position = table.schema.get_field_index("mpc_orbits")
    table = table.set_column(position, "mpc_orbits", pa.StructArray.from_arrays(list(fields.values()), list(fields)))
    (found,) = read(tmp_path, table)
    assert isinstance(found, dict)
    assert found["mpc_orbits"]["created_at"] == datetime(2026, 11, 25, 3, tzinfo=UTC)


def change(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *outer, name = place.split(".")

    def apply(row: dict[str, Any]) -> None:
        for step in outer:
            row = row[step]
        row[name] = value

    return apply


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("diaSource.diaSourceId", None, "diaSource.diaSourceId is missing"),
        ("diaSource.detector", 1.5, "diaSource.detector is 1.5, not an integer"),
        ("diaSource.detector", 2**40, "diaSource.detector is 1099511627776, over 32 bits"),
        ("diaSource.detector", "R22", "diaSource.detector is text, not an integer"),
        ("diaSource.visit", float("inf"), "diaSource.visit is inf, not an integer"),
        ("diaSource.visit", datetime(2026, 1, 1), "diaSource.visit is a time, not an integer"),
        ("diaSource.diaObjectId", float(ID), "diaSource.diaObjectId is a floating-point number, which has lost"),
        ("diaSource.psfFlux", "bright", "diaSource.psfFlux is text, not a number"),
        ("diaSource.psfFlux", 1e300, "diaSource.psfFlux is 1e+300, over 32 bits"),
        ("diaSource.psfFlux", datetime(2026, 1, 1), "diaSource.psfFlux is of type datetime, not a number"),
        ("diaSource.band", 3, "diaSource.band is an integer, not string"),
        ("diaSource", None, "diaSource is missing"),
        ("mpc_orbits.designation", 5, "mpc_orbits.designation is an integer, not string"),
        ("prvDiaSources", [record(types()["diaSource"], visit=None)], "prvDiaSources[0].visit is missing"),
        ("prvDiaSources", 4, "prvDiaSources is an integer, not a list"),
        ("lsst_schema_version", "v99_0", "lsst_schema_version: unknown schema id 9900"),
        ("lsst_schema_version", "ztf", "lsst_schema_version: 'ztf' is no version of LSST's alerts"),
        ("lsst_schema_version", None, "lsst_schema_version is missing"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_itself_with_its_field(
    tmp_path: Path, place: str, value: Any, reason: str
) -> None:
    bad = row()
    change(place, value)(bad)
    if value is None and place == "lsst_schema_version":
        (found, after) = read(tmp_path, [bad, row(2)])
    else:
        (found,) = read(tmp_path, [bad])
        after = plain(tmp_path)
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert len(found) < 200
    assert isinstance(after, dict)


def test_the_rows_around_a_bad_one_are_read(tmp_path: Path) -> None:
    rows = [row(n) for n in range(250)]
    for n in (0, 99, 100, 249):
        rows[n]["diaSource"]["visit"] = None
    found = read(tmp_path, rows)
    for n, item in enumerate(found):
        if n in (0, 99, 100, 249):
            assert item == "diaSource.visit is missing"
        else:
            assert isinstance(item, dict)
            assert item["diaSourceId"] == ID + n


def test_a_value_that_python_cannot_hold_is_refused_by_itself(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(), row(1), row(2)])
    far = pa.array([0, 2**60, 0]).cast(pa.timestamp("us"))
    position = table.schema.get_field_index("observation_reason")
    found = read(tmp_path, table.set_column(position, "observation_reason", far))
    assert found[1] == "observation_reason cannot be read: OverflowError"
    assert found[0] == "observation_reason is of type datetime, not string"
    found = read(tmp_path, table.append_column("own_time", far))
    assert [f["diaSourceId"] for f in found if isinstance(f, dict)] == [ID, ID + 1, ID + 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"PAR1 and nothing", "no Parquet table, or a damaged one"), (None, "no column lsst_schema_version")],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is None:
        pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    else:
        (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(InputFileError, match=reason):
        list(read_lsst_table(tmp_path / "t.parquet"))


def test_real_alerts_with_structs_of_nulls_are_the_same_as_with_nulls(shared: Path, tmp_path: Path) -> None:
    real = shared / "alerts" / "lsst" / "rubin_v10_0.parquet"
    table = pq.read_table(real)
    before = list(read_lsst_table(real))
    assert not any(isinstance(message, DecodeError) for message in before)
    assert len(before) == 25
    for name in ("ssSource", "mpc_orbits"):
        kind = table.schema.field(name).type
        rows = [dict.fromkeys([f.name for f in kind]) if r is None else r for r in table[name].to_pylist()]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(deepcopy(rows), kind))
    pq.write_table(table.append_column("own", pa.array([{"a": 1}] * 25)), tmp_path / "t.parquet")
    assert list(read_lsst_table(tmp_path / "t.parquet")) == before
