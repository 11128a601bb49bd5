"""The columnar reader against fastavro's reading of the same bytes, and against bytes that are no record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.avro import reader
from broker.avro.compiler import check_schema, compile_schema
from broker.avro.container import Block, read_blocks, read_header, write_long
from broker.avro.layout import NOTHING, Column, Layout, RowTable
from broker.avro.machine import MAX_DEPTH, MAX_RECORDS, MAX_ROWS, NULL, OTHER, Kind
from broker.avro.reader import FilledTable, Message, ReadMessages, run
from broker.avro.schema import WriterSchema
from broker.avro.wire import read_confluent_header
from broker.errors import ConfigurationError, DecodeError
from broker.sources import iter_packets
from broker.surveys.elasticc import SURVEY as ELASTICC
from broker.surveys.lsst import SURVEY as LSST
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.ztf import SURVEY as ZTF

LSST_VERSIONS = (300, 400, 500, 600, 601, 700, 701, 702, 703, 704, 800, 900, 1000, 1100, 1101)


def encode(schema: Any, records: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    parsed = fastavro.parse_schema(schema)
    for record in records:
        fastavro.schemaless_writer(out, parsed, record)
    return out.getvalue()


def read(schema: Any, tables: Mapping[str, RowTable], data: bytes, count: int = 1) -> ReadMessages:
    layout = Layout(dict(tables))
    program = compile_schema(WriterSchema.parse(schema), layout)
    return run([program], layout, [Message(0, [Block(count, data, 0, len(data))])])


def without_logical_types(schema: Any) -> Any:
    """Times as numbers, where fastavro would make dates of them."""
    if isinstance(schema, list):
        return [without_logical_types(branch) for branch in schema]
    if isinstance(schema, dict):
        return {k: without_logical_types(v) for k, v in schema.items() if k != "logicalType" and not k.startswith("__")}
    return schema


def found_at(record: Any, path: str) -> list[tuple[int, Any]]:
    """The rows at a path, as fastavro read them."""
    if not path:
        return [record]
    part, _, rest = path.partition(".")
    value = record.get(part.removesuffix("[]"))
    if value is None:
        return []
    items = value if part.endswith("[]") else [value]
    return [row for item in items if item is not None for row in found_at(item, rest)]


def expected_value(row: Any, column: Column) -> Any:
    *parents, _ = column.fields[0].split(".")
    for parent in parents:
        row = row.get(parent)
        if row is None:
            return None
    names = [field.rpartition(".")[2] for field in column.fields]
    return row.get(next((name for name in names if name in row), names[0]))


def same(kind: Kind, value: Any, cell: Any, is_null: bool) -> bool:
    """Whether a cell is what fastavro's ``value`` is to become."""
    if value is None:
        return is_null
    if kind is Kind.NUMBER:
        return bool(np.array_equal(float(value), cell, equal_nan=True)) and not is_null
    if kind is Kind.INTEGER:
        whole = np.isfinite(value) and value == int(value) and (isinstance(value, int) or abs(value) <= 2**53)
        return bool(cell == (int(value) if whole else NULL))
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, float):
        if np.isnan(value):
            return bool(cell == NULL)
        if not np.isfinite(value) or value != int(value) or abs(value) > 2**53:
            return bool(cell == OTHER)
        value = int(value)
    raw = value if isinstance(value, bytes) else str(value).encode()
    return bool(cell == (int.from_bytes(raw.ljust(8, b"\0"), "little", signed=True) if len(raw) <= 8 else OTHER))


def cells(rows: FilledTable, name: str, kind: Kind) -> Any:
    return rows.numbers(name) if kind is Kind.NUMBER else rows.integers(name)


def assert_same(tables: Mapping[str, RowTable], records: list[dict[str, Any]], found: ReadMessages, data: bytes) -> int:
    """Everything in the tables is what fastavro reads at that place; returns how many values were compared."""
    assert not found.errors
    compared = 0
    for name, table in tables.items():
        rows = found.records.tables[name]
        expected = [
            (owner, number, row)
            for owner, record in enumerate(records)
            for number, path in enumerate(table.paths)
            for row in found_at(record, path)
        ]
        assert len(rows) == len(expected), name
        # Paths come in the order of the writer's fields.
        order = np.lexsort((rows.path, rows.owner)) if rows is not found.records.tables[next(iter(tables))] else None
        index = range(len(rows)) if order is None else order
        for column_name, column in table.columns.items():
            null = rows.is_null(column_name)
            if column.kind is Kind.TEXT:
                offsets, lengths = rows.spans(column_name)
                for at, (_, _, row) in zip(index, expected, strict=True):
                    value = expected_value(row, column)
                    raw = None if lengths[at] < 0 else data[offsets[at] : offsets[at] + lengths[at]]
                    assert raw == (value.encode() if isinstance(value, str) else value), column_name
                    compared += 1
                continue
            values = cells(rows, column_name, column.kind)
            for at, (owner, number, row) in zip(index, expected, strict=True):
                if order is not None:
                    assert (rows.owner[at], rows.path[at]) == (owner, number)
                value = expected_value(row, column)
                assert same(column.kind, value, values[at], bool(null[at])), (name, column_name, value, values[at])
                compared += 1
    return compared


# Random schemas, and random records of a schema.

KINDS = {
    "boolean": (Kind.NUMBER, Kind.INTEGER, Kind.LABEL),
    "int": (Kind.NUMBER, Kind.INTEGER, Kind.LABEL),
    "long": (Kind.NUMBER, Kind.INTEGER, Kind.LABEL),
    "float": (Kind.NUMBER, Kind.INTEGER, Kind.LABEL),
    "double": (Kind.NUMBER, Kind.INTEGER, Kind.LABEL),
    "string": (Kind.TEXT, Kind.LABEL),
    "bytes": (),
}


class Generator:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.number = 0

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def name(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def schema(self, depth: int) -> Any:
        """A type of any kind."""
        kind = int(self.rng.integers(14 if depth else 9))
        if kind < 7:
            return self.pick(list(KINDS))
        if kind == 7:
            return {
                "type": "enum",
                "name": self.name("e"),
                "symbols": [f"s{k}" for k in range(1 + self.rng.integers(90))],
            }
        if kind == 8:
            return {"type": "fixed", "name": self.name("f"), "size": int(self.rng.integers(9))}
        if kind == 9:
            return {"type": "array", "items": self.schema(depth - 1)}
        if kind == 10:
            return {"type": "map", "values": self.schema(depth - 1)}
        if kind == 11:
            return self.record(depth - 1)
        if kind == 12:
            value = self.schema(0)
            return [["null", value], [value, "null"]][int(self.rng.integers(2))]
        branches = [self.pick(["int", "long"]), self.pick(["float", "double"]), "null", "string", "boolean"]
        self.rng.shuffle(branches)
        return [
            *branches[: int(self.rng.integers(1, 6))],
            *([self.record(depth - 1)] if self.rng.random() < 0.3 else []),
        ]

    def record(self, depth: int) -> Any:
        fields = [{"name": self.name("a"), "type": self.schema(depth)} for _ in range(int(self.rng.integers(0, 9)))]
        return {"type": "record", "name": self.name("r"), "fields": fields}

    def value(self, schema: Any, named: dict[str, Any]) -> Any:
        """A random value of any type."""
        rng = self.rng
        if isinstance(schema, list):
            return self.value(self.pick(schema), named)
        if isinstance(schema, str) and schema in named:
            return self.value(named[schema], named)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if not isinstance(kind, str):
            return self.value(kind, named)
        if kind in ("record", "enum", "fixed"):
            named[schema["name"]] = schema
        match kind:
            case "null":
                return None
            case "boolean":
                return bool(rng.integers(2))
            case "int":
                return int(self.pick([0, 1, -1, 7, 2**31 - 1, -(2**31), int(rng.integers(-1000, 1000))]))
            case "long":
                return int(self.pick([0, 9, -64, 64, 2**63 - 1, -(2**63) + 1, int(rng.integers(-(2**62), 2**62))]))
            case "float" | "double":
                value = self.pick([0.0, -1.0, 3.0, np.nan, np.inf, rng.normal(), rng.normal() * 1e30, 2.0**60])
                return float(np.float32(value)) if kind == "float" else float(value)
            case "string":
                return self.pick(["", "t", "Y", "false", "12345678", "123456789", "\u00e9\u20ac\U0001f31f", "x" * 200])
            case "bytes":
                return rng.bytes(int(rng.integers(300)))
            case "enum":
                return self.pick(schema["symbols"])
            case "fixed":
                return rng.bytes(schema["size"])
            case "array":
                return [self.value(schema["items"], named) for _ in range(int(rng.integers(5)))]
            case "map":
                return {f"k{k}": self.value(schema["values"], named) for k in range(int(rng.integers(4)))}
        return {f["name"]: self.value(f["type"], named) for f in schema["fields"]}

    def tables(self, schema: Any) -> dict[str, RowTable]:
        """Tables of some of all that can be wanted of a record type."""
        columns: dict[str, Column] = {}
        others: dict[str, RowTable] = {}
        for name, kind in self.wanted(schema):
            columns[name] = Column(kind, (name,))
        columns["missing"] = Column(self.pick(list(Kind)), ("no_such_field", "nor_this"))
        for f in schema["fields"]:
            inner, path = f["type"], f["name"]
            if isinstance(inner, list) and "null" in inner and len(inner) == 2:
                inner = inner[1] if inner[0] == "null" else inner[0]
            if not isinstance(inner, dict) or inner["type"] not in ("record", "array"):
                continue
            if inner["type"] == "array":
                inner, path = inner["items"], f"{path}[]"
                if not isinstance(inner, dict) or inner["type"] != "record":
                    continue
                if not any(isinstance(f["type"], str) for f in inner["fields"]):
                    continue  # items without bytes give no rows, and this one may be such
            wanted = self.wanted(inner)
            if not path.endswith("]") and self.rng.random() < 0.5:
                for name, kind in wanted:
                    columns[f"{path}.{name}"] = Column(kind, (f"{path}.{name}",))
            else:
                others[path] = RowTable((path,), {name: Column(kind, (name,)) for name, kind in wanted})
        return {"record": RowTable(("",), columns), **others}

    def wanted(self, record: Any) -> Iterator[tuple[str, Kind]]:
        for f in record["fields"]:
            inner = f["type"]
            if isinstance(inner, list) and "null" in inner and len(inner) == 2:
                inner = inner[1] if inner[0] == "null" else inner[0]
            if isinstance(inner, str) and KINDS[inner] and self.rng.random() < 0.7:
                yield f["name"], self.pick(KINDS[inner])


def test_random_records_of_random_schemas_are_read_as_fastavro_reads_them() -> None:
    compared = 0
    for seed in range(300):
        generator = Generator(seed)
        schema = generator.record(3)
        # Fields that are sure to be there, so that a record has bytes, and there is something to nest.
        schema["fields"] += [
            {"name": "sure", "type": "long"},
            {"name": "inner", "type": ["null", {**generator.record(2), "name": "inner_type"}]},
            {"name": "items", "type": {"type": "array", "items": {**generator.record(2), "name": "item_type"}}},
        ]
        records = [generator.value(schema, {}) for _ in range(5)]
        data = encode(schema, records)
        stream = io.BytesIO(data)
        parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
        plain: list[Any] = [fastavro.schemaless_reader(stream, parsed, None) for _ in records]
        tables = generator.tables(schema)
        compared += assert_same(tables, plain, read(schema, tables, data, len(records)), data)
        ends = read(schema, {"record": RowTable(("",), {})}, data, len(records)).records.ends
        assert ends[-1] == len(data)
        assert [len(encode(schema, records[: k + 1])) for k in range(len(records))] == ends.tolist()
    assert compared > 10_000


@pytest.mark.parametrize("version", LSST_VERSIONS)
def test_random_alerts_of_every_lsst_version_are_read_as_fastavro_reads_them(version: int) -> None:
    schema = without_logical_types(lsst_schema(version))
    generator = Generator(version)
    records = [generator.value(schema, {}) for _ in range(40)]
    data = encode(schema, records)
    stream = io.BytesIO(data)
    parsed = fastavro.parse_schema(schema)
    plain: list[Any] = [fastavro.schemaless_reader(stream, parsed, None) for _ in records]
    found = read(schema, LSST.tables, data, len(records))
    assert assert_same(LSST.tables, plain, found, data) > 1000
    # Every version has these under one of their names.
    assert not found.records.tables["packet"].is_null("source").any()
    assert not found.records.tables["packet"].is_null("ra").any()
    assert not found.records.tables["packet"].is_null("dec").any()
    points = found.records.tables["points"]
    assert not points.is_null("mjd").any()
    assert not np.all(points.is_null("flux"))
    assert not np.all(points.is_null("band"))


@pytest.mark.parametrize(
    ("folder", "survey"),
    [("ztf", ZTF), ("lsst", LSST), ("elasticc", ELASTICC)],
)
def test_real_packets_are_read_as_fastavro_reads_them(shared: Path, folder: str, survey: Any) -> None:
    compared = 0
    for number, packet in enumerate(iter_packets([shared / "alerts" / folder])):
        if number % 13:
            continue
        payload = packet.payload
        if payload[:1] == b"O":
            header = read_header(payload)
            schema = json.loads(header.schema_json)
            (block,) = read_blocks(payload, header)
            data = block.data[block.start : block.end]
        else:
            schema_id, start = read_confluent_header(payload)
            schema, data = lsst_schema(schema_id), payload[start:]
        plain: Any = fastavro.schemaless_reader(io.BytesIO(data), fastavro.parse_schema(schema), None)
        compared += assert_same(survey.tables, [plain], read(schema, survey.tables, data), data)
    assert compared > 300


# Bytes that are no record.

POINT = {"type": "record", "name": "point", "fields": [{"name": "x", "type": ["null", "double"]}]}
SCHEMA = {
    "type": "record",
    "name": "thing",
    "fields": [
        {"name": "flag", "type": "boolean"},
        {"name": "name", "type": "string"},
        {"name": "unwanted", "type": "bytes"},
        {"name": "maybe", "type": ["null", "long"]},
        {"name": "color", "type": {"type": "enum", "name": "color", "symbols": ["red", "green"]}},
        {"name": "points", "type": {"type": "array", "items": POINT}},
        {"name": "nothings", "type": {"type": "array", "items": "null"}},
    ],
}
TABLES = {
    "thing": RowTable(("",), {"flag": Column(Kind.INTEGER, ("flag",)), "name": Column(Kind.TEXT, ("name",))}),
    "points": RowTable(("points[]",), {"x": Column(Kind.NUMBER, ("x",))}),
}
GOOD = {
    "flag": b"\x01", "name": b"\x04ab", "unwanted": b"\x02z", "maybe": b"\x02\x08", "color": b"\x02",
    "points": b"\x02\x00\x00", "nothings": b"\x00",
}  # fmt: skip
HUGE = write_long(2**60)


def test_the_parts_make_a_record() -> None:
    found = read(SCHEMA, TABLES, b"".join(GOOD.values()))
    assert not found.errors
    assert len(found.records.tables["points"]) == 1


@pytest.mark.parametrize(
    ("part", "instead", "reason"),
    [
        ("flag", b"\x02", "neither 0 nor 1 .flag"),
        ("name", b"\x04a\xff", "not UTF-8 .name"),
        ("name", b"\x06\xed\xa0\x80", "not UTF-8 .name"),  # a surrogate
        ("name", b"\x04\xc1\x81", "not UTF-8 .name"),  # an overlong form
        ("name", b"\x08\xf5\x80\x80\x80", "not UTF-8 .name"),  # beyond U+10FFFF
        ("name", b"\x02\xc3", "not UTF-8 .name"),  # half a character
        ("name", b"\x03", "below zero .name"),
        ("name", HUGE, "end within it .name"),
        ("unwanted", b"\x01", "below zero .unwanted"),
        ("unwanted", HUGE, "end within it .unwanted"),
        ("unwanted", b"\xff" * 10 + b"\x01", "more than 64 bits .unwanted"),
        ("unwanted", b"\xff" * 9 + b"\x01", "below zero .unwanted"),  # -2**63
        ("maybe", b"\x04", "a branch that its union does not have .maybe"),
        ("maybe", b"\x02" + b"\xff" * 9 + b"\x02", "more than 64 bits .maybe"),
        ("color", b"\x04", "a symbol that its enum does not have .color"),
        ("color", b"\x01", "a symbol that its enum does not have .color"),
        ("points", HUGE, "more items than there are bytes left .points"),
        ("points", write_long(-(2**63)), "more items than there are bytes left .points"),
        ("points", b"\x01" + HUGE, "end within it .points"),
        ("points", b"\x01\x01", "below zero .points"),
        ("points", b"\x02\x04", "a branch that its union does not have .points.x"),
        ("points", b"\x02\x02\x00\x00", r"end within it .points.x"),
        ("nothings", HUGE + b"\x00\x00", "bytes too many"),
        ("nothings", HUGE, "end within it .nothings"),
        ("nothings", b"", "end within it .nothings"),
    ],
)
def test_damage_is_named_with_its_place(part: str, instead: bytes, reason: str) -> None:
    found = read(SCHEMA, TABLES, b"".join({**GOOD, part: instead}.values()))
    with pytest.raises(DecodeError, match=rf"damaged Avro record: .*{reason}"):
        raise found.errors[0]
    assert not len(found.records)


@pytest.mark.parametrize("items", [0, 1, 5])
def test_blocks_of_items_may_give_their_size(items: int) -> None:
    points = write_long(-items) + write_long(items) + b"\x00" * items + b"\x02\x00" if items else b""
    nothings = HUGE + write_long(-(2**60)) + b"\x00"  # items of no bytes, any number of them
    found = read(
        SCHEMA, TABLES, b"".join({**GOOD, "points": points + b"\x00", "nothings": nothings + b"\x00"}.values())
    )
    assert not found.errors
    assert len(found.records.tables["points"]) == items + (items > 0)


def test_every_cut_of_a_record_is_refused() -> None:
    whole = b"".join(GOOD.values())
    for size in range(len(whole)):
        assert read(SCHEMA, TABLES, whole[:size]).errors


def test_damage_concerns_its_message_alone() -> None:
    layout = Layout(TABLES)
    program = compile_schema(WriterSchema.parse(SCHEMA), layout)
    whole = b"".join(GOOD.values())
    messages = [
        Message(0, [Block(count, data, 0, len(data))])
        for data, count in [
            (whole, 1),
            (whole + whole[:-1], 2),
            (whole * 3, 3),
            (whole, 2**60),
            (whole, -1),
            (whole, 1),
        ]
    ]
    found = run([program], layout, messages)
    assert sorted(found.errors) == [1, 3, 4]
    assert found.records.message.tolist() == [0, 2, 2, 2, 5]
    assert found.records.tables["points"].owner.tolist() == [0, 1, 2, 3, 4]


def test_tables_grow_and_a_batch_of_many_rows_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(TABLES)
    program = compile_schema(WriterSchema.parse(SCHEMA), layout)
    x = np.arange(3000.0)
    points = write_long(len(x)) + b"".join(b"\x02" + value.tobytes() for value in x) + b"\x00"
    data = b"".join({**GOOD, "points": points}.values())
    messages = [Message(0, [Block(1, data, 0, len(data))]) for _ in range(10)]
    whole = run([program], layout, messages)
    assert whole.stopped == 10
    np.testing.assert_array_equal(whole.records.tables["points"].numbers("x"), np.tile(x, 10))
    assert whole.records.texts("name") == ["ab"] * 10
    monkeypatch.setattr(reader, "MAX_BATCH_ROWS", 5000)
    first, rows = 0, 0
    while first < len(messages):
        part = run([program], layout, messages, first)
        assert part.stopped > first
        np.testing.assert_array_equal(np.unique(part.records.message), np.arange(first, part.stopped))
        first, rows = part.stopped, rows + len(part.records.tables["points"])
    assert rows == 30_000


def test_a_message_of_too_many_rows_is_refused() -> None:
    many = MAX_ROWS + 1
    data = b"".join({**GOOD, "points": write_long(many) + b"\x00" * many + b"\x00"}.values())
    found = read(SCHEMA, TABLES, data)
    assert "more than 1000000" in str(found.errors[0])
    assert found.records.tables["points"].owner.size == 0


# Schemas that no program can be made for.


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}


def nested(depth: int) -> Any:
    kind: Any = "long"
    for _ in range(depth):
        kind = {"type": "array", "items": kind}
    return kind


def doubling(leaf: str) -> Any:
    kind: Any = record("t0", a=leaf)
    for k in range(1, 50):
        kind = record(f"t{k}", a=kind, b=f"t{k - 1}")
    return kind


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (record("a", b=["null", "a"]), "recursive"),
        (record("a", b="a"), "recursive"),
        (record("a", b={"type": "array", "items": "a"}), "recursive"),
        (record("a", b=nested(MAX_DEPTH + 5)), "nests deeper"),
        (record("a", b=doubling("double")), "too large|nests deeper"),
        (record("a", b=doubling("string")), "too large|nests deeper"),
        (record("a", **{f"f{k}": {"type": "map", "values": "int"} for k in range(60_000)}), "too large"),
        (record("a", b=doubling("null")), "no bytes"),
        (record("a"), "no bytes"),
        (record("a", b="c"), "not a valid Avro schema"),
        (record("a", b={"type": "fixed", "name": "x", "size": -1}), "not valid"),
        (record("a", b={"type": "fixed", "name": "x", "size": "many"}), "not a valid Avro schema"),
        (record("a", b={"type": "enum", "name": "x", "symbols": 3}), "not a valid Avro schema"),
        ({"type": "record", "name": "a", "fields": 3}, "not a valid Avro schema"),
        ({"__fastavro_parsed": True, "type": "record", "name": "a", "fields": [{}]}, "not a valid Avro schema"),
    ],
)
def test_a_schema_of_no_use_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "type_name", "reason"),
    [
        (Kind.NUMBER, "string", "field x is of type string, which is no number"),
        (Kind.NUMBER, ["null", "bytes"], "field x is of type bytes, which is no number"),
        (Kind.INTEGER, {"type": "array", "items": "int"}, "field x is of type array, which is no integer"),
        (Kind.TEXT, ["null", "int", "float"], "field x is of type float or int, which is no text"),
        (Kind.LABEL, {"type": "map", "values": "int"}, "field x is of type map, which is no label"),
    ],
)
def test_a_wanted_field_of_a_type_that_cannot_serve_is_named(kind: Kind, type_name: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read(record("a", x=type_name), {"a": RowTable(("",), {"x": Column(kind, ("x",))})}, b"")


@pytest.mark.parametrize(
    ("path", "type_name", "reason"),
    [
        ("x", "int", "which is no record"),
        ("x[]", record("b", y="int"), "which is no array"),
        ("x[]", nested(2), "no record"),
    ],
)
def test_a_wanted_place_of_another_type_is_named(path: str, type_name: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"field x is of type .*{reason}"):
        read(
            record("a", x=type_name),
            {"a": RowTable(("",), {}), "b": RowTable((path,), {"y": Column(Kind.NUMBER, ("y",))})},
            b"",
        )


def test_a_union_may_hold_a_branch_that_cannot_serve_until_it_comes() -> None:
    schema = record("a", x=["null", "string", "float"])
    tables = {"a": RowTable(("",), {"x": Column(Kind.NUMBER, ("x",))})}
    assert read(schema, tables, encode(schema, [{"x": 1.5}])).records.tables["a"].numbers("x") == 1.5
    found = read(schema, tables, encode(schema, [{"x": "1.5"}]))
    assert "a value of a type that cannot be read (x, at byte 1)" in str(found.errors[0])


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"a": RowTable(("x",), {})}, "the first table"),
        ({"a": RowTable(("",), {}), "b": RowTable(("x", "x"), {})}, "two tables want the rows"),
        ({"a": RowTable(("",), {}), "b": RowTable(("",), {})}, "two tables want the rows"),
        (
            {
                "a": RowTable(("",), {"y": Column(Kind.NUMBER, ("x.y",))}),
                "b": RowTable(("x",), {"y": Column(Kind.NUMBER, ("y",))}),
            },
            "x.y is wanted twice",
        ),
        ({"a": RowTable(("",), {"y": Column(Kind.NUMBER, ("x.y", "z.y"))})}, "not fields of one record"),
        ({"a": RowTable(("",), {"y": Column(Kind.NUMBER, ("x[].y",))})}, "not fields of one record"),
    ],
)
def test_tables_that_cannot_be_filled_are_refused(tables: dict[str, RowTable], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        Layout(tables)


def test_a_message_of_too_many_records_is_refused() -> None:
    whole = b"".join(GOOD.values())
    found = read(SCHEMA, TABLES, whole * (MAX_RECORDS + 1), MAX_RECORDS + 1)
    assert str(found.errors[0]) == "the message has more than 100000 records"
    assert not len(found.records)


def test_what_is_told_of_a_schema_is_not_endless() -> None:
    with pytest.raises(DecodeError) as error:
        read(record("a", **{"x" * 10_000: ["null", "b"], "b": "int"}), {"a": RowTable(("",), {})}, b"")
    assert len(str(error.value)) < 1000
    schema = record("a", **{"x" * 10_000: "string", "y": "string"})
    assert len(str(read(schema, {"a": RowTable(("",), {})}, b"??").errors[0])) < 1000


def test_nothing_at_all_may_be_wanted() -> None:
    program = compile_schema(WriterSchema.parse(SCHEMA), NOTHING)
    data = b"".join(GOOD.values())
    found = run([program], NOTHING, [Message(0, [Block(2, b"??" + data + data, 2, 2 + 2 * len(data))])])
    assert found.records.ends.tolist() == [2 + len(data), 2 + 2 * len(data)]
