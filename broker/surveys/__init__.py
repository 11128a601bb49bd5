"""One module a survey: bytes to Alert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.errors import DecodeError
from broker.records import Alert
from broker.surveys import elasticc, lsst, ztf
from broker.surveys.wire import (
    CONFLUENT_MAGIC,
    CONTAINER_MAGIC,
    Record,
    RecordReader,
    SchemaCache,
    read_confluent_header,
    read_container,
)

SURVEYS: Final = (ztf.SURVEY, lsst.SURVEY, elasticc.SURVEY)
"""Names of the surveys whose packets can be decoded."""

FIELDS: Final = ztf.FIELDS | lsst.FIELDS | elasticc.FIELDS
"""All that is read of any packet."""


class Decoder:
    """Turns messages of any survey into alerts; the packet itself tells the survey. Not for several threads."""

    def __init__(self) -> None:
        self._schemas = SchemaCache(FIELDS)

    def decode(self, payload: bytes) -> list[Alert]:
        """The alerts of one message, an Avro container or a record in Confluent's wire format.

        Raises DecodeError, with the reason, where the bytes are not that.
        """
        if payload.startswith(CONTAINER_MAGIC):
            container = read_container(payload)
            reader = self._schemas.of_container(container.schema_json)
            to_alert = _converter(reader)
            return [
                _alert(to_alert, record, reader.name)
                for block in container.blocks
                for record in reader.read(block.data, 0, block.count)
            ]
        if payload and payload[0] == CONFLUENT_MAGIC:
            schema_id, start = read_confluent_header(payload)
            reader = self._schemas.of_id(schema_id)
            to_alert = _converter(reader)
            return [_alert(to_alert, record, reader.name) for record in reader.read(payload, start, 1)]
        if not payload:
            raise DecodeError("the message is empty")
        raise DecodeError(f"neither an Avro container nor Confluent's wire format: it begins with {payload[:4]!r}")


def _converter(reader: RecordReader) -> Callable[[Record, str], Alert]:
    if f"{reader.namespace}.{reader.name}".strip(".").startswith(elasticc.NAMESPACE):
        return elasticc.to_alert
    if ztf.MARK in reader.fields:
        return ztf.to_alert
    if lsst.MARK in reader.fields:
        return lsst.to_alert
    raise DecodeError(f"records of type {reader.name!r} are no alerts of a known survey")


def _alert(to_alert: Callable[[Record, str], Alert], record: Record, schema_name: str) -> Alert:
    try:
        return to_alert(record, schema_name)
    except DecodeError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise DecodeError(f"the packet's fields are not those of its survey: {error!r}") from error
