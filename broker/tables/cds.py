"""Tables of fixed columns, as the CDS keeps them, with the description that stands beside or above them.

https://vizier.cds.unistra.fr/doc/catstd.htx: a file ``ReadMe`` in the same folder has for each file a
"Byte-by-byte Description" of its columns; machine-readable tables of journals have it above their own rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker.tables.arrays import to_arrow
from broker.tables.content import buffered, open_content
from broker.tables.table import Table, TableColumn, input_errors

README: Final = "ReadMe"
_COMPRESSED: Final = re.compile(r"\.(gz|bz2|xz|zst)$")
_HEADING: Final = re.compile(r"Byte-(?:by|per)-byte Description of files?:\s*(.*)", re.IGNORECASE)
_COLUMN: Final = re.compile(r"\s*(?:(\d+)\s*-\s*)?(\d+)\s+[AIFE]\d*(?:\.\d+)?\s+(\S+)\s+(\S+)(?:\s+(.*?))?\s*$")
_RULE: Final = re.compile(r"[-=]{20,}\s*$")
_LONGEST_README: Final = 4 << 20
_LOOKED_AT: Final = 20
_LONGEST_ROW: Final = 1 << 16
RA: Final = "RAdeg"
DEC: Final = "DEdeg"
_HMS: Final = ("RAh", "RAm", "RAs")
_DMS: Final = ("DE-", "DEd", "DEm", "DEs")


@dataclass(frozen=True, slots=True)
class Field:
    """A column of fixed place."""

    name: str
    first: int
    """Byte with which it begins, from 0."""
    end: int
    """Byte behind it."""
    unit: str = ""
    description: str = ""


def vsx_fields(id_digits: int) -> tuple[Field, ...]:
    """Columns of ``vsx.dat`` (CDS B/vsx, ReadMe), whose first has 7 digits until 2023 and may grow."""
    shift = id_digits - 7
    places = (
        ("Name", 8, 38, ""), ("V", 39, 40, ""), (RA, 41, 50, "deg"), (DEC, 51, 60, "deg"), ("Type", 61, 91, ""),
        ("l_Period", 138, 139, ""), ("Period", 139, 155, "d"),
    )  # fmt: skip
    return Field("OID", 0, id_digits), *(Field(n, first + shift, end + shift, unit) for n, first, end, unit in places)


class CdsTable(Table):
    """A table of fixed columns; of hours, minutes and seconds positions in degrees are made."""

    format = "text"

    def __init__(self, path: Path, fields: Sequence[Field], skip: int) -> None:
        """``skip`` lines come before the rows."""
        self.path, self._skip = path, skip
        self._fields = {field.name: field for field in fields}
        self.columns = [TableColumn(f.name, f.unit or None, f.description) for f in self._fields.values()]
        if self._fields.keys() >= {*_HMS, *_DMS[1:3]} and not {RA, DEC} & self._fields.keys():
            self.columns += [TableColumn(RA), TableColumn(DEC)]
        self.header = {}

    def batches(
        self,
        names: Sequence[str],
        start: int = 0,
        size: int = 100_000,
        *,
        numbers: Collection[str] = (),
        words_are_missing: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Table``. A column of numbers that has text in some rows is text in these pieces."""
        width = max(field.end for field in self._fields.values())
        with input_errors(self.path), open_content(self.path) as (raw, content), buffered(content) as file:
            stripped = (line.rstrip(b"\r\n") for line in islice(_lines(file), self._skip, None))
            rows = islice((row for row in stripped if row.strip()), start, None)
            while lines := list(islice(rows, size)):
                table = np.array(lines, f"S{width}").view("u1").reshape(len(lines), width)
                self.bytes_read = raw.tell()
                columns = [to_arrow(name, *self._column(table, name, name in numbers)) for name in names]
                yield pa.RecordBatch.from_arrays(columns, names=list(names))

    def _column(
        self, table: NDArray[np.uint8], name: str, is_number: bool
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Values and which of them are missing."""
        if name not in self._fields:
            return (self._angle(table, _HMS, 15.0) if name == RA else self._angle(table, _DMS, 1.0)), None
        texts = _cells(table, self._fields[name])
        blank = texts == b""
        if is_number:
            try:
                return np.where(blank, b"nan", texts).astype(np.float64), blank
            except ValueError:
                pass
        return texts, blank

    def _angle(self, table: NDArray[np.uint8], parts: Sequence[str], unit: float) -> NDArray[np.float64]:
        """Degrees of a position in hours or degrees, minutes and seconds, of which the last may be missing.

        A sign has a column of its own, or stands before the degrees: ``-00`` is negative, too.
        """
        whole, minutes, seconds = parts[-3:]
        degrees = np.abs(_numbers(table, self._fields[whole]))
        degrees = degrees + np.nan_to_num(_numbers(table, self._fields[minutes])) / 60.0
        if seconds in self._fields:
            degrees = degrees + np.nan_to_num(_numbers(table, self._fields[seconds])) / 3600.0
        signs = [self._fields[name] for name in (parts[0], whole) if name in self._fields]
        negative = np.any([np.char.startswith(_cells(table, sign), b"-") for sign in signs], axis=0)
        result: NDArray[np.float64] = np.where(negative, -degrees, degrees) * unit
        return result


def described(path: Path, head: bytes) -> CdsTable | None:
    """A file as a table of fixed columns: described in itself, by a ReadMe beside it, or known to be so (VSX's).

    ``head`` is its beginning. None where it is none.
    """
    text = head.decode("latin-1")
    name = _COMPRESSED.sub("", path.name)
    if _HEADING.search(text):
        with open_content(path) as (_, content):
            text = content.take(_LONGEST_README).decode("latin-1")
        lines = text.split("\n")
        rules = [number for number, line in enumerate(lines) if _RULE.match(line)]
        fields = _fields(lines, None)
        return CdsTable(path, fields, rules[-1] + 1) if fields and rules else None
    readme = path.parent / README
    if path.name != README and readme.is_file():
        with open_content(readme) as (_, content):
            lines = content.take(_LONGEST_README).decode("latin-1").split("\n")
        if fields := _fields(lines, name):
            return CdsTable(path, fields, 0)
    rows = [row for row in head.split(b"\n")[:-1] if row.strip()][:_LOOKED_AT]
    for id_digits in (7, 8, 9):
        fields = vsx_fields(id_digits)
        if rows and all(_is_vsx(row, fields) for row in rows):
            return CdsTable(path, fields, 0)
    return None


def _fields(lines: Sequence[str], file: str | None) -> tuple[Field, ...]:
    """The columns that the description of ``file`` names, of the first description where None."""
    found: list[Field] = []
    inside, rules = False, 0
    for number, line in enumerate(lines):
        if heading := _HEADING.search(line):
            if found:
                break
            names = heading[1].split()
            names += lines[number + 1].split() if number + 1 < len(lines) and not _RULE.match(lines[number + 1]) else []
            inside, rules = file is None or any(fnmatch(file, name.strip(",")) for name in names), 0
        elif inside and _RULE.match(line):
            rules += 1
            if rules == 3:
                break
        elif inside and (column := _COLUMN.match(line)):
            end = int(column[2])
            unit = "" if column[3] == "---" else column[3]
            found.append(Field(column[4], int(column[1] or end) - 1, end, unit, column[5] or ""))
    return tuple(found)


def _is_vsx(row: bytes, fields: Sequence[Field]) -> bool:
    cells = {field.name: row[field.first : field.end].strip() for field in fields}
    try:
        placed = 0.0 <= float(cells[RA]) <= 360.0 and abs(float(cells[DEC])) <= 90.0
    except ValueError:
        return False
    separators = [row[field.first - 1 : field.first] for field in fields[1:6]]
    return placed and cells["OID"].isdigit() and cells["V"] in (b"0", b"1", b"2", b"3") and set(separators) == {b" "}


def _cells(table: NDArray[np.uint8], field: Field) -> NDArray[np.bytes_]:
    block = np.ascontiguousarray(table[:, field.first : field.end])
    return np.char.strip(block.view(f"S{field.end - field.first}")[:, 0])


def _numbers(table: NDArray[np.uint8], field: Field) -> NDArray[np.float64]:
    """NaN for blanks, infinity for text that is no number."""
    texts = _cells(table, field)
    try:
        return np.where(texts == b"", b"nan", texts).astype(np.float64)
    except ValueError:
        return np.array([_number(text) for text in texts.tolist()])


def _number(text: bytes) -> float:
    try:
        return float(text or b"nan")
    except ValueError:
        return np.inf


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, none longer than a row of fixed columns can be."""
    while line := file.readline(_LONGEST_ROW):
        yield line
