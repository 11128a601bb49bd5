"""Texts in UTF-8, with or without a byte order mark, UTF-16 or Latin-1, as lines of UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from broker.errors import InputFileError

LONGEST_LINE: Final = 64 << 20
"""Bytes; what has no line end for longer is no table."""
_BLOCK: Final = 4 << 20
_ENCODINGS: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
UTF_16: Final = tuple(_ENCODINGS)
"""With which a text in UTF-16 begins."""


class Readable(Protocol):
    """Bytes to be read once, forward."""

    def read(self, size: int, /) -> bytes:
        """1 to ``size`` bytes, none at the end."""


def read_up_to(file: Readable, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encoding_of(head: bytes) -> str:
    """By the first bytes of a text; raises InputFileError for what is none."""
    if head[:2] in _ENCODINGS:
        return _ENCODINGS[head[:2]]
    if b"\0" in head:
        raise InputFileError("neither text nor Parquet, neither FITS nor VOTable: it holds zero bytes")
    return "utf-8"


def decoded(data: bytes) -> str:
    """A whole text in UTF-8, with or without a byte order mark, UTF-16 or Latin-1; lines end in a line feed."""
    return as_text(data, _ENCODINGS.get(data[:2], "utf-8"))


def as_text(data: bytes, encoding: str) -> str:
    """Decoded; what is not UTF-8 is taken as Latin-1, line by line."""
    if encoding != "utf-8":
        return _line_feeds(data.decode(encoding, "replace"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "".join(map(_line_text, data.splitlines(keepends=True)))
    return _line_feeds(text)


def _line_feeds(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _line_text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def blocks_of_lines(file: Readable, encoding: str) -> Iterator[bytes]:
    """The text in blocks of whole lines, UTF-8, lines ended by a line feed."""
    rest = b""
    end = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}.get(encoding, b"\n")
    while block := read_up_to(file, _BLOCK):
        data = rest + block
        cut = data.rfind(end) + len(end)
        if cut < len(end) and end == b"\n":
            cut = data.rfind(b"\r", 0, -1) + 1  # lines that end in a carriage return alone
        if len(end) == 2 and cut % 2:
            cut = 0  # by chance, the second byte of one character and the first of the next
        if cut <= 0 or cut < len(end):
            if len(data) > LONGEST_LINE:
                raise InputFileError(f"no table in text: a line of more than {LONGEST_LINE >> 20} MiB")
            rest = data
            continue
        yield as_text(data[:cut], encoding).encode()
        rest = data[cut:]
    if rest:
        yield (as_text(rest, encoding).rstrip("\n") + "\n").encode()
