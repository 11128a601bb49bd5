from __future__ import annotations

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import fastavro
import numpy as np
import pytest

from broker import sources
from broker.avro.container import write_long
from broker.errors import DecodeError, InputFileError
from broker.sources import Packet, Remark, in_batches, iter_packets
from broker.surveys import Decoder
from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts
from broker.surveys.splitting import MAX_PACKET_BYTES

CASES = Path(__file__).parents[1] / "data" / "cases" / "09-ztf-archive"
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


def container(records: list[dict[str, object]], **options: object) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(_schema()), records, **options)
    return out.getvalue()


def read(path: Path) -> tuple[list[Packet], list[str]]:
    """The packets of a path, and what is said of the rest; exit code 1 is due for each."""
    remarks: list[Remark] = []
    packets = list(iter_packets([path], remarks.append))
    assert all(remark.lost for remark in remarks)
    return packets, [str(remark).removeprefix(f"{path.parent}/") for remark in remarks]


def candids(packets: list[Packet]) -> list[int]:
    return [next(fastavro.reader(io.BytesIO(p.payload)))["candid"] for p in packets]  # type: ignore[misc,index]


def test_a_damaged_block_of_a_container_loses_its_own_records_only(tmp_path: Path) -> None:
    records = [next(fastavro.reader(io.BytesIO(payload))) for payload in ALERTS]
    whole = container(records, sync_interval=1)  # type: ignore[arg-type]
    sync = whole[-16:]
    blocks = whole.split(sync)
    blocks[3] = blocks[3][:-100] + b"\xff" * 100
    (tmp_path / "all.avro").write_bytes(sync.join(blocks))
    packets, remarks = read(tmp_path / "all.avro")
    wanted = [r["candid"] for r in records]  # type: ignore[index,call-overload]
    assert candids(packets) == wanted[:2] + wanted[3:]
    assert len(remarks) == 1
    assert remarks[0].startswith("all.avro: block 3 of the container cannot be read: damaged Avro record")


def test_a_container_that_is_cut_off_gives_the_records_before_the_cut(tmp_path: Path) -> None:
    records = [next(fastavro.reader(io.BytesIO(payload))) for payload in ALERTS]
    whole = container(records, sync_interval=1)  # type: ignore[arg-type]
    (tmp_path / "all.avro").write_bytes(whole[: len(whole) - 20])
    packets, remarks = read(tmp_path / "all.avro")
    assert candids(packets) == [r["candid"] for r in records[:-1]]  # type: ignore[index,call-overload]
    count = len(records)
    assert remarks == [f"all.avro: block {count} of the container is cut short; {count - 1} records come before it"]


def test_a_packet_of_one_record_that_is_damaged_is_passed_on_as_it_is(tmp_path: Path) -> None:
    for payload in (ALERTS[0][:-30], ALERTS[0][:-1000] + b"\xff" * 1000, ALERTS[0][:40]):
        (tmp_path / "one.avro").write_bytes(payload)
        packets, remarks = read(tmp_path / "one.avro")
        assert [p.payload for p in packets] == [payload]
        assert remarks == []
        assert isinstance(Decoder().decode_batch([payload])[0], DecodeError)


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


def test_without_a_report_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(InputFileError, match=r"broken\.tar: no tar archive: it begins with b'no a'"):
        list(iter_packets([tmp_path / "broken.tar"]))


def tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "packets", "said"),
    [
        ("ztf_public_20190102.tar.gz", 3, []),
        ("ztf_public_20190103.tar.gz", 0, ["/55931624000000000.avro: cut short: its gzip data end early"]),
        (
            "ztf_public_20190104.tar.gz", 0,
            [": no tar archive: it is HTML or XML, as a server's error or log-in page is"],
        ),
        ("ztf_public_20190105.tar.gz", 2, ["/empty.avro: it is empty"]),
        ("one.avro.gz", 1, []),
    ],
)  # fmt: skip
def test_nights_as_they_are_downloaded(name: str, packets: int, said: list[str]) -> None:
    found, remarks = read(CASES / name)
    assert remarks == [name + text for text in said]
    assert len(found) == packets
    for payload in (p.payload for p in found):
        assert len(Decoder().decode(payload)) == 1


def test_a_night_without_alerts_is_said_and_is_no_failure() -> None:
    remarks: list[Remark] = []
    path = CASES / "ztf_public_20190101.tar.gz"
    assert list(iter_packets([path], remarks.append)) == []
    assert remarks == [Remark(str(path), "no alert packets: the archive is empty", lost=False)]


def test_bad_files_between_good_ones_drop_nothing() -> None:
    remarks: list[Remark] = []
    nights = [CASES / f"ztf_public_2019010{number}.tar.gz" for number in (2, 3, 4, 5)]
    packets = list(iter_packets([*nights, CASES / "missing.avro", nights[0]], remarks.append))
    assert len(packets) == 8
    assert [r.text for r in remarks if r.lost][-1] == "No such file or directory"
    assert len([r for r in remarks if r.lost]) == 4


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_cut_off_archive_gives_every_member_before_the_cut(tmp_path: Path, mode: str, kept: float) -> None:
    members = {f"{n}.avro": b"\0" + np.random.default_rng(n).bytes(30_000 + n) for n in range(60)}
    whole = tar(tmp_path / "night.tar", members, mode).read_bytes()
    (tmp_path / "night.tar").write_bytes(whole[: int(kept * len(whole))])
    packets, remarks = read(tmp_path / "night.tar")
    # What bzip2 has is lost by the block, of 900 kB; of the others less than one more member.
    assert len(packets) >= kept * 60 - (31 if mode == "w:bz2" else 4)
    assert [p.payload for p in packets] == list(members.values())[: len(packets)]
    assert len(remarks) == 1
    assert "cut short" in remarks[0]
    assert remarks[0].startswith("night.tar")


def test_a_plain_archive_that_is_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    whole = tar(tmp_path / "night.tar", {"a.avro": ALERTS[0], "b.avro": ALERTS[1]}, "w").read_bytes()
    end_of_first = 512 + -(-len(ALERTS[0]) // 512) * 512
    (tmp_path / "night.tar").write_bytes(whole[:end_of_first])
    packets, remarks = read(tmp_path / "night.tar")
    assert [p.payload for p in packets] == [ALERTS[0]]
    assert remarks == ["night.tar: cut short: the archive ends without its end mark"]


def test_a_damaged_header_is_not_the_end_of_an_archive(tmp_path: Path) -> None:
    path = tar(tmp_path / "night.tar", {"a.avro": ALERTS[0], "b.avro": ALERTS[1]}, "w")
    damaged = bytearray(path.read_bytes())
    damaged[512 + -(-len(ALERTS[0]) // 512) * 512 + 3] ^= 0xFF
    path.write_bytes(damaged)
    packets, remarks = read(path)
    assert [p.payload for p in packets] == [ALERTS[0]]
    assert remarks == ["night.tar: damaged: bad checksum"]


def test_what_is_in_an_archive_beside_packets(tmp_path: Path) -> None:
    inner = tar(tmp_path / "inner.tar", {"x.avro": ALERTS[2]}).read_bytes()
    path = tmp_path / "night.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {
            "a.avro": ALERTS[0], "._a.avro": b"\0\x05\x16\x07", "notes.txt": b"hi", "inner.tar.gz": inner,
            "b.avro.gz": gzip.compress(ALERTS[1]), "twice.avro.gz": gzip.compress(gzip.compress(ALERTS[1])),
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("c.avro")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    packets, remarks = read(path)
    assert [p.payload for p in packets] == ALERTS[:2]
    assert remarks == [
        "night.tar.gz/inner.tar.gz: an archive in an archive: unpack it first",
        "night.tar.gz/twice.avro.gz: compressed twice: inflate it once",
        "night.tar.gz/c.avro: a link or device in an archive, not a file",
    ]


def test_an_archive_without_any_packet_is_a_failure(tmp_path: Path) -> None:
    packets, remarks = read(tar(tmp_path / "a.tar", {"a.txt": b"1", "b.fits": b"2"}))
    assert packets == []
    assert remarks == ["a.tar: no alert packets: none of its 2 files is named .avro or .parquet"]


class Padded(io.RawIOBase):
    """Some bytes and then zeros without end, which are on no disk."""

    def __init__(self, start: bytes) -> None:
        self._start = start

    def read(self, size: int = -1, /) -> bytes:
        data, self._start = self._start[:size], self._start[size:]
        return data.ljust(size, b"\0")


@pytest.mark.parametrize("kind", ["wire", "container", "name"])
def test_a_huge_member_takes_little_memory_and_the_next_is_read(tmp_path: Path, kind: str) -> None:
    size = 800_000_000
    start = {"wire": b"\0", "container": ALERTS[0] + write_long(1) + write_long(700_000_000), "name": b""}[kind]
    with tarfile.open(tmp_path / "night.tar.gz", "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("big.avro")
        member.size = size
        if kind == "name":
            member.type = tarfile.XHDTYPE
        archive.addfile(member, Padded(start))
        member = tarfile.TarInfo("good.avro")
        member.size = len(ALERTS[1])
        archive.addfile(member, io.BytesIO(ALERTS[1]))
    code = """
import resource, sys
from pathlib import Path
from broker.sources import Packet, Remark, iter_packets
def peak():  # ru_maxrss would be that of the process that forked this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
packets = [p.name for p in iter_packets([Path(sys.argv[1])], print)]
print(packets, (peak() - before) // 1000)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "night.tar.gz")], check=True, capture_output=True, text=True
    )
    said, last = done.stdout.splitlines()
    packets, _, megabytes = last.rpartition(" ")
    reasons = {
        "wire": f"big.avro: has more than {MAX_PACKET_BYTES} bytes",
        "container": f"big.avro: block 2 of the container has 700000000 bytes, and {MAX_PACKET_BYTES} are the most",
        "name": "damaged: a name or attribute of 800000000 bytes",
    }
    assert reasons[kind] in said
    if kind != "name":
        assert "night.tar.gz/good.avro" in packets
    assert int(megabytes) < 300


def special(kind: str, path: Path) -> str:
    """Make something that is no file, and say how it is named."""
    if kind == "fifo":
        os.mkfifo(path)
        return "a FIFO (named pipe), not a file"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        return "a socket, not a file"
    if kind == "device":
        path.symlink_to("/dev/zero")
        return "a device, not a file"
    path.symlink_to(path)
    return "Too many levels of symbolic links"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop"])
def test_what_is_no_file_is_refused_by_itself_and_in_a_folder(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    said = special(kind, Path("b.avro"))
    (tmp_path / "a.avro").write_bytes(ALERTS[0])
    (tmp_path / "c.avro").write_bytes(ALERTS[1])
    for path, packets in ((Path("b.avro"), []), (Path(), ALERTS[:2])):
        found, remarks = read(path)
        assert [p.payload for p in found] == packets
        assert remarks == [f"b.avro: {said}"]


def test_a_link_to_its_own_folder_is_not_followed_for_ever(tmp_path: Path) -> None:
    inner = tmp_path / "night" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.avro").write_bytes(ALERTS[0])
    (inner / "loop").symlink_to(tmp_path / "night")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.avro").write_bytes(ALERTS[1])
    (tmp_path / "night" / "z").symlink_to(tmp_path / "elsewhere")
    packets, remarks = read(tmp_path / "night")
    assert [p.name for p in packets] == ["inner/a.avro", "z/b.avro"]
    assert remarks == ["inner/loop: a link to a folder that was read already: not followed"]


def test_a_folder_or_file_without_the_right_to_read_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom no mode stops: the refusal itself is simulated."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "b.avro").write_bytes(ALERTS[0])
    (tmp_path / "z.avro").write_bytes(ALERTS[1])
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    packets, remarks = read(tmp_path)
    assert [p.payload for p in packets] == [ALERTS[1]]
    assert remarks == ["secret: Permission denied"]


def test_a_folder_without_packets_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "notes.txt").write_text("none")
    packets, remarks = read(tmp_path / "night")
    assert packets == []
    assert remarks == ["night: no alert packets: no file in it is named .avro, .parquet or .tar"]


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    code = "from broker.sources import *; print([p.name for p in iter_packets([Path('-')])])"
    archive = (CASES / "ztf_public_20190102.tar.gz").read_bytes()
    done = subprocess.run([sys.executable, "-c", code], input=archive, check=True, capture_output=True)
    assert done.stdout.decode().strip() == str([f"-/{n}000000000.avro" for n in (55931624, 57943130, 57955265)])


def test_a_batch_has_so_many_packets_or_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 10)
    sizes = [1, 1, 1, 6, 5, 20, 3, 3, 3, 3]
    batches = list(in_batches([Packet("", bytes(size)) for size in sizes], 3))
    assert [[len(p.payload) for p in batch] for batch in batches] == [[1, 1, 1], [6], [5], [20], [3, 3, 3], [3]]
