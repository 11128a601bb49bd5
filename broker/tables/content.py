"""The content of files that users name: what may be opened, what it is compressed with, and what is no table.

Every reader opens its file here and hands the open file on: libraries take names that look like URLs, home folders
or patterns for what they look like, and fetch or expand them. Compression (gzip, bzip2, xz, zstandard) is told by the
first bytes and taken off.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from broker.errors import InputFileError
from broker.files import Stream, compression, inflated_once, require_file

HEAD_BYTES: Final = 4000
"""By which the format of a table is told."""
MAX_UNPACKED: Final = 1 << 36
"""Bytes of a file after decompression that is not read forward (FITS, Parquet), and so put on the disk."""
_PIECE: Final = 1 << 20
_FOREIGN: Final = (
    (b"PK\x03\x04", "a zip archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x9d", "compressed with compress"),
)  # fmt: skip


@contextmanager
def open_content(path: Path) -> Iterator[tuple[IO[bytes], Stream]]:
    """A regular file as it is, whose position tells how far it is read, and its content without compression.

    Raises InputFileError where it is no regular file. Reading raises it, without the file's name, where the compressed
    data are damaged or end early.
    """
    require_file(path)
    with path.open("rb", buffering=0) as raw:
        yield cast(IO[bytes], raw), inflated_once(Stream(raw))


def head_of(path: Path) -> bytes:
    """The first HEAD_BYTES of a file's content; raises InputFileError where no reader is for what it holds."""
    with open_content(path) as (raw, content):
        head = content.peek(HEAD_BYTES)
        raw.seek(0)
        packed = compression(raw.read(6))
    if (reason := _foreign(head, packed)) is not None:
        raise InputFileError(reason)
    return head


def _foreign(head: bytes, packed: str | None) -> str | None:
    """What a content is that no reader is for, by its first bytes; ``packed`` is what the file is compressed with."""
    if packed is not None and (again := compression(head)) is not None:
        how = f"{packed} twice" if again == packed else f"{packed} and, in it, with {again}"
        return f"compressed with {how}: unpack it first"
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return f"{name}: unpack it first"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of an error where a download was meant"
    return None


def read_content(path: Path, limit: int) -> bytes:
    """All of a file's content; raises InputFileError where it has more than ``limit`` bytes."""
    with open_content(path) as (_, content):
        data = content.take(limit + 1)
    if len(data) > limit:
        raise InputFileError(f"more than {limit:,} bytes when decompressed, the most that are read of such a file")
    return data


@contextmanager
def seekable(path: Path, limit: int = MAX_UNPACKED) -> Iterator[IO[bytes]]:
    """The content of a file, open for reading in any order: in a temporary file while it is open, where compressed.

    Raises InputFileError where the content has more than ``limit`` bytes or more than half of the free disk.
    """
    require_file(path)
    with path.open("rb") as file:
        if compression(file.peek(6)) is None:
            yield file
            return
    unpacked = _Unpacked(path, limit)
    with unpacked.path.open("rb") as file:
        yield file


def buffered(content: Stream) -> io.BufferedReader:
    """A content as a file object that seeks forward."""
    return io.BufferedReader(_Forward(content), _PIECE)


class _Forward(io.RawIOBase):
    def __init__(self, content: Stream) -> None:
        self._content, self._position = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._content.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("backward in compressed data")
        while self._position < offset and (data := self._content.read(min(_PIECE, offset - self._position))):
            self._position += len(data)
        return self._position


class _Unpacked:
    """The content of a compressed file in a temporary file, which is deleted with this object."""

    def __init__(self, path: Path, limit: int) -> None:
        handle, name = tempfile.mkstemp(prefix="trifid-")
        self.path = Path(name)
        self._delete = weakref.finalize(self, _delete, self.path)
        limit = min(limit, shutil.disk_usage(self.path.parent).free // 2)
        with open(handle, "wb") as out, open_content(path) as (_, content):
            size = 0
            while piece := content.read(_PIECE):
                size += len(piece)
                if size > limit:
                    raise InputFileError(f"more than {limit:,} bytes when decompressed: decompress it first")
                out.write(piece)


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
