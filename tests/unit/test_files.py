from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from broker.errors import InputFileError
from broker.files import Stream, inflated
from broker.surveys.splitting import MAX_PACKET_BYTES

DATA = np.random.default_rng(0).bytes(100_000) + b"a" * 3_000_000


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstandard": zstd,
}  # fmt: skip


def read(packed: bytes, step: int = 10_240) -> tuple[bytes, str]:
    """What can be read, and the error at its end."""
    out: list[bytes] = []
    try:
        stream = inflated(Stream(io.BytesIO(packed)))
        while data := stream.read(step):
            assert len(data) <= step
            out.append(data)
    except InputFileError as error:
        return b"".join(out), str(error)
    return b"".join(out), ""


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_are_inflated_one_after_the_other(kind: str) -> None:
    packed = PACKERS[kind](DATA)
    assert read(packed) == (DATA, "")
    assert read(packed + PACKERS[kind](b"more")) == (DATA + b"more", "")
    if kind != "zstandard":
        assert read(packed + bytes(1000)) == (DATA, ""), "padding"


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("cut", [1, 100, 50_000])
def test_what_comes_before_a_cut_is_read(kind: str, cut: int) -> None:
    packed = PACKERS[kind](DATA)
    found, error = read(packed[:-cut])
    assert error == f"cut short: its {kind} data end early"
    assert DATA.startswith(found)
    if kind in ("gzip", "xz"):
        assert len(found) > 100_000 - cut


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_damage_is_noticed(kind: str) -> None:
    packed = bytearray(PACKERS[kind](DATA))
    packed[40_000] ^= 0xFF
    assert read(bytes(packed))[1].startswith(f"its {kind} data are damaged")


def test_what_is_not_compressed_is_read_as_it_is() -> None:
    assert read(DATA) == (DATA, "")
    assert read(b"") == (b"", "")


@pytest.mark.parametrize("outer", PACKERS)
@pytest.mark.parametrize("inner", PACKERS)
def test_a_file_compressed_twice_is_refused(outer: str, inner: str) -> None:
    assert read(PACKERS[outer](PACKERS[inner](b"\0" * 1000)))[1] == "compressed twice: inflate it once"


def test_xz_may_not_ask_for_any_memory_it_likes() -> None:
    packed = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    # To ask for a gibibyte in earnest takes ten to write: the size is one byte of the block's header.
    block = bytearray(packed[12:24])
    block[4] = 36  # 2^30, xz-file-format.txt, 5.3.1
    block[8:] = zlib.crc32(block[:8]).to_bytes(4, "little")
    assert read(packed[:12] + block + packed[24:]) == (b"", "its xz data are damaged: Memory usage limit exceeded")


@pytest.mark.parametrize("kind", ["gzip", "zstandard", "xz"])
def test_a_bomb_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """Half a gigabyte of zeros, which begin as a message in Confluent's wire format does."""
    zeros = bytes(1_000_000)
    path = tmp_path / "bomb.avro"
    if kind == "zstandard":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            for _ in range(500):
                out.write(zeros)
    else:
        with gzip.open(path, "wb", 1) if kind == "gzip" else lzma.open(path, "wb", preset=0) as out:
            for _ in range(500):
                out.write(zeros)
    code = """
import resource, sys
from pathlib import Path
from broker.sources import iter_packets
def peak():  # ru_maxrss would be that of the process that forked this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
assert list(iter_packets([Path(sys.argv[1])], print)) == []
print((peak() - before) // 1000)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    said, megabytes = done.stdout.splitlines()
    assert said == f"{path}: has more than {MAX_PACKET_BYTES} bytes, so it is no alert packet"
    assert int(megabytes) < 250
