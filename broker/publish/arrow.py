"""Annotations as tables of Arrow: the fields of ``annotation.avsc``, one row an annotation.

The types follow from the Avro schema: times are UTC timestamps in milliseconds, arrays lists, and an array of records
is a struct of lists, as HATS and nested-pandas store nested tables, so that one field of it can be read alone. A map
becomes such a table of ``name`` and ``value``, since many readers of Parquet lack maps.
``className`` and ``probability``, the most probable class, are added for those who want no more than these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from broker.publish.annotation import SCHEMA_TEXT, to_record
from broker.records import Annotation

_PRIMITIVE: Final[dict[str, Any]] = {
    "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
    "string": pa.string(),
}  # fmt: skip


def _type(avro: Any) -> Any:
    """The type of Arrow's for one of Avro's."""
    if isinstance(avro, str):
        return _PRIMITIVE[avro]
    if isinstance(avro, list):  # a union with null
        (inner,) = (kind for kind in avro if kind != "null")
        return _type(inner)
    if avro.get("logicalType") == "timestamp-millis":
        return pa.timestamp("ms", tz="UTC")
    if avro["type"] == "array":
        fields = _fields(avro)
        if not fields:
            return pa.list_(_type(avro["items"]))
        return pa.struct([pa.field(name, pa.list_(kind)) for name, kind in fields.items()])
    if avro["type"] == "map":
        return pa.struct([pa.field("name", pa.list_(pa.string())), pa.field("value", pa.list_(_type(avro["values"])))])
    return _type(avro["type"])


def _fields(avro: Any) -> dict[str, Any]:
    """The fields of the records of an array, with their types; none where it is one of single values."""
    items = avro.get("items") if isinstance(avro, dict) and avro["type"] == "array" else None
    return {f["name"]: _type(f["type"]) for f in items["fields"]} if isinstance(items, dict) else {}


_AVRO: Final[list[dict[str, Any]]] = json.loads(SCHEMA_TEXT)["fields"]
_MAPS: Final = tuple(f["name"] for f in _AVRO if isinstance(f["type"], dict) and f["type"]["type"] == "map")
_TABLES: Final = {field["name"]: tuple(fields) for field in _AVRO if (fields := _fields(field["type"]))}
"""Fields that are arrays of records, with the names of their fields."""
SCHEMA: Final = pa.schema(
    {
        "className": pa.string(),
        "probability": pa.float64(),
        **{field["name"]: _type(field["type"]) for field in _AVRO},
    }
)


def to_table(annotations: Sequence[Annotation], broker_name: str, publish_mjd: float) -> pa.Table:
    """A row for each annotation, columns as SCHEMA says; ``publish_mjd`` (MJD UTC) is when the table is made."""
    return pa.Table.from_pylist(rows(annotations, broker_name, publish_mjd), schema=SCHEMA)


def rows(annotations: Sequence[Annotation], broker_name: str, publish_mjd: float) -> list[dict[str, Any]]:
    """The same as values of Python, by the names of the columns."""
    found = []
    for annotation in annotations:
        row = to_record(annotation, broker_name, publish_mjd)
        for name in _MAPS:
            row[name] = {"name": list(row[name]), "value": list(row[name].values())}
        for name, fields in _TABLES.items():
            row[name] = {field: [record[field] for record in row[name]] for field in fields}
        row["className"] = annotation.best_class
        row["probability"] = annotation.best_probability
        found.append(row)
    return found
