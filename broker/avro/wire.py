"""Confluent's wire format: a magic byte, the id of a schema, and one record."""

from __future__ import annotations

import struct
from typing import Final

from broker.errors import DecodeError

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
