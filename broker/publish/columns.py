"""Annotations as columns: which there are, by ``annotation.avsc``, and what kind of value each holds.

Times are datetimes in UTC. Arrays of records, and maps, are tables within a cell: a struct of lists, as HATS and
nested-pandas store nested tables, so that one field of it can be read alone. ``className`` and ``probability``, the
most probable class, are added for those who want no more than these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from broker.publish.annotation import SCHEMA_TEXT, PublishedAnnotation, published_record, to_record
from broker.records import Annotation
from broker.taxonomy import CLASS_NAMES, OTHER

AVRO: Final[list[dict[str, Any]]] = json.loads(SCHEMA_TEXT)["fields"]
MAPS: Final = tuple(f["name"] for f in AVRO if isinstance(f["type"], dict) and f["type"]["type"] == "map")


def inner(avro: Any) -> Any:
    """A type of Avro's, that of a union with null without the null."""
    return next(kind for kind in avro if kind != "null") if isinstance(avro, list) else avro


def fields_of(avro: Any) -> dict[str, Any]:
    """The fields of the records of an array, with their Avro types; none where it is one of single values."""
    items = avro.get("items") if isinstance(avro, dict) and avro["type"] == "array" else None
    return {f["name"]: f["type"] for f in items["fields"]} if isinstance(items, dict) else {}


TABLES: Final = {field["name"]: tuple(fields) for field in AVRO if (fields := fields_of(field["type"]))}
"""Fields that are arrays of records, with the names of their fields."""


def _kind(avro: Any) -> str:
    plain = inner(avro)
    if isinstance(plain, str):
        return plain
    return "time" if plain.get("logicalType") == "timestamp-millis" else "texts"


PROBABILITIES: Final = tuple(f"p_{name}" for name in (*CLASS_NAMES, OTHER.name))
FLAT: Final[dict[str, str]] = {
    "className": "string",
    "probability": "double",
    **{f["name"]: _kind(f["type"]) for f in AVRO if f["name"] not in (*MAPS, *TABLES, "topics")},
}
"""The columns that are no nested tables, with ``string``, ``int``, ``long``, ``double``, ``boolean``, ``time`` or
``texts``, a list of strings. ``topics`` are left out."""
NULLABLE: Final = frozenset(f["name"] for f in AVRO if isinstance(f["type"], list))
"""Columns that may have nothing in a row."""


def record_of(annotation: Annotation, broker_name: str, publish_mjd: float) -> dict[str, Any]:
    """The annotation in the fields of ``annotation.avsc``: as it was published, where it was."""
    if isinstance(annotation, PublishedAnnotation):
        return published_record(annotation)
    return to_record(annotation, broker_name, publish_mjd)


def rows(annotations: Sequence[Annotation], broker_name: str, publish_mjd: float) -> list[dict[str, Any]]:
    """A row for each annotation, by the names of the columns; ``publish_mjd`` (MJD UTC) is when they are made."""
    found = []
    for annotation in annotations:
        row = record_of(annotation, broker_name, publish_mjd)
        for name in MAPS:
            row[name] = {"name": list(row[name]), "value": list(row[name].values())}
        for name, fields in TABLES.items():
            row[name] = {field: [record[field] for record in row[name]] for field in fields}
        row["className"] = annotation.best_class
        row["probability"] = annotation.best_probability
        found.append(row)
    return found


def flat_columns(annotations: Sequence[Annotation], broker_name: str, publish_mjd: float) -> dict[str, list[Any]]:
    """The columns FLAT and PROBABILITIES, each with a value for each annotation; None for nothing."""
    table = rows(annotations, broker_name, publish_mjd)
    columns: dict[str, list[Any]] = {name: [row[name] for row in table] for name in FLAT}
    found = [dict(zip(a.class_names, a.probabilities, strict=True)) for a in annotations]
    return columns | {name: [one.get(name.removeprefix("p_")) for one in found] for name in PROBABILITIES}
