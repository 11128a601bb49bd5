"""Files that users name: what may be opened as one, and what a foreign one is, by its first bytes.

Every reader opens its file itself and hands the open file on: libraries take names that look like URLs, home
folders or patterns for what they look like, and fetch or expand them.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from broker.errors import InputFileError

GZIP: Final = b"\x1f\x8b"
HEAD_BYTES: Final = 2000
_PIECE: Final = 1 << 20
_COMPRESSED: Final = (
    (b"PK\x03\x04", "a zip archive"), (b"BZh", "compressed with bzip2"), (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"), (b"\x1f\x9d", "compressed with compress"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (GZIP, "compressed with gzip twice"),
)  # fmt: skip
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def require_regular(path: Path) -> int:
    """The size of a file in bytes; raises InputFileError for what is no regular file and could hang or never end."""
    try:
        status = path.stat()
    except OSError as error:
        url = "; URLs are not fetched: download it first" if ":/" in str(path) else ""
        raise InputFileError(f"{path}: {error.strerror or error}{url}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
        raise InputFileError(f"{path}: {kind}; regular files only are read: write it to one first")
    return status.st_size


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A regular file, as it is and with gzip taken off (the same where it has none); raises InputFileError."""
    require_regular(path)
    with path.open("rb") as raw:
        if raw.peek(2)[:2] == GZIP:
            with gzip.open(raw) as unpacked:
                yield raw, cast(IO[bytes], unpacked)
        else:
            yield raw, raw


def foreign(head: bytes) -> str | None:
    """What a file is that no reader is for, by its first bytes after gzip was taken off; None where it may be one."""
    for magic, name in _COMPRESSED:
        if head.startswith(magic):
            return f"{name}: unpack it first"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:HEAD_BYTES].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of an error where a download was meant"
    return None


def is_xml(head: bytes) -> bool:
    """Whether a file begins as XML does, in UTF-8 or UTF-16."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")):
        head = head.replace(b"\0", b"").lstrip(b"\xff\xfe")
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


class Unpacked:
    """A gzip file unpacked into a temporary file, which is deleted with this object."""

    def __init__(self, path: Path, limit: int) -> None:
        """Raises InputFileError where it is damaged, or has more than ``limit`` bytes or than half of the free disk."""
        handle, name = tempfile.mkstemp(prefix="trifid-")
        self.path = Path(name)
        self._delete = weakref.finalize(self, _delete, self.path)
        limit = min(limit, shutil.disk_usage(self.path.parent).free // 2)
        with open(handle, "wb") as out, open_unpacked(path) as (_, file):
            size = 0
            try:
                while piece := file.read(_PIECE):
                    size += len(piece)
                    if size > limit:
                        raise InputFileError(
                            f"{path}: more than {limit:,} bytes when decompressed: decompress it first"
                        )
                    out.write(piece)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputFileError(f"{path}: {error}") from error


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
