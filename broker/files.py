"""Files that a user names, read as streams: what is no file is refused, what is compressed is inflated.

Everything here is read forward in small steps, so that neither a file's size nor what it inflates to decides how
much memory it takes.
"""

from __future__ import annotations

import bz2
import io
import lzma
import stat
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import pyarrow as pa

from broker.errors import InputFileError

STANDARD_INPUT: Final = Path("-")
_STEP: Final = 65536
"""Bytes that are asked of a file at a time."""
_ZSTD_STEP: Final = 4096
"""pyarrow loses what it has inflated for a call that fails: small calls lose little before a cut."""
_MAGIC_BYTES: Final = 6
"""By which compression is told."""
_XZ_MEMORY: Final = 256 << 20
"""Bytes; ``xz -9`` needs 65 MiB. A file may ask for 4 GiB."""
_TYPES: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Inflater(Protocol):
    """What bz2 and lzma have, and ``_Gzip``."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Stream:
    """Bytes to be read once, forward, with a look ahead."""

    def __init__(self, raw: _Readable, close: Callable[[], None] = lambda: None) -> None:
        """``raw.read(n)`` gives 1 to n bytes, none at the end; ``close`` is called on leaving the context."""
        self._raw, self._close = raw, close
        self._ahead = b""

    def read(self, size: int = _STEP) -> bytes:
        """1 to ``size`` bytes, none at the end."""
        if not self._ahead:
            return self._raw.read(size)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end, which stay to be read."""
        if len(self._ahead) < size:
            self._ahead += self._up_to(size - len(self._ahead))
        return self._ahead[:size]

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        data = self.read(size) if self._ahead else b""
        return data + self._up_to(size - len(data)) if len(data) < size else data

    def _up_to(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (data := self._raw.read(min(size, _STEP))):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def require_file(path: Path) -> int:
    """The size of a regular file in bytes; raises InputFileError, with the reason, for what is none.

    Without it, to open a FIFO waits for a writer for ever, and a device may never end.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        url = "; URLs are not fetched: download it first" if ":/" in str(path) else ""
        raise InputFileError(f"{path}: {reason(error)}{url}") from error
    if not stat.S_ISREG(status.st_mode):
        name = next((name for is_type, name in _TYPES if is_type(status.st_mode)), "no regular file")
        raise InputFileError(f"{path}: {name}, not a file")
    return status.st_size


def open_stream(path: Path) -> Stream:
    """The bytes of a file as they are, or those of the standard input for ``-``; raises InputFileError."""
    if path == STANDARD_INPUT:
        if sys.stdin.isatty():
            raise InputFileError("-: the standard input is a terminal: pipe a file into it")
        return Stream(sys.stdin.buffer)
    require_file(path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise InputFileError(f"{path}: {reason(error)}") from error
    return Stream(file, file.close)


def inflated(stream: Stream) -> Stream:
    """The bytes of a gzip, bzip2, xz or zstandard file, told by how it begins; of any other as they are.

    Reading raises InputFileError where they are damaged or end early; what came before was read by then. Raises
    it at once for one that was compressed twice, which nobody does who means well.
    """
    plain = inflated_once(stream)
    if plain is not stream and compression(plain.peek(_MAGIC_BYTES)) is not None:
        raise InputFileError("compressed twice: inflate it once")
    return plain


def compression(head: bytes) -> str | None:
    """What a file is compressed with, by its first bytes; None where with nothing known."""
    return next((name for magic, name, _ in _FORMATS if head.startswith(magic)), None)


def inflated_once(stream: Stream) -> Stream:
    """As ``inflated``, but what it holds may be compressed again."""
    head = stream.peek(_MAGIC_BYTES)
    for magic, name, inflater in _FORMATS:
        if head.startswith(magic):
            return Stream(_Zstandard(stream) if inflater is None else _Inflated(stream, name, inflater))
    return stream


class _Gzip:
    """zlib in the interface of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_FORMATS: Final[tuple[tuple[bytes, str, Callable[[], _Inflater] | None], ...]] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)),
    (b"\x28\xb5\x2f\xfd", "zstandard", None),
)


class _Inflated:
    """Inflates a file of one or several compressed streams.

    Not the standard library's: where a file is cut off, those lose what they had inflated for the call that fails.
    """

    def __init__(self, stream: Stream, name: str, new: Callable[[], _Inflater]) -> None:
        self._stream, self._name, self._new = stream, name, new
        self._inner = new()
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._inner.eof:
                self._input = self._inner.unused_data.lstrip(b"\0")  # padding, as tapes and some tools leave it
                while not self._input:
                    if not (data := self._stream.read(_STEP)):
                        return b""
                    self._input = data.lstrip(b"\0")
                self._inner = self._new()
            data, self._input = self._input, b""
            if not data and self._inner.needs_input:
                data = self._stream.read(_STEP)
            ended = not data and self._inner.needs_input
            try:
                out = self._inner.decompress(data, size)
            except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
                raise InputFileError(f"its {self._name} data are damaged: {error}") from error
            if out:
                return out
            if ended and not self._inner.eof:
                raise InputFileError(f"cut short: its {self._name} data end early")


class _Zstandard:
    """zstandard by pyarrow, whose window is 128 MiB at most."""

    def __init__(self, stream: Stream) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(_File(stream), "r"), "zstd")

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._stream.read(min(size, _ZSTD_STEP))
        except (OSError, ValueError) as error:
            if "Truncated" in str(error):
                raise InputFileError("cut short: its zstandard data end early") from error
            raise InputFileError(f"its zstandard data are damaged: {reason(error)}") from error
        return data


class _File(io.RawIOBase):
    """As much of a file object as pyarrow asks for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.take(size)

    def readable(self) -> bool:
        return True


def reason(error: BaseException) -> str:
    """Why something failed, on one short line, without the name of the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.splitlines()
    return (lines[0][:200] if lines else "") or type(error).__name__
