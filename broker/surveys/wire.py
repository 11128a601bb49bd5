"""Bytes to records: Avro object containers and Confluent's wire format, with only the fields that are wanted.

Cutouts are more than half of a packet. A reader schema that leaves them out makes fastavro step over their
bytes. Schemas are parsed once: a container carries its own, and is told by the bytes of it.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import fastavro
from fastavro.schema import SchemaParseException, parse_schema
from lsst.alert.packet.schema import Schema, get_schema_path, get_schema_root

from broker.errors import DecodeError

Record = dict[str, Any]
AvroSchema = dict[str, Any]

CONTAINER_MAGIC: Final = b"Obj\x01"
CONFLUENT_MAGIC: Final = 0
_CONFLUENT_HEADER: Final = struct.Struct(">BI")
_SYNC_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 4_000_000
MAX_BLOCK_BYTES: Final = 256_000_000
"""Largest size that one block of a container may inflate to: 420 packets of ZTF in one file take 30 MB."""
_CACHED_SCHEMAS: Final = 64
_NAMED: Final = frozenset({"record", "error", "enum", "fixed"})
_PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


@dataclass(frozen=True, slots=True)
class Block:
    """Some records of a container, inflated but not decoded."""

    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Container:
    """An Avro object container (Avro 1.11 specification, "Object Container Files"), not yet decoded."""

    schema_json: bytes
    blocks: tuple[Block, ...]


def read_container(payload: bytes) -> Container:
    """Take a container apart; raises DecodeError where it is cut short or damaged."""
    metadata, position = _read_header(payload)
    sync = payload[position : position + _SYNC_BYTES]
    position += _SYNC_BYTES
    if len(sync) < _SYNC_BYTES:
        raise DecodeError("Avro container: cut short in its header")
    codec = metadata.get("avro.codec", b"null")
    blocks: list[Block] = []
    while position < len(payload):
        count, position = read_long(payload, position)
        size, position = read_long(payload, position)
        end = position + size
        if count < 0 or size < 0 or end + _SYNC_BYTES > len(payload):
            raise DecodeError(f"Avro container: block {len(blocks) + 1} is cut short")
        if payload[end : end + _SYNC_BYTES] != sync:
            raise DecodeError(f"Avro container: block {len(blocks) + 1} does not end with the sync marker")
        blocks.append(Block(count, _inflate(codec, payload[position:end])))
        position = end + _SYNC_BYTES
    if "avro.schema" not in metadata:
        raise DecodeError("Avro container: no schema in its header")
    return Container(metadata["avro.schema"], tuple(blocks))


def _read_header(payload: bytes) -> tuple[dict[str, bytes], int]:
    if payload[:4] != CONTAINER_MAGIC:
        raise DecodeError("not an Avro container")
    metadata: dict[str, bytes] = {}
    position = len(CONTAINER_MAGIC)
    while True:
        count, position = read_long(payload, position)
        if count == 0:
            return metadata, position
        if count < 0:  # the block's size in bytes follows, which nobody needs
            _, position = read_long(payload, position)
            count = -count
        for _ in range(count):
            name, position = _read_bytes(payload, position)
            value, position = _read_bytes(payload, position)
            metadata[name.decode("utf-8", "replace")] = value
            if position > _MAX_HEADER_BYTES:
                raise DecodeError(f"Avro container: its header has more than {_MAX_HEADER_BYTES} bytes")


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """One Avro long (zigzag, variable length) and the position after it; raises DecodeError at the end of data."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise DecodeError("Avro container: cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), position
        shift += 7
    raise DecodeError("Avro container: a number of more than 64 bits")


def _read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    size, position = read_long(data, position)
    if size < 0 or position + size > len(data):
        raise DecodeError("Avro container: cut short in its header")
    return data[position : position + size], position + size


def _inflate(codec: bytes, data: bytes) -> bytes:
    if codec == b"null":
        return data
    if codec == b"deflate":
        inflater = zlib.decompressobj(-15)
        try:
            inflated = inflater.decompress(data, MAX_BLOCK_BYTES)
        except zlib.error as error:
            raise DecodeError(f"Avro container: {error}") from error
        if not inflater.eof:
            raise DecodeError(f"Avro container: a block is cut short or has more than {MAX_BLOCK_BYTES} bytes")
        return inflated
    raise DecodeError(f"Avro container: codec {codec.decode('utf-8', 'replace')!r} is not one of null, deflate")


class RecordReader:
    """Decodes records of one writer's schema to the fields that are wanted."""

    def __init__(self, schema: AvroSchema, wanted: frozenset[str]) -> None:
        """``wanted`` are field names, of records at any depth. Raises DecodeError where the schema is not valid."""
        named: dict[str, Any] = {}
        try:
            self._writer = parse_schema(schema, named_schemas=named)
            self._reader = parse_schema(_prune(schema, wanted))
        except (SchemaParseException, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DecodeError(f"not a valid Avro schema: {error!r}") from error
        self.name: Final = str(schema.get("name", ""))
        """Name of the record type, with its namespace where that is part of it."""
        self.namespace: Final = str(schema.get("namespace", ""))
        self.fields: Final = frozenset(f["name"] for f in schema["fields"])
        """All fields at the top, wanted or not."""

    def read(self, data: bytes, start: int, count: int) -> list[Record]:
        """``count`` records from ``start`` to the end of ``data``; DecodeError where they do not fill it."""
        stream = io.BytesIO(data)
        stream.seek(start)
        records: list[Record] = []
        try:
            for _ in range(count):
                records.append(cast(Record, fastavro.schemaless_reader(stream, self._writer, self._reader)))  # noqa: PERF401
        except Exception as error:  # fastavro lets many kinds through on damaged bytes
            raise DecodeError(f"damaged Avro record: {type(error).__name__}: {str(error)[:500]}") from error
        if stream.tell() != len(data):
            raise DecodeError(f"{len(data) - stream.tell()} bytes too many after the Avro record")
        return records

    def split(self, block: Block) -> Iterator[bytes]:
        """The bytes of each record of a block."""
        stream = io.BytesIO(block.data)
        for _ in range(block.count):
            start = stream.tell()
            try:
                fastavro.schemaless_reader(stream, self._writer, self._reader)
            except Exception as error:  # as in read
                raise DecodeError(f"damaged Avro record: {type(error).__name__}: {str(error)[:500]}") from error
            yield block.data[start : stream.tell()]


def _prune(schema: AvroSchema, wanted: frozenset[str]) -> Any:
    """The schema with only the wanted fields of each record.

    A type that is defined within an unwanted field moves to where it is first used.
    """
    defined: dict[str, Any] = {}
    _collect(schema, "", defined)
    written: set[str] = set()

    def copy(part: Any, namespace: str) -> Any:
        if isinstance(part, str):
            name = part if part in _PRIMITIVES or part in defined else f"{namespace}.{part}"
            if name in _PRIMITIVES or name in written:
                return name
            return copy(defined[name], namespace)
        if isinstance(part, list):
            return [copy(branch, namespace) for branch in part]
        kind = part["type"]
        if not isinstance(kind, str):
            return copy(kind, namespace)
        result = {key: value for key, value in part.items() if key not in ("doc", "aliases")}
        if kind in _NAMED:
            full, namespace = _full_name(part, namespace)
            if full in written:
                return full
            written.add(full)
            result["name"] = full
            result.pop("namespace", None)
        if kind in ("record", "error"):
            result["fields"] = [
                {"name": f["name"], "type": copy(f["type"], namespace)} for f in part["fields"] if f["name"] in wanted
            ]
        elif kind == "array":
            result["items"] = copy(part["items"], namespace)
        elif kind == "map":
            result["values"] = copy(part["values"], namespace)
        elif kind not in _NAMED and kind not in _PRIMITIVES:
            return copy(kind, namespace)
        return result

    return copy(schema, "")


def _collect(part: Any, namespace: str, defined: dict[str, Any]) -> None:
    if isinstance(part, list):
        for branch in part:
            _collect(branch, namespace, defined)
    elif isinstance(part, dict):
        if part.get("type") in _NAMED:
            full, namespace = _full_name(part, namespace)
            # Kept with its full name, so that it may be written in another namespace.
            defined[full] = {**part, "name": full}
        for inner in [f["type"] for f in part.get("fields", ())] + [part.get(k) for k in ("type", "items", "values")]:
            if isinstance(inner, (dict, list)):
                _collect(inner, namespace, defined)


def _full_name(part: Mapping[str, Any], namespace: str) -> tuple[str, str]:
    name = part["name"]
    if "." in name:
        return name, name.rpartition(".")[0]
    namespace = part.get("namespace", namespace)
    return (f"{namespace}.{name}" if namespace else name), namespace


@dataclass(slots=True)
class SchemaCache:
    """Readers of the schemas seen last, by the bytes of the schema: not one for each message, nor all for ever."""

    wanted: frozenset[str]
    _readers: OrderedDict[bytes | int, RecordReader] = field(default_factory=OrderedDict)

    def of_container(self, schema_json: bytes) -> RecordReader:
        """The reader for a container's own schema; raises DecodeError where that is none."""
        reader = self._readers.get(schema_json)
        if reader is None:
            try:
                schema = json.loads(schema_json)
            except (ValueError, RecursionError) as error:
                raise DecodeError(f"Avro container: its schema is not JSON: {error}") from error
            if not isinstance(schema, dict) or schema.get("type") != "record":
                raise DecodeError("Avro container: its schema is not that of a record")
            reader = self._add(schema_json, schema)
        else:
            self._readers.move_to_end(schema_json)
        return reader

    def of_id(self, schema_id: int) -> RecordReader:
        """The reader for an id of LSST's schema registry; raises DecodeError where the id is not known."""
        return self._readers.get(schema_id) or self._add(schema_id, lsst_schema(schema_id))

    def _add(self, key: bytes | int, schema: AvroSchema) -> RecordReader:
        reader = self._readers[key] = RecordReader(schema, self.wanted)
        while len(self._readers) > _CACHED_SCHEMAS:
            self._readers.popitem(last=False)
        return reader


def read_confluent_header(payload: bytes) -> tuple[int, int]:
    """Schema id of a message in Confluent's wire format, and where its record begins."""
    if len(payload) < _CONFLUENT_HEADER.size or payload[0] != CONFLUENT_MAGIC:
        raise DecodeError("not in Confluent's wire format")
    _, schema_id = _CONFLUENT_HEADER.unpack_from(payload)
    return schema_id, _CONFLUENT_HEADER.size


def confluent_message(schema_id: int, record: bytes) -> bytes:
    """A record in Confluent's wire format."""
    return _CONFLUENT_HEADER.pack(CONFLUENT_MAGIC, schema_id) + record


def container_message(schema_json: bytes, record: bytes) -> bytes:
    """A container, not compressed, of one record."""
    metadata = {"avro.schema": schema_json, "avro.codec": b"null"}
    sync = zlib.crc32(schema_json).to_bytes(4, "big") * 4
    out = [CONTAINER_MAGIC, write_long(len(metadata))]
    for name, value in metadata.items():
        out += [write_long(len(name)), name.encode(), write_long(len(value)), value]
    out += [write_long(0), sync, write_long(1), write_long(len(record)), record, sync]
    return b"".join(out)


def write_long(value: int) -> bytes:
    """A number in Avro's zigzag variable-length code."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


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
