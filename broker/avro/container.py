"""Avro object containers (Avro 1.11 specification, "Object Container Files"), taken apart and put together."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import fastavro
import pyarrow as pa

from broker.errors import DecodeError

CONTAINER_MAGIC: Final = b"Obj\x01"
MAX_BLOCK_BYTES: Final = 64 * 1024 * 1024
"""Largest size that a container's blocks may inflate to together, by default: 420 packets of ZTF in
one file take 30 MB."""
SYNC_BYTES: Final = 16
MAX_HEADER_BYTES: Final = 4_000_000
_SNAPPY_RATIO: Final = 22
"""Snappy's shortest copy of 64 bytes takes 3 (format_description.txt of google/snappy, "Copies")."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the blocks of a container."""

    raw: bytes
    """All of it but the sync marker: containers of one writer begin with the same."""
    schema_json: bytes
    codec: bytes


class Span(NamedTuple):
    """A block as it stands in its container."""

    number: int
    """How many records it is said to hold."""
    start: int
    """Where in the container its bytes begin, compressed as the container's header says."""
    end: int


class Block(NamedTuple):
    """Some records one after another, inflated but not decoded."""

    number: int
    """How many there are; not to be trusted."""
    data: bytes
    start: int
    """Where in ``data`` the first begins."""
    end: int
    """Where the last one ends."""


def read_header(payload: bytes) -> Header:
    """The header of a container; raises DecodeError where it is cut short, damaged or without a schema."""
    if payload[:4] != CONTAINER_MAGIC:
        raise DecodeError("not an Avro container")
    metadata: dict[str, bytes] = {}
    position = len(CONTAINER_MAGIC)
    while True:
        count, position = read_long(payload, position)
        if count == 0:
            break
        if count < 0:  # the block's size in bytes follows, which nobody needs
            _, position = read_long(payload, position)
            count = -count
        for _ in range(count):
            name, position = _read_bytes(payload, position)
            value, position = _read_bytes(payload, position)
            metadata[name.decode("utf-8", "replace")] = value
            if position > MAX_HEADER_BYTES:
                raise DecodeError(f"Avro container: its header has more than {MAX_HEADER_BYTES} bytes")
    if "avro.schema" not in metadata:
        raise DecodeError("Avro container: no schema in its header")
    codec = metadata.get("avro.codec", b"null")
    if codec != b"null" and codec not in _CODECS:
        known = ", ".join(["null", *(name.decode() for name in _CODECS)])
        raise DecodeError(f"Avro container: codec {codec[:50].decode('utf-8', 'replace')!r} is not one of {known}")
    return Header(payload[:position], metadata["avro.schema"], codec)


def block_spans(payload: bytes, header: Header) -> Iterator[Span]:
    """The blocks of a container that begins with ``header``, none of them inflated.

    Raises DecodeError where one is cut short or damaged.
    """
    position = len(header.raw) + SYNC_BYTES
    sync = payload[len(header.raw) : position]
    if len(sync) < SYNC_BYTES:
        raise DecodeError("Avro container: cut short in its header")
    block = 0
    while position < len(payload):
        block += 1
        number, position = read_long(payload, position)
        size, position = read_long(payload, position)
        end = position + size
        if number < 0 or size < 0 or end + SYNC_BYTES > len(payload):
            raise DecodeError(f"Avro container: block {block} is cut short")
        if not payload.startswith(sync, end):
            raise DecodeError(f"Avro container: block {block} does not end with the sync marker")
        yield Span(number, position, end)
        position = end + SYNC_BYTES


def read_blocks(
    payload: bytes, header: Header, spans: Iterable[Span] | None = None, most: int = MAX_BLOCK_BYTES
) -> Iterator[Block]:
    """The blocks of a container that begins with ``header``, one after another; of ``spans`` where they are known.

    Raises DecodeError where one is cut short or damaged, and where they inflate to more than ``most`` bytes together:
    before the memory for them is taken.
    """
    left = most
    for number, start, end in block_spans(payload, header) if spans is None else spans:
        if header.codec == b"null":
            block = Block(number, payload, start, end)
        else:
            data = _CODECS[header.codec](payload[start:end], max(left, 0))
            block = Block(number, data, 0, len(data))
        left -= block.end - block.start
        if left < 0:
            raise TooLargeError(f"Avro container: its blocks have more than {most} bytes together")
        yield block


class TooLargeError(DecodeError):
    """What a container holds, or says that it holds, is more than is read."""


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """One Avro long (zigzag, variable length) and the position after it; raises DecodeError at the end of data."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise DecodeError("Avro container: cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return (value >> 1) ^ -(value & 1), position
        shift += 7
    raise DecodeError("Avro container: a number of more than 64 bits")


def write_long(value: int) -> bytes:
    """A number in Avro's zigzag variable-length code."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def container_message(schema_json: bytes, record: bytes) -> bytes:
    """A container, not compressed, of one record."""
    return _with_header(*_header_and_sync(schema_json), record)


def _header_and_sync(schema_json: bytes) -> tuple[bytes, bytes]:
    """What stands before the blocks of a container that is not compressed, and the marker, with which it ends."""
    metadata = {"avro.schema": schema_json, "avro.codec": b"null"}
    sync = zlib.crc32(schema_json).to_bytes(4, "big") * 4
    out = [CONTAINER_MAGIC, write_long(len(metadata))]
    for name, value in metadata.items():
        out += [write_long(len(name)), name.encode(), write_long(len(value)), value]
    return b"".join([*out, write_long(0), sync]), sync


def _with_header(header: bytes, sync: bytes, record: bytes) -> bytes:
    return b"".join([header, write_long(1), write_long(len(record)), record, sync])


class ContainerWriter:
    """Makes one container of each record. Its schema is sent with every message, and is made ready once."""

    def __init__(self, schema_text: str) -> None:
        """``schema_text`` is the schema in JSON; the documentation in it, which would double its size, is not sent."""
        schema = json.loads(schema_text)
        self._schema = fastavro.parse_schema(schema)
        self._start = _header_and_sync(json.dumps(_without_docs(schema)).encode())

    def __call__(self, record: dict[str, Any]) -> bytes:
        """The message for one record."""
        body = io.BytesIO()
        fastavro.schemaless_writer(body, self._schema, record)
        return _with_header(*self._start, body.getvalue())


def _without_docs(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_docs(value) for name, value in schema.items() if name != "doc"}
    return [_without_docs(item) for item in schema] if isinstance(schema, list) else schema


def _read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    size, position = read_long(data, position)
    if size < 0 or position + size > len(data):
        raise DecodeError("Avro container: cut short in its header")
    return data[position : position + size], position + size


def _inflate(data: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj(-15)
    try:
        # One byte more than allowed tells what is too large from what is cut short; 0 would stand for any number.
        inflated = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise DecodeError(f"Avro container: {error}") from error
    if not inflater.eof and len(inflated) <= most:
        raise DecodeError("Avro container: a deflated block is cut short")
    return inflated


def _unsnap(data: bytes, most: int) -> bytes:
    """Snappy without its frames, and then the CRC-32 of the uncompressed bytes, big-endian."""
    body, checksum = data[:-4], data[-4:]
    size = shift = 0
    for byte in body[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    if size > _SNAPPY_RATIO * len(body):
        raise DecodeError(f"Avro container: a snappy block of {len(body)} bytes cannot hold {size}")
    if size > most:
        raise TooLargeError(f"Avro container: a snappy block of {size} bytes where {most} are left")
    try:
        plain: bytes = pa.decompress(body, size, codec="snappy", asbytes=True)
    except (OSError, ValueError) as error:
        raise DecodeError(f"Avro container: a damaged snappy block: {error}") from error
    if zlib.crc32(plain).to_bytes(4, "big") != checksum:
        raise DecodeError("Avro container: a snappy block's checksum is wrong")
    return plain


def _unzstandard(data: bytes, most: int) -> bytes:
    try:
        plain: bytes = pa.CompressedInputStream(io.BytesIO(data), "zstd").read(most + 1)
    except (OSError, ValueError) as error:
        raise DecodeError(f"Avro container: a damaged zstandard block: {error}") from error
    return plain


_CODECS: Final[dict[bytes, Callable[[bytes, int], bytes]]] = {
    b"deflate": _inflate,
    b"snappy": _unsnap,
    b"zstandard": _unzstandard,
}
"""Each gives the bytes of a block; where there are more than allowed, more than that, or TooLargeError."""
