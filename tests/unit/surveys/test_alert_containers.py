"""Avro containers of alerts: compressed, damaged, of many alerts, and never more than the bounds allow."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from broker.avro.container import read_blocks, read_header, write_long
from broker.errors import DecodeError
from broker.records import (
    ObservedSpectrum,
    Spectrum,
)
from broker.surveys import Decoder
from broker.surveys import decoder as decoder_module
from tests.unit.surveys.test_decoder import PAYLOAD, RECORD, SCHEMA, alerts_of, assert_equal, container


def recoded(codec: str, compress: Callable[[bytes], bytes], size: int | None = None) -> bytes:
    """The packet in a container of another codec."""
    header = read_header(PAYLOAD)
    (block,) = read_blocks(PAYLOAD, header)
    body = compress(block.data[block.start : block.end])
    metadata = {b"avro.schema": header.schema_json, b"avro.codec": codec.encode()}
    out = [b"Obj\x01", write_long(len(metadata))]
    for name, value in metadata.items():
        out += [write_long(len(name)), name, write_long(len(value)), value]
    sync = b"s" * 16
    return b"".join([*out, write_long(0), sync, write_long(1), write_long(len(body)), body, sync])


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def snappy(data: bytes) -> bytes:
    return pa.compress(data, "snappy", asbytes=True) + zlib.crc32(data).to_bytes(4, "big")  # type: ignore[no-any-return]


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)  # type: ignore[no-any-return]


CODECS = {"deflate": deflate, "snappy": snappy, "zstandard": zstandard}


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_containers(codec: str) -> None:
    decoder = Decoder()
    assert_equal(alerts_of(decoder.decode(recoded(codec, CODECS[codec]))), alerts_of(decoder.decode(PAYLOAD)))


@pytest.mark.parametrize(
    ("codec", "compress", "reason"),
    [
        ("deflate", lambda data: deflate(data)[:-9], "cut short"),
        ("deflate", lambda data: b"\xff" * 30, "invalid"),
        ("snappy", lambda data: snappy(data)[:-1] + b"?", "checksum"),
        ("snappy", lambda data: snappy(data)[:-30], "damaged snappy|checksum"),
        ("snappy", lambda data: b"\xff\xff\xff\xff\x0f" + data, "cannot hold"),
        ("snappy", lambda data: b"", "checksum|damaged"),
        ("zstandard", lambda data: zstandard(data)[:-9], "zstandard|Avro"),
        ("zstandard", lambda data: data, "damaged zstandard"),
        ("lzma2000", lambda data: data, "codec 'lzma2000' is not one of null, deflate, snappy, zstandard"),
    ],
)
def test_damaged_blocks(codec: str, compress: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        Decoder().decode(recoded(codec, compress))


@pytest.mark.parametrize("codec", CODECS)
def test_a_block_that_inflates_without_end_is_refused(codec: str) -> None:
    with pytest.raises(DecodeError, match=r"more than 1000000 bytes once inflated \(pipeline.max_message_mib\)"):
        Decoder(max_bytes=1_000_000).decode(recoded(codec, lambda _: CODECS[codec](bytes(5_000_000))))


def blocks_of(codec: str, *blocks: tuple[int, bytes]) -> bytes:
    """A container of the packet's schema with blocks of any numbers and bytes."""
    header = read_header(recoded(codec, CODECS[codec] if codec != "null" else bytes))
    sync = b"s" * 16
    out = [header.raw, sync]
    for number, body in blocks:
        out += [write_long(number), write_long(len(body)), body, sync]
    return b"".join(out)


@pytest.mark.parametrize("codec", ["null", *CODECS])
def test_the_bound_is_that_of_all_blocks_and_is_checked_before_memory_is_taken(codec: str) -> None:
    """Each block is within the bound; of 60 that hold 16 MB each, no more is inflated than the bound allows."""
    body = bytes(16_000_000)
    message = blocks_of(
        codec, *[(1, CODECS[codec](body) if codec != "null" else body)] * (60 if codec != "null" else 2)
    )
    decoder = Decoder(max_bytes=20_000_000)
    tracemalloc.start()
    try:
        (result,) = decoder.decode_batch([message])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(result) == "the message has more than 20000000 bytes once inflated (pipeline.max_message_mib)"
    assert peak < 45_000_000


def test_as_many_alerts_as_the_bound_allows_and_not_one_more() -> None:
    decoder = Decoder(max_alerts=3)
    assert len(decoder.decode(container(SCHEMA, [RECORD] * 3))) == 3
    with pytest.raises(DecodeError, match=r"has 4 records; pipeline.max_message_alerts allows 3"):
        decoder.decode(container(SCHEMA, [RECORD] * 4))
    header, sync = read_header(PAYLOAD).raw, PAYLOAD[len(read_header(PAYLOAD).raw) :][:16]
    (block,) = read_blocks(PAYLOAD, read_header(PAYLOAD))
    record = block.data[block.start : block.end]
    one = [write_long(1), write_long(len(record)), record, sync]
    assert len(decoder.decode(b"".join([header, sync, *one * 3]))) == 3
    with pytest.raises(DecodeError, match="has 4 records"):
        decoder.decode(b"".join([header, sync, *one * 4]))
    # A number that is not true gets no further: there are the bytes of six records.
    with pytest.raises(DecodeError, match="damaged Avro record"):
        decoder.decode(b"".join([header, sync, write_long(1), write_long(6 * len(record)), record * 6, sync]))


def test_the_next_messages_are_those_of_a_batch() -> None:
    """As many messages as hold ``most`` alerts together, and one that holds more by itself."""
    decoder = Decoder()
    messages = [container(SCHEMA, [RECORD] * count) for count in (2, 2, 1, 7, 1, 0, 2)] + [b"nonsense"]
    taken, first = [], 0
    while first < len(messages):
        results = decoder.decode_next(messages[first:], most=4)
        taken.append([len(r) if isinstance(r, list) else -1 for r in results])
        first += len(results)
    assert taken == [[2, 2], [1], [7], [1, 0, 2, -1]]


def test_the_next_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = read_blocks(PAYLOAD, read_header(PAYLOAD))
    monkeypatch.setattr(decoder_module, "_MAX_RUN_BYTES", 3 * (block.end - block.start))
    results = Decoder().decode_next([PAYLOAD] * 20)
    assert len(results) == 4
    for result in results:
        assert_equal(alerts_of(result), Decoder().decode(PAYLOAD))


def test_spectra_are_given_to_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "record", "name": "spectrum", "namespace": "trifid", "fields": [{"name": "x", "type": "int"}]}
    message = container(schema, [{"x": 1}])
    empty = np.empty(0, np.float64)
    spectrum = ObservedSpectrum("s1", 1.0, 2.0, float("nan"), Spectrum(empty, np.float32(empty), np.float32(empty)))

    def read(payload: bytes) -> list[ObservedSpectrum]:
        if payload != message:
            raise DecodeError("no spectrum")
        return [spectrum]

    monkeypatch.setattr("broker.spectra.message.read", read)
    alert, found, refused = Decoder().decode_batch([PAYLOAD, message, container(schema, [{"x": 2}])])
    assert len(alerts_of(alert)) == 1
    assert found == [spectrum]
    assert str(refused) == "no spectrum"


def test_a_container_of_many_and_one_of_none() -> None:
    many, none = container(SCHEMA, [RECORD, {**RECORD, "objectId": "ZTF18other"}]), container(SCHEMA, [])
    decoder = Decoder()
    results = decoder.decode_batch([many, none, PAYLOAD])
    assert [[alert.object_id for alert in alerts_of(result)] for result in results] == [
        [RECORD["objectId"], "ZTF18other"], [], [RECORD["objectId"]],
    ]  # fmt: skip
    assert decoder.decode_batch([]) == []
    bad = container(SCHEMA, [RECORD, {**RECORD, "objectId": ""}])
    found = decoder.decode(bad)
    assert [alert.object_id for alert in alerts_of(found)] == [RECORD["objectId"]]
    assert [str(error) for error in found.refused] == ["the packet has an empty objectId"]
    with pytest.raises(DecodeError, match="empty objectId"):
        decoder.decode(container(SCHEMA, [{**RECORD, "objectId": ""}]))


def test_batches_of_more_bytes_than_one_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "_MAX_RUN_BYTES", 3 * len(PAYLOAD))
    results = Decoder().decode_batch([PAYLOAD] * 20)
    for result in results:
        assert_equal(alerts_of(result), alerts_of(results[0]))


# The bar: bytes that were meant to be packets.
