from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fastavro
import pytest

from broker.errors import DecodeError, InputFileError
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts

ALERTS = [a.payload for a in simulate_alerts(4, 12, seed=0)]


def test_archives_and_folders_give_packets_byte_for_byte(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "night.tar.gz", "w:gz") as archive:
        for number, payload in enumerate(ALERTS):
            member = tarfile.TarInfo(f"{number:04d}.avro")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    (tmp_path / "one.avro").write_bytes(ALERTS[0])
    (tmp_path / "notes.txt").write_text("no packet")
    packets = list(iter_packets([tmp_path]))
    assert [p.payload for p in packets] == [*ALERTS, ALERTS[0]]
    assert packets[0].name == "night.tar.gz/0000.avro"


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_a_container_of_many_becomes_many_of_one(tmp_path: Path, codec: str) -> None:
    records = [next(fastavro.reader(io.BytesIO(payload))) for payload in ALERTS]
    with (tmp_path / "all.avro").open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(_schema()), records, codec=codec)
    packets = list(iter_packets([tmp_path / "all.avro"]))
    assert [next(fastavro.reader(io.BytesIO(p.payload))) for p in packets] == records
    assert len(Decoder().decode((tmp_path / "all.avro").read_bytes())) == len(ALERTS)


def test_a_damaged_container_of_many_is_passed_on_whole(tmp_path: Path) -> None:
    out = io.BytesIO()
    records = [next(fastavro.reader(io.BytesIO(payload))) for payload in ALERTS]
    fastavro.writer(out, fastavro.parse_schema(_schema()), records)
    damaged = bytearray(out.getvalue())
    damaged[-1000] ^= 0xFF
    damaged[len(damaged) // 2 : len(damaged) // 2 + 200] = b"\xff" * 200
    (tmp_path / "all.avro").write_bytes(damaged)
    assert [p.payload for p in iter_packets([tmp_path / "all.avro"])] == [bytes(damaged)]
    assert isinstance(Decoder().decode_batch([bytes(damaged)])[0], DecodeError)


def test_a_container_of_something_else_is_split_all_the_same(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "x", "fields": [{"name": "a", "type": ["null", "string"]}]}
    records = [{"a": None}, {"a": "b" * 500}, {"a": ""}]
    with (tmp_path / "x.avro").open("wb") as file:
        fastavro.writer(file, schema, records, sync_interval=100)
    found = [next(fastavro.reader(io.BytesIO(p.payload))) for p in iter_packets([tmp_path / "x.avro"])]
    assert found == records


def _schema() -> dict[str, object]:
    schema: dict[str, object] = json.loads(SCHEMA_JSON)
    return schema


def test_what_is_no_packet_is_passed_on_for_the_decoder_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "odd.avro").write_bytes(b"Obj\x01 and then nothing")
    assert [p.payload for p in iter_packets([tmp_path])] == [b"Obj\x01 and then nothing"]


def test_a_broken_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(InputFileError, match=r"broken\.tar"):
        list(iter_packets([tmp_path / "broken.tar"]))
