"""Containers of many alerts as so many messages, block by block, whatever the size of the file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from broker.avro.compiler import Program, compile_schema
from broker.avro.container import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    SYNC_BYTES,
    Header,
    container_message,
    read_blocks,
    read_header,
    read_long,
)
from broker.avro.layout import NOTHING
from broker.avro.reader import Message, run
from broker.avro.schema import WriterSchema
from broker.errors import DecodeError, InputFileError
from broker.files import Stream
from broker.surveys.decoder import container_schema

MAX_PACKET_BYTES: Final = MAX_BLOCK_BYTES
"""Largest message that a file may hold; ZTF's and LSST's alerts have about 100 kB, and Kafka's default is 1 MB."""
_FIRST_LOOK: Final = 65536
_TWO_LONGS: Final = 20
"""Bytes that two Avro longs take at most."""


def read_packet(stream: Stream) -> bytes:
    """All that is left of a stream; raises InputFileError for more than MAX_PACKET_BYTES."""
    payload = stream.take(MAX_PACKET_BYTES + 1)
    if len(payload) > MAX_PACKET_BYTES:
        raise InputFileError(f"has more than {MAX_PACKET_BYTES} bytes, so it is no alert packet")
    return payload


def split_container(stream: Stream) -> Iterator[tuple[int | None, bytes | DecodeError]]:
    """The records of a container by number, each as a container of its own; one of one record as it is, not numbered.

    Whether the records are any survey's is not asked. A block that cannot be read gives
    a DecodeError; those after it are read where its length is right. A small container that cannot be read from its
    beginning on is given as it is, for the decoder to refuse. Raises InputFileError where nothing more can be read.
    """
    try:
        header = _header(stream)
        program = _program(header.schema_json)
    except DecodeError:
        yield None, read_packet(stream)
        return
    start = stream.take(len(header.raw) + SYNC_BYTES)
    number = records = 0
    while stream.peek(1):
        number += 1
        raw, problem = _block(stream, start[-SYNC_BYTES:])
        if problem is not None:
            if number > 1:
                raise InputFileError(f"block {number} of the container {problem}; {records} records come before it")
            yield None, start + raw + read_packet(stream)
            return
        alone = number == 1 and not stream.peek(1)
        if alone and read_long(raw, 0)[0] == 1:  # as archives of packets have them; the decoder sees what is in it
            yield None, start + raw
            return
        try:
            parts = _split(start + raw, header, program)
        except DecodeError as error:
            if alone:
                yield None, start + raw
                return
            yield None, DecodeError(f"block {number} of the container cannot be read: {error}")
            continue
        for part in parts:
            yield records, container_message(header.schema_json, part)
            records += 1


@lru_cache(maxsize=8)
def _program(schema_json: bytes) -> Program:
    """What finds the ends of records by a schema; of an archive of thousands of packets it is made once.

    Raises DecodeError where the schema cannot be read.
    """
    return compile_schema(WriterSchema.parse(container_schema(schema_json)), NOTHING)


def _header(stream: Stream) -> Header:
    size = _FIRST_LOOK
    while True:
        head = stream.peek(size)
        try:
            return read_header(head)
        except DecodeError:
            if len(head) < size or size > MAX_HEADER_BYTES:
                raise
        size *= 4


def _block(stream: Stream, sync: bytes) -> tuple[bytes, str | None]:
    """The next block with its count, size and sync marker, and what is wrong with these."""
    head = stream.peek(_TWO_LONGS)
    try:
        _, position = read_long(head, 0)
        size, position = read_long(head, position)
    except DecodeError:
        return b"", "is cut short"
    if not 0 <= size <= MAX_BLOCK_BYTES:
        return b"", f"has {size} bytes, and {MAX_BLOCK_BYTES} are the most"
    size += position + SYNC_BYTES
    raw = stream.take(size)
    if len(raw) < size:
        return raw, "is cut short"
    return raw, None if raw.endswith(sync) else "does not end with the sync marker"


def _split(payload: bytes, header: Header, program: Program) -> list[bytes]:
    """The records in the one block of a container; raises DecodeError for a damaged one."""
    (block,) = read_blocks(payload, header)
    done = run([program], NOTHING, [Message(0, [block])])
    if done.errors:
        raise done.errors[0]
    ends = done.records.ends.tolist()
    return [block.data[start:end] for start, end in zip([block.start, *ends], ends, strict=False)]
