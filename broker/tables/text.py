"""Tables in text, whatever their dialect: separators, comments, encodings, headers.

One reader for light curves and catalogues. The separator is a comma, semicolon, tab or ``|``, or blanks; comments
begin with ``#``, ``%``, ``!``, ``//`` or ``\\``; the text is UTF-8, with or without a byte order mark, UTF-16 or
Latin-1; lines end as on any system. The names of the columns are in the first line that is no comment or, as ATLAS
writes them, in the last comment before it. IPAC's tables and VizieR's lines of units and dashes are understood.

The rows are passed on as UTF-8 without comments, with one separator between two cells, so that pyarrow's reader can
take them: a block at a time, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, Final, Literal, Protocol, cast

import pyarrow as pa
import pyarrow.csv as pa_csv

from broker.errors import InputFileError

NULLS: Final = ("", "null", "nan", "na", "n/a", "#n/a", "<na>", "none", "-", "--", "---", "masked", "indef", "\\n")
"""Texts, in lower case, that stand for a missing value."""
_HEAD: Final = 1 << 20
"""Bytes in which the header must end."""
_BLOCK: Final = 4 << 20
LONGEST_LINE: Final = 64 << 20
"""Bytes; what has no line end for longer is no table."""
_COMMENT: Final = re.compile(rb"(?m)^[ \t]*(?:[#%!\\]|//).*\n?")
_SIGNS: Final = (b"#", b"%", b"!", b"//", b"\\")
_BLANKS: Final = re.compile(rb"[ \t]+")
_QUOTED_OR_BLANKS: Final = re.compile(rb"\"[^\"\n]*\"|[ \t]+")
_EDGES: Final = re.compile(rb"(?m)^[ \t]+|[ \t]+$")
_KEYWORD: Final = re.compile(r"^\s*([A-Za-z][\w\- ]{0,30}?)\s*[:=]\s*(.+?)\s*$")
_NUMBER: Final = re.compile(r"^\s*[<>]?\s*[+-]?(\d+\.?\d*|[.,]\d+|\d+,\d+)([eEdD][+-]?\d+)?\s*$")
_DECIMAL_COMMA: Final = re.compile(r"^\s*[<>]?\s*[+-]?\d+,\d+\s*$")
_ENCODINGS: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
UTF_16: Final = tuple(_ENCODINGS)
"""With which a text in UTF-16 begins."""
_SEPARATORS: Final = ",;\t|"


class Readable(Protocol):
    """Bytes to be read once, forward."""

    def read(self, size: int, /) -> bytes:
        """1 to ``size`` bytes, none at the end."""


class TextTable:
    """A table in text; what is said of it is read at once, its rows when they are asked for."""

    name: Final[str]
    names: list[str]
    """Of the columns; empty where the file has none and no comment names them."""
    comments: list[str]
    """Before the rows, without the sign that begins them."""
    header: dict[str, str]
    """What the comments say of the whole table: ``name: value`` or ``name = value``; names in lower case."""
    units: dict[str, str]
    """Of columns that have one."""
    separator: str
    """Of the rows as they are passed on."""
    width: int
    """Columns."""
    decimal_comma: bool
    """Whether numbers are written with a comma: ``15,392``."""
    uneven: int
    """Rows left out so far because they have another number of cells than the header."""

    def __init__(self, name: str, opened: Callable[[], AbstractContextManager[Readable]]) -> None:
        """``opened()`` gives the text from its start, decompressed, each time; ``name`` is for messages.

        Raises InputFileError where it is no text or holds no table.
        """
        self.name, self._opened = name, opened
        self.uneven = 0
        with opened() as file:
            head = _read(file, _HEAD)
        whole = len(head) < _HEAD
        self._encoding = _encoding(name, head)
        text = _text(head if whole else head[: head.rfind(b"\n") + 1], self._encoding)
        lines = text.split("\n")
        self._skip = self._read_header(lines)
        rows = [line for line in lines[self._skip :] if line.strip() and not _is_comment(line)][:20]
        self._read_layout(rows)

    @staticmethod
    def of_bytes(name: str, data: bytes) -> TextTable:
        """A table that is in memory."""
        return TextTable(name, lambda: io.BytesIO(data))

    def _read_header(self, lines: list[str]) -> int:
        """Take names, comments and units; returns the number of lines before the first row."""
        self.comments = []
        number = next((n for n, line in enumerate(lines) if line.strip() and not _is_comment(line)), None)
        if number is None:
            raise InputFileError(f"{self.name}: a text without a table: no line that is no comment")
        self.comments = [line.strip().lstrip("#%!/\\ \t") for line in lines[:number] if line.strip()]
        keywords = (_KEYWORD.match(line) for line in self.comments)
        self.header = {match[1].strip().lower(): match[2].strip("'\" ") for match in keywords if match}
        self.units = {}
        first = lines[number]
        if first.lstrip().startswith("|"):  # IPAC: names, types, units and nulls between bars, then cells in columns
            return self._read_ipac(lines, number)
        self._blanks = not any(s in first for s in _SEPARATORS)
        self.separator = "\t" if self._blanks else max(_SEPARATORS, key=first.count)
        cells = self.split(first)
        if any(map(is_number, cells)):
            commented = (self.split(line) for line in reversed(self.comments))
            self.names = next((c for c in commented if len(c) == len(cells) and not any(map(is_number, c))), [])
            return number
        self.names = [cell.strip() for cell in cells]
        below = lines[number + 1 : number + 3]
        if len(below) == 2 and below[1].startswith("--") and not below[1].strip("-" + self.separator + " "):
            units = self.split(below[0])
            self.units = {n: u.strip() for n, u in zip(self.names, units, strict=False) if u.strip()}
            return number + 3
        return number + 1

    def _read_ipac(self, lines: list[str], number: int) -> int:
        bars = number
        while bars < len(lines) and lines[bars].lstrip().startswith("|"):
            bars += 1
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[number:bars]]
        self.names = rows[0]
        if len(rows) > 2:
            self.units = {name: unit for name, unit in zip(self.names, rows[2], strict=False) if unit}
        self._blanks, self.separator = True, "\t"
        return bars

    def _read_layout(self, rows: Sequence[str]) -> None:
        """What the first rows tell: a separator at the end of each, commas in numbers."""
        cells = [self.split(row) for row in rows]
        self.width = len(self.names) or (len(cells[0]) if cells else 0)
        self._padding = 0
        if self.names and cells:
            more = min(map(len, cells)) - len(self.names)
            if more > 0 and all(not any(c.strip() for c in row[len(self.names) :]) for row in cells):
                self._padding = more
            elif more != 0 and all(len(row) != len(self.names) for row in cells):
                raise InputFileError(
                    f"{self.name}: rows of {len(cells[0])} cells below {len(self.names)} names: "
                    f"{', '.join(self.names)[:200]}"
                )
        self.decimal_comma = self.separator != "," and any(_DECIMAL_COMMA.match(cell) for row in cells for cell in row)

    def split(self, line: str) -> list[str]:
        """The cells of one line."""
        if self._blanks:
            return next(csv.reader([" ".join(line.split())], delimiter=" "), [])
        return next(csv.reader([line], delimiter=self.separator), [])

    @property
    def all_names(self) -> list[str]:
        """A name for each cell of a row: ``names``, and others where each row ends in a separator."""
        return [*self.names, *(f" {number}" for number in range(self._padding))]

    def rows(self) -> AbstractContextManager[IO[bytes]]:
        """The rows as a stream: UTF-8, no comments, cells separated by ``separator``, no header."""
        return cast("AbstractContextManager[IO[bytes]]", _Rows(self._blocks()))

    def cells(self) -> Iterator[list[str]]:
        """The cells of each row."""
        for block in self._blocks():
            yield from csv.reader(io.StringIO(block.decode()), delimiter=self.separator)

    def batches(self, columns: Sequence[int], block_size: int) -> Iterator[pa.RecordBatch]:
        """Columns by number as text, blanks trimmed, null where there is no value; raises ArrowException.

        The columns of a batch have their numbers for names. Rows with too few or too many cells are left out and
        counted in ``uneven``.
        """
        self.uneven = 0

        def skip(_: Any) -> Literal["skip", "error"]:
            self.uneven += 1
            return "skip"

        names = [str(n) for n in range(len(self.names) + self._padding)]
        wanted = [str(column) for column in columns]
        convert = pa_csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
            null_values=[form for null in NULLS for form in dict.fromkeys((null, null.upper(), null.title()))]
            + ["NaN", "<NA>", "\\N"],
        )
        with self.rows() as stream:
            try:
                reader = pa_csv.open_csv(
                    stream,
                    pa_csv.ReadOptions(block_size=block_size, column_names=names),
                    pa_csv.ParseOptions(delimiter=self.separator, invalid_row_handler=skip),
                    convert,
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV" in str(error):
                    return
                raise
            with reader:
                yield from reader

    def _blocks(self) -> Iterator[bytes]:
        """Whole lines, as ``rows`` passes them on."""
        to_skip = self._skip
        with self._opened() as file:
            for text in _lines(self.name, file, self._encoding):
                if to_skip:
                    lines = text.split(b"\n")
                    skipped, to_skip = min(to_skip, len(lines) - 1), to_skip - min(to_skip, len(lines) - 1)
                    text = b"\n".join(lines[skipped:])
                if any(sign in text for sign in _SIGNS):
                    text = _COMMENT.sub(b"", text)
                if self._blanks:
                    text = _EDGES.sub(b"", text)
                    if b'"' in text:
                        text = _QUOTED_OR_BLANKS.sub(lambda m: m[0] if m[0][:1] == b'"' else b"\t", text)
                    else:
                        text = _BLANKS.sub(b"\t", text)
                if text.strip():
                    yield text


def is_number(cell: str) -> bool:
    """Whether a cell is a number, as no name of a column is."""
    return _NUMBER.match(cell) is not None


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "%", "!", "//", "\\"))


def _read(file: Readable, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _encoding(name: str, head: bytes) -> str:
    if head[:2] in _ENCODINGS:
        return _ENCODINGS[head[:2]]
    if b"\0" in head:
        raise InputFileError(f"{name}: neither text nor Parquet: it holds zero bytes")
    return "utf-8"


def decoded(data: bytes) -> str:
    """A whole text in UTF-8, with or without a byte order mark, UTF-16 or Latin-1; lines end in a line feed."""
    return _text(data, _ENCODINGS.get(data[:2], "utf-8"))


def _text(data: bytes, encoding: str) -> str:
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


def _lines(name: str, file: Readable, encoding: str) -> Iterator[bytes]:
    """The text in blocks of whole lines, UTF-8, lines ended by a line feed."""
    rest = b""
    end = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}.get(encoding, b"\n")
    while block := _read(file, _BLOCK):
        data = rest + block
        cut = data.rfind(end) + len(end)
        if cut < len(end) and end == b"\n":
            cut = data.rfind(b"\r", 0, -1) + 1  # lines that end in a carriage return alone
        if len(end) == 2 and cut % 2:
            cut = 0  # by chance, the second byte of one character and the first of the next
        if cut <= 0 or cut < len(end):
            if len(data) > LONGEST_LINE:
                raise InputFileError(f"{name}: no table in text: a line of more than {LONGEST_LINE >> 20} MiB")
            rest = data
            continue
        yield _text(data[:cut], encoding).encode()
        rest = data[cut:]
    if rest:
        yield (_text(rest, encoding).rstrip("\n") + "\n").encode()


class _Rows(io.RawIOBase):
    """Blocks of bytes as the file that pyarrow reads."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts: list[memoryview] = []
        wanted = size if size >= 0 else 1 << 62
        while wanted > 0:
            if not self._left:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._left = memoryview(block)
            part, self._left = self._left[:wanted], self._left[wanted:]
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)
