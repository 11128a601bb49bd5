"""Tables in text, whatever their dialect: separators, comments, encodings, headers.

The separator is a comma, semicolon, tab or ``|``, or blanks; comments begin with ``#``, ``%``, ``!``, ``//`` or
``\\``; the text is UTF-8, with or without a byte order mark, UTF-16 or Latin-1; lines end as on any system. The names
of the columns are in the first line that is no comment or, as ATLAS writes them, in the last comment before it. IPAC's
tables, VizieR's lines of units and dashes and the header of ECSV are understood.

The rows are passed on as UTF-8 without comments, with one separator between two cells, so that pyarrow's reader can
take them: a block at a time, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from broker.errors import InputFileError
from broker.tables.content import open_content
from broker.tables.encoding import as_text, blocks_of_lines, encoding_of, read_up_to
from broker.tables.table import Table, TableColumn, input_errors

NULLS: Final = ("", "null", "nan", "na", "n/a", "#n/a", "<na>", "none", "-", "--", "---", "masked", "indef", "\\n")
"""Texts, in lower case, that stand for a missing value."""
_BLANKS_ALONE: Final = [" " * n for n in range(1, 40)]
"""VizieR pads columns to a width."""
_NULL_WORDS: Final = [
    *dict.fromkeys(form for null in NULLS for form in (null, null.upper(), null.title())),
    "NaN", "<NA>", "\\N", *_BLANKS_ALONE,
]  # fmt: skip
_HEAD: Final = 1 << 20
"""Bytes in which the header must end."""
ECSV: Final = "# %ECSV"
"""With which a text in ECSV begins."""
_COMMENT: Final = re.compile(rb"(?m)^[ \t]*(?:[#%!\\]|//).*\n?")
_SIGNS: Final = (b"#", b"%", b"!", b"//", b"\\")
_BLANKS: Final = re.compile(rb"[ \t]+")
_QUOTED_OR_BLANKS: Final = re.compile(rb"\"[^\"\n]*\"|[ \t]+")
_EDGES: Final = re.compile(rb"(?m)^[ \t]+|[ \t]+$")
_KEYWORD: Final = re.compile(r"^\s*([A-Za-z][\w\- ]{0,30}?)\s*[:=]\s*(.+?)\s*$")
_NUMBER: Final = re.compile(r"^\s*[<>]?\s*[+-]?(\d+\.?\d*|[.,]\d+|\d+,\d+)([eEdD][+-]?\d+)?\s*$")
_DECIMAL_COMMA: Final = re.compile(r"^\s*[<>]?\s*[+-]?\d+,\d+\s*$")
_SEPARATORS: Final = ",;\t|"


class TextTable(Table):
    """A table in text; what is said of it is read at once, its rows when they are asked for."""

    format = "text"
    comments: list[str]
    """Before the rows, without the sign that begins them."""
    separator: str
    """Of the rows as they are passed on."""
    width: int
    """Cells of a row; the table has no names, and so no columns, where neither a line nor a comment names them."""

    def __init__(self, path: Path) -> None:
        """Raises InputFileError where it is no text or holds no table."""
        self.path = path
        with open_content(path) as (_, content):
            head = read_up_to(content, _HEAD)
        whole = len(head) < _HEAD
        self._encoding = encoding_of(head)
        text = as_text(head if whole else head[: head.rfind(b"\n") + 1], self._encoding)
        lines = text.split("\n")
        self._names: list[str] = []
        self._units: dict[str, str] = {}
        self._descriptions: dict[str, str] = {}
        self._skip = self._read_header(lines)
        rows = [line for line in lines[self._skip :] if line.strip() and not _is_comment(line)][:20]
        self._read_layout(rows)
        self.name_columns(self._names)

    def name_columns(self, names: Sequence[str]) -> None:
        """Name the columns, where the text does not."""
        self.columns = [TableColumn(n, self._units.get(n), self._descriptions.get(n, "")) for n in names]

    def _read_header(self, lines: list[str]) -> int:
        """Take names, comments and units; returns the number of lines before the first row."""
        self.comments = []
        number = next((n for n, line in enumerate(lines) if line.strip() and not _is_comment(line)), None)
        if number is None:
            raise InputFileError("a text without a table: no line that is no comment")
        self.comments = [line.strip().lstrip("#%!/\\ \t") for line in lines[:number] if line.strip()]
        keywords = (_KEYWORD.match(line) for line in self.comments)
        self.header = {match[1].strip().lower(): match[2].strip("'\" ") for match in keywords if match}
        first = lines[number]
        if lines[0].startswith(ECSV):
            return self._read_ecsv(lines, number)
        if first.lstrip().startswith("|"):  # IPAC: names, types, units and nulls between bars, then cells in columns
            return self._read_ipac(lines, number)
        self._blanks = not any(s in first for s in _SEPARATORS)
        self.separator = "\t" if self._blanks else max(_SEPARATORS, key=first.count)
        cells = self.split(first)
        if any(map(is_number, cells)):
            commented = (self.split(line) for line in reversed(self.comments))
            self._names = next((c for c in commented if len(c) == len(cells) and not any(map(is_number, c))), [])
            return number
        self._names = [cell.strip() for cell in cells]
        below = lines[number + 1 : number + 3]
        if len(below) == 2 and below[1].startswith("--") and not below[1].strip("-" + self.separator + " "):
            units = self.split(below[0])
            self._units = {n: u.strip() for n, u in zip(self._names, units, strict=False) if u.strip()}
            return number + 3
        return number + 1

    def _read_ecsv(self, lines: list[str], number: int) -> int:
        """https://github.com/astropy/astropy-APEs/blob/main/APE6.rst: YAML in the comments, and a line of names."""
        from astropy.table import meta

        said = meta.get_header_from_yaml([line[2:] for line in lines[1:number] if line.startswith("# ")])
        delimiter = str(said.get("delimiter", " "))
        self._blanks, self.separator = delimiter == " ", "\t" if delimiter == " " else delimiter
        self._names = self.split(lines[number])
        for column in said.get("datatype", []):
            if column.get("unit"):
                self._units[column["name"]] = str(column["unit"])
            self._descriptions[column["name"]] = str(column.get("description", ""))
        # Of YAML only plain values: nested ones could be of any size when written out.
        self.header = {k: v for k, v in dict(said.get("meta") or {}).items() if isinstance(v, str | int | float)}
        return number + 1

    def _read_ipac(self, lines: list[str], number: int) -> int:
        bars = number
        while bars < len(lines) and lines[bars].lstrip().startswith("|"):
            bars += 1
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[number:bars]]
        self._names = rows[0]
        if len(rows) > 2:
            self._units = {name: unit for name, unit in zip(self._names, rows[2], strict=False) if unit}
        self._blanks, self.separator = True, "\t"
        return bars

    def _read_layout(self, rows: Sequence[str]) -> None:
        """What the first rows tell: a separator at the end of each, commas in numbers."""
        cells = [self.split(row) for row in rows]
        self.width = len(self._names) or (len(cells[0]) if cells else 0)
        self._padding = 0
        if self._names and cells:
            more = min(map(len, cells)) - len(self._names)
            if more > 0 and all(not any(c.strip() for c in row[len(self._names) :]) for row in cells):
                self._padding = more
            elif more != 0 and all(len(row) != len(self._names) for row in cells):
                raise InputFileError(
                    f"rows of {len(cells[0])} cells below {len(self._names)} names: {', '.join(self._names)[:200]}"
                )
        self.decimal_comma = self.separator != "," and any(_DECIMAL_COMMA.match(cell) for row in cells for cell in row)

    def split(self, line: str) -> list[str]:
        """The cells of one line."""
        if self._blanks:
            return next(csv.reader([" ".join(line.split())], delimiter=" "), [])
        return next(csv.reader([line], delimiter=self.separator), [])

    def batches(
        self,
        names: Sequence[str],
        start: int = 0,
        size: int = 100_000,
        *,
        numbers: Collection[str] = (),
        words_are_missing: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Table``. Text is trimmed of blanks where these separate the cells.

        Each block is parsed by itself: pyarrow's reader of streams reads ahead in a thread, which may wait for
        itself for ever where the reader is dropped before its end.
        """
        self.uneven = 0
        place = {name: str(number) for number, name in reversed(list(enumerate(self.names)))}
        wanted = set(numbers)

        def skip(_: Any) -> Literal["skip", "error"]:
            self.uneven += 1
            return "skip"

        def parsed(block: bytes) -> pa.Table:
            return pa_csv.read_csv(
                cast(Any, pa.BufferReader(block)),
                pa_csv.ReadOptions(
                    use_threads=False,
                    block_size=len(block) + 1,
                    column_names=[str(n) for n in range(len(self.names) + self._padding)],
                ),
                pa_csv.ParseOptions(delimiter=self.separator, invalid_row_handler=skip),
                pa_csv.ConvertOptions(
                    include_columns=[place[name] for name in names],
                    column_types={place[n]: pa.float64() if n in wanted else pa.string() for n in names},
                    strings_can_be_null=words_are_missing,
                    null_values=_NULL_WORDS,
                    decimal_point="," if self.decimal_comma else ".",
                ),
            )

        with input_errors(self.path):
            for block in self._blocks():
                uneven = self.uneven
                try:
                    table = parsed(block)
                except pa.ArrowInvalid as error:
                    if not wanted or "conversion error" not in str(error):
                        raise
                    # Text in a column of numbers: as text from here on, which is slower.
                    wanted, self.uneven = set(), uneven
                    table = parsed(block)
                for read in table.to_batches():
                    batch = read.slice(min(start, read.num_rows)).rename_columns(list(names))
                    start -= read.num_rows - batch.num_rows
                    for first in range(0, batch.num_rows, size):
                        piece = batch.slice(first, size)
                        yield piece if wanted else self._with_points(piece, numbers)

    def _with_points(self, batch: pa.RecordBatch, numbers: Collection[str]) -> pa.RecordBatch:
        """Text in which numbers are written with a point, as other formats have them."""
        if not self.decimal_comma:
            return batch
        columns: list[Any] = [
            pc.replace_substring(batch.column(n), ",", ".") if n in numbers else batch.column(n)
            for n in batch.schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    def _blocks(self) -> Iterator[bytes]:
        """Whole lines in UTF-8 without comments, cells separated by ``separator``."""
        to_skip = self._skip
        with open_content(self.path) as (raw, content):
            for text in blocks_of_lines(content, self._encoding):
                self.bytes_read = raw.tell()
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
