"""Avro schemas of records as their writers give them: read from JSON, and checked by fastavro."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from fastavro.schema import SchemaParseException, parse_schema

from broker.errors import DecodeError

AvroSchema = dict[str, Any]

MAX_SCHEMA_BYTES: Final = 4_000_000
"""Largest answer taken from a registry, and largest file from the disk: LSST's schema 11.1 is 15 kB there."""


@dataclass(frozen=True, slots=True, eq=False)
class WriterSchema:
    """A record type that packets were written by, checked by fastavro."""

    root: AvroSchema
    named: dict[str, AvroSchema]
    name: str
    full_name: str
    fields: frozenset[str]
    """All fields at the top."""

    @staticmethod
    def parse(schema: AvroSchema) -> WriterSchema:
        """Raises DecodeError where ``schema`` is not a valid schema of a record."""
        named: dict[str, AvroSchema] = {}
        # fastavro takes a schema with its own marks for one that it has already checked.
        unmarked = {key: value for key, value in schema.items() if not key.startswith("__")}
        try:
            root = cast(AvroSchema, parse_schema(unmarked, named_schemas=named))
            fields = frozenset(f["name"] for f in root["fields"])
            full_name = str(root["name"])
        except (SchemaParseException, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DecodeError(f"not a valid Avro schema: {type(error).__name__}: {str(error)[:500]}") from error
        return WriterSchema(root, named, str(schema.get("name", "")), full_name, fields)


def read_schema(text: str | bytes, max_bytes: int) -> AvroSchema:
    """The schema of a record from its JSON.

    Raises ValueError, whose text goes on from "the schema", where it is none or larger than ``max_bytes``.
    """
    if len(text) > max_bytes:
        raise ValueError(f"has more than {max_bytes} bytes")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ValueError("is not that of a record")
    return schema
