"""LSST's alerts in Parquet tables, as brokers export them, written again in the wire format.

Such a table came through pandas or Spark: records that are absent come as structs of nulls, integers beside nulls as
floating-point numbers, columns of nulls have no type, and the broker's own columns stand beside LSST's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from broker.avro.wire import confluent_message
from broker.errors import DecodeError, InputFileError
from broker.files import reason
from broker.surveys.lsst_schemas import lsst_schema

VERSION_COLUMN: Final = "lsst_schema_version"
_VERSION: Final = re.compile(r"(?:lsst\.)?v(\d{1,4})_(\d{1,2})")
_ROWS: Final = 100
"""Rows that are Python objects at a time."""
_BUFFER_BYTES: Final = 1 << 20
"""What is read of a column at a time, in place of all of it."""
_EXACT: Final = 2.0**53
"""From here on a floating-point number may stand for another integer than was put in."""
_IDENTITY: Final = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "diaSource.")
    for name in ("alertId", "diaSourceId", "diaObjectId", "ssObjectId")
)
"""Fields that name an alert or its object: other digits are another star."""
_LARGEST_FLOAT: Final = 3.4028235e38
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RANGES: Final = {"int": 31, "long": 63}
_TICKS: Final = {"timestamp-micros": timedelta(microseconds=1), "timestamp-millis": timedelta(milliseconds=1)}


class _RowError(DecodeError):
    """Why a row is no alert; the message names the field, and never holds the record."""


def read_lsst_table(file: Path | BinaryIO) -> Iterator[bytes | DecodeError]:
    """Each row as a message in Confluent's wire format, or why it is none.

    A nullable record that lacks what the schema requires of it is null, as a struct of nulls is; a nullable column
    that is absent is null; and columns that LSST's schema does not have are left out, at any depth. Raises
    InputFileError where the file is no such table, or damaged.
    """
    number = 0
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        if VERSION_COLUMN not in table.schema_arrow.names:
            raise InputFileError(
                f"no column {VERSION_COLUMN}, so no table of LSST alerts; light curves are read with --lightcurves"
            )
        for batch in table.iter_batches(_ROWS):
            for row in _rows(_microseconds(batch)):
                number += 1
                try:
                    yield _message(row)
                except _RowError as error:
                    yield error
    except (OSError, ValueError, pa.ArrowException) as error:
        where = f"damaged behind row {number - 1}" if number else "no Parquet table, or a damaged one"
        raise InputFileError(f"{where}: {reason(error)}") from error


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without nanoseconds, for which Python has no type."""
    columns = []
    for column in batch.columns:
        wanted = _plain_type(column.type)
        columns.append(column if wanted.equals(column.type) else column.cast(wanted, safe=False))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python objects; a _RowError in place of a value that has none: a time after the year 9999."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):
        if len(batch) > 1:
            return [row for number in range(len(batch)) for row in _rows(batch.slice(number, 1))]
    return [{name: _value(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}]


def _value(name: str, column: pa.Array[Any]) -> Any:
    try:
        return column[0].as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return _RowError(f"{name} cannot be read: {type(error).__name__}")


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_struct(kind):
        return pa.struct([inner.with_type(_plain_type(inner.type)) for inner in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


class _MissingError(_RowError):
    """A value that the schema requires is null or absent."""


@dataclass(frozen=True, slots=True)
class _Schema:
    """One version of LSST's schema, made ready once."""

    schema_id: int
    definition: Any
    parsed: Any
    records: dict[str, Any] = field(default_factory=dict)
    """Record types by name: the schema defines each where it is first used."""


@lru_cache(maxsize=64)
def _schema(text: str) -> _Schema:
    version = _VERSION.fullmatch(text)
    if version is None:
        raise _RowError(f"{VERSION_COLUMN}: {text[:50]!r} is no version of LSST's alerts, such as 'lsst.v10_0'")
    schema_id = 100 * int(version[1]) + int(version[2])
    try:
        definition = lsst_schema(schema_id)
    except DecodeError as error:
        raise _RowError(f"{VERSION_COLUMN}: {error}") from error
    found = _Schema(schema_id, definition, fastavro.parse_schema(definition))
    _collect(definition, found.records)
    return found


def _collect(schema: Any, records: dict[str, Any]) -> None:
    if isinstance(schema, list):
        for branch in schema:
            _collect(branch, records)
    elif isinstance(schema, dict):
        if schema["type"] == "record":
            records[schema["name"]] = schema
            for inner in schema["fields"]:
                _collect(inner["type"], records)
        elif schema["type"] == "array":
            _collect(schema["items"], records)


def _message(row: dict[str, Any]) -> bytes:
    version = row[VERSION_COLUMN]
    if not isinstance(version, str):
        raise _RowError(f"{VERSION_COLUMN} is missing")
    schema = _schema(version)
    source = row.get("diaSource")
    exact = {k: v for k, v in source.items() if isinstance(v, int)} if isinstance(source, dict) else {}
    record = _Fit(schema.records, exact).value(row, schema.definition, "")
    out = BytesIO()
    try:
        fastavro.schemaless_writer(out, schema.parsed, record)
    except Exception as error:  # its messages hold the whole record
        raise _RowError(f"it does not fit LSST's schema {version}: {type(error).__name__}") from error
    return confluent_message(schema.schema_id, out.getvalue())


class _Fit:
    """Makes values of a table ones of the schema."""

    def __init__(self, records: dict[str, Any], exact: dict[str, int]) -> None:
        """``exact`` are the detection's integers, by which ids rounded elsewhere in the row are told."""
        self._records, self._exact = records, exact

    def value(self, value: Any, schema: Any, place: str) -> Any:
        """``value`` as ``schema`` has it; raises _RowError with the ``place`` of what does not fit."""
        if isinstance(value, _RowError):
            raise value
        if isinstance(schema, list):
            return self._nullable(value, _first_branch(schema), place)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind in self._records:
            return self.value(value, self._records[kind], place)
        if kind in ("float", "double"):
            return _number(value, kind, place)
        if value is None:
            raise _MissingError(f"{place} is missing")
        if kind == "record":
            return self._record(value, schema, place)
        if kind == "array":
            if isinstance(value, dict):
                value = _turned(value, place)
            if not isinstance(value, list):
                raise _RowError(f"{place} is {_kind(value)}, not a list")
            # A list of one absent record is how an outer join has none.
            kept = [(n, item) for n, item in enumerate(value) if not self._absent(item, schema["items"])]
            return [self.value(item, schema["items"], f"{place}[{n}]") for n, item in kept]
        if kind in _RANGES:
            return self._integer(value, kind, schema, place)
        return _plain(value, kind, place)

    def _nullable(self, value: Any, schema: Any, place: str) -> Any:
        if self._absent(value, schema):
            return None
        try:
            return self.value(value, schema, place)
        except _MissingError:
            # An alert without the orbit of its asteroid is worth more than none.
            if self._record_type(schema) is not None:
                return None
            raise

    def _record_type(self, schema: Any) -> Any:
        """The record type that a schema is, or names; None for any other."""
        name = schema["type"] if isinstance(schema, dict) else schema
        return schema if name == "record" else self._records.get(name)

    def _absent(self, value: Any, schema: Any) -> bool:
        """Whether a nullable value is null: a record where all that the schema requires of it is."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return True
        if not isinstance(value, dict):
            return False
        record = self._record_type(schema)
        if record is None:  # a struct of lists
            return all(item is None for item in value.values())
        fields = record["fields"]
        decisive = [f for f in fields if not isinstance(f["type"], list)] or fields
        return all(self._absent(value.get(f["name"]), _first_branch(f["type"])) for f in decisive)

    def _record(self, value: Any, schema: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _RowError(f"{place or 'the row'} is {_kind(value)}, not a record")
        fitted = {}
        for inner in schema["fields"]:
            name = inner["name"]
            if name not in value and "default" in inner:
                fitted[name] = inner["default"]
            else:
                fitted[name] = self.value(value.get(name), inner["type"], f"{place}.{name}" if place else name)
        return fitted

    def _integer(self, value: Any, kind: str, schema: Any, place: str) -> int:
        if isinstance(value, datetime):
            tick = _TICKS.get(schema.get("logicalType", "")) if isinstance(schema, dict) else None
            if tick is None:
                raise _RowError(f"{place} is a time, not an integer")
            return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH) // tick
        if isinstance(value, float | Decimal):
            if not math.isfinite(value) or value != int(value):
                raise _RowError(f"{place} is {value}, not an integer")
            if isinstance(value, float) and abs(value) >= _EXACT:
                exact = self._exact.get(place.rpartition(".")[2])
                if exact is not None and float(exact) == value:
                    return exact
                if place in _IDENTITY:
                    raise _RowError(f"{place} is a floating-point number, which has lost the id's last digits")
        elif isinstance(value, str):
            if not re.fullmatch(r"-?\d{1,19}", value):
                raise _RowError(f"{place} is text, not an integer")
        elif not isinstance(value, int):
            raise _RowError(f"{place} is {_kind(value)}, not an integer")
        whole, bits = int(value), _RANGES[kind]
        if not -(1 << bits) <= whole < 1 << bits:
            raise _RowError(f"{place} is {whole}, over {bits + 1} bits")
        return whole


def _turned(value: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The records of a struct of lists, as nested-pandas and HATS have them."""
    lists = {name: items for name, items in value.items() if items is not None}
    lengths = {len(items) if isinstance(items, list) else -1 for items in lists.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise _RowError(f"{place} is a record, not a list, nor a record of lists of one length")
    return [{name: items[n] for name, items in lists.items()} for n in range(max(lengths, default=0))]


def _first_branch(schema: Any) -> Any:
    return next(branch for branch in schema if branch != "null") if isinstance(schema, list) else schema


def _number(value: Any, kind: str, place: str) -> float:
    if value is None:  # pandas writes NaN as null
        return math.nan
    if not isinstance(value, int | float | Decimal):
        raise _RowError(f"{place} is {_kind(value)}, not a number")
    number = float(value)
    if kind == "float" and _LARGEST_FLOAT < abs(number) < math.inf:
        raise _RowError(f"{place} is {number}, over 32 bits")
    return number


def _plain(value: Any, kind: str, place: str) -> Any:
    if kind == "boolean" and isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "string" and isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if kind == "bytes" and isinstance(value, bytes):
        return value
    raise _RowError(f"{place} is {_kind(value)}, not {kind}")


def _kind(value: object) -> str:
    names = {dict: "a record", list: "a list", str: "text", bytes: "bytes", float: "a number", int: "an integer"}
    return names.get(type(value), f"of type {type(value).__name__}")
