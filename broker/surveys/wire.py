"""How alerts come over the wire: Avro containers and Confluent's wire format; LSST's schemas by their ids."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Final

from lsst.alert.packet.schema import Schema, get_schema_path, get_schema_root

from broker.errors import DecodeError
from broker.surveys.avro import AvroSchema
from broker.surveys.containers import CONTAINER_MAGIC, container_message, write_long

__all__ = [
    "CONFLUENT_MAGIC", "CONTAINER_MAGIC", "AvroSchema", "confluent_message", "container_message", "lsst_schema",
    "read_confluent_header", "write_long",
]  # fmt: skip

CONFLUENT_MAGIC: Final = 0
_CONFLUENT_HEADER: Final = struct.Struct(">BI")


def read_confluent_header(payload: bytes) -> tuple[int, int]:
    """Schema id of a message in Confluent's wire format, and where its record begins."""
    if len(payload) < _CONFLUENT_HEADER.size or payload[0] != CONFLUENT_MAGIC:
        raise DecodeError("not in Confluent's wire format")
    _, schema_id = _CONFLUENT_HEADER.unpack_from(payload)
    return schema_id, _CONFLUENT_HEADER.size


def confluent_message(schema_id: int, record: bytes) -> bytes:
    """A record in Confluent's wire format."""
    return _CONFLUENT_HEADER.pack(CONFLUENT_MAGIC, schema_id) + record


@cache
def _lsst_versions() -> frozenset[tuple[int, int]]:
    found = (path.parts[-2:] for path in Path(get_schema_root()).glob("[0-9]*/[0-9]*"))
    return frozenset((int(major), int(minor)) for major, minor in found)


def lsst_schema(schema_id: int) -> AvroSchema:
    """The schema of an LSST alert by its id, 100 major + minor (https://github.com/lsst/alert_packet).

    Raises DecodeError, naming the id, where this release of lsst-alert-packet has no such version.
    """
    version = divmod(schema_id, 100)
    if version not in _lsst_versions():
        newest = max(_lsst_versions())
        raise DecodeError(
            f"unknown schema id {schema_id}: the newest of LSST's alert schemas known here is {newest[0]}.{newest[1]}"
        )
    folder = get_schema_path(*version)
    definition: AvroSchema = Schema.from_file(f"{folder}/lsst.v{version[0]}_{version[1]}.alert.avsc").definition
    return definition
