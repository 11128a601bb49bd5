"""Light curves from tables, Parquet or text: one row an object with lists, or one row a point.

Columns are taken by their names (``broker.lightcurves.columns``): the object's name and position, the time, the
magnitude and its error, the band and, where the archive has one, a flag of bad points. Text may have any dialect
(``broker.tables.text``), Parquet lists, structs of lists or lists of structs (HATS, nested-pandas). Tables are read in
pieces: memory does not grow with the file, unless the rows of an object are scattered over it.

Points that are no measurements are left out: codes for missing values, limits, flagged points, times that are none.
What was left out, and why, is counted, and said in one line for each reason. What remains is merged as the points of
alert packets are (``broker.state.merge``), so that a row that is there twice counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from broker.errors import InputFileError
from broker.files import Stream, inflated, open_stream
from broker.lightcurves.asassn import is_asassn
from broker.lightcurves.columns import DEC, NAME, RA, Columns, TimeColumn, plain
from broker.lightcurves.objects import NamedLightCurve, ObjectBuilder
from broker.lightcurves.points import RowReader
from broker.lightcurves.report import LeftOut, Report
from broker.lightcurves.rows import Rows, gather, join, run_bounds
from broker.lightcurves.values import angles, is_list
from broker.records import TimeSystem
from broker.tables.text import TextTable
from broker.times import mjd_now

_POINTS_AT_ONCE: Final = 200_000
"""Points that are read at once from a Parquet file, about."""
_ROWS_AT_ONCE: Final = 100_000
_CSV_BLOCK: Final = 16 << 20
"""Bytes of a text that are parsed at once; a row cannot be longer."""
_MOST_HELD: Final = 1 << 20
"""Points of one object that are kept while its rows are read."""
_UNNAMED: Final = ("hjd", "mag", "mag_err")
"""Columns of a text without names (OGLE and many others). The range of the times tells what they are."""


def read_light_curves(
    path: Path, say: Callable[[str], None] = lambda _: None, time_system: TimeSystem | None = None
) -> Iterator[NamedLightCurve]:
    """Each object of a table once, in the order of their first rows; rows of one name are put together.

    ``problem`` says which points of an object were left out: it may thus have an empty light curve, but no name is
    lost. A row without a name is called ``row <number>``; a table without names is one object, called as the file.
    Rows of one name that lie at two places are no object: it has no points, and ``problem`` says so. Magnitudes are
    taken as AB (see ``broker.photometry``) and as total flux. ``say`` is called with what the user should know of the
    file, a line each time. ``time_system`` is what the times are, where not what their column is called after. Raises
    InputFileError where the file is not such a table.
    """
    try:
        yield from _Reader(path, say, time_system).light_curves()
    except InputFileError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputFileError(f"{path}: {error}") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        message = str(error)
        if "straddling" in message:
            message = f"a row of more than {_CSV_BLOCK >> 20} MiB: write long lists as Parquet, or a row a point"
        raise InputFileError(f"{path}: {message}") from error


class _Source(Protocol):
    """A table of any format."""

    names: list[str]
    header: dict[str, str]
    """What is said of the whole table."""
    decimal_comma: bool

    def batches(self, names: Sequence[str], size_of: str) -> Iterator[dict[str, pa.Array[Any]]]:
        """These columns, piece by piece; ``size_of`` is the one whose lists tell how large a row is."""


class _Text:
    def __init__(self, path: Path) -> None:
        self._table = TextTable(str(path), lambda: _open(path))
        self.unnamed = not self._table.names and self._table.width == len(_UNNAMED)
        if self.unnamed:
            self._table.names = list(_UNNAMED)
        self.names, self.header, self.decimal_comma = (
            self._table.names, self._table.header, self._table.decimal_comma,
        )  # fmt: skip
        if not self.names:
            raise InputFileError(
                f"{path}: no line of column names above the {self._table.width} columns of numbers: put one there"
            )

    @property
    def uneven(self) -> int:
        return self._table.uneven

    def batches(self, names: Sequence[str], size_of: str) -> Iterator[dict[str, pa.Array[Any]]]:
        numbers = [self.names.index(name) for name in names]
        for batch in self._table.batches(numbers, _CSV_BLOCK):
            yield {name: batch.column(str(number)) for name, number in zip(names, numbers, strict=True)}


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: dict[str, str] = {}
        self.decimal_comma = False
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
        self.names = []
        for column in schema:
            kind = column.type.value_type if is_list(column.type) else column.type
            inside = [f"{column.name}.{kind.field(i).name}" for i in range(kind.num_fields)] if _is_struct(kind) else []
            self.names += inside or [column.name]

    def batches(self, names: Sequence[str], size_of: str) -> Iterator[dict[str, pa.Array[Any]]]:
        with pq.ParquetFile(self._path) as file:
            top = [
                name for name in file.schema_arrow.names if any(n == name or n.startswith(name + ".") for n in names)
            ]
            listed = any(is_list(file.schema_arrow.field(name).type) for name in top)
            # A list of structs is read whole, of a struct of lists only what is asked for.
            wanted = top if listed else list(names)
            for batch in file.iter_batches(self._rows(file, size_of), columns=wanted):
                yield {name: _inside(batch, name) for name in names}

    @staticmethod
    def _rows(file: pq.ParquetFile, size_of: str) -> int:
        """Rows with about _POINTS_AT_ONCE points."""
        metadata, values = file.metadata, 0
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                if column.path_in_schema.split(".")[0] == size_of.split(".")[0]:
                    values += column.num_values
                    break
        mean = max(values / max(metadata.num_rows, 1), 1.0)
        return int(min(max(_POINTS_AT_ONCE / mean, 1), _ROWS_AT_ONCE))


def _is_struct(kind: Any) -> bool:
    return pa.types.is_struct(kind)


def _inside(batch: pa.RecordBatch, path: str) -> pa.Array[Any]:
    """A column, or one field of a struct or of a list of structs, which is a list then."""
    if path in batch.schema.names:
        return batch.column(path)
    top, _, name = path.partition(".")
    column: Any = batch.column(top)
    if _is_struct(column.type):
        inside: pa.Array[Any] = pc.struct_field(column, name)
        return inside
    count = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values: Any = pc.struct_field(pc.list_flatten(column), name)
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int64())
    return cast("pa.Array[Any]", pa.LargeListArray.from_arrays(offsets, values))


@contextmanager
def _open(path: Path) -> Iterator[Stream]:
    with open_stream(path) as raw:
        yield inflated(raw)


def _source(path: Path) -> _Parquet | _Text:
    with open_stream(path) as raw:
        plain_file = inflated(raw)
        start, packed = plain_file.peek(16), plain_file is not raw
    if not start.startswith(b"PAR1"):
        for magic, name in ((b"SIMPLE  =", "FITS"), (b"<", "XML or HTML"), (b"Obj\x01", "Avro")):
            if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(magic):
                raise InputFileError(f"{path}: {name}, but light curves are read from Parquet and text (CSV) only")
        return _Text(path)
    if packed:
        raise InputFileError(f"{path}: compressed Parquet: decompress it first")
    return _Parquet(path)


class _Reader:
    """One pass through one file."""

    def __init__(self, path: Path, say: Callable[[str], None], time_system: TimeSystem | None) -> None:
        self._path = path
        self._source = _source(path)
        try:
            self._columns = Columns.of(self._source.names)
        except ValueError as error:
            raise InputFileError(f"{path}: {error}") from error
        self._report = Report(path, self._columns, say)
        texts = (path.name, *self._source.names, *self._source.header, *self._source.header.values())
        two_filters = any(map(is_asassn, texts))
        if isinstance(self._source, _Text) and self._source.unnamed:
            self._report.line(f"no line of column names: the columns are taken as {', '.join(_UNNAMED)}")
        time = TimeColumn(self._columns.time, mjd_now() + 1.0)
        name = self._of_header(NAME) or path.name.split(".")[0] or path.name
        ra, dec = (
            float(angles(pa.array([self._of_header(spellings) or ""]), hours, self._source.decimal_comma)[0])
            for spellings, hours in ((RA, True), (DEC, False))
        )
        self._rows = RowReader(
            path, self._columns, self._report, time,
            decimal_comma=self._source.decimal_comma, two_filters=two_filters, whole=(name, ra, dec),
        )  # fmt: skip
        self._objects = ObjectBuilder(self._columns, self._report, time, time_system or time.system)

    def _of_header(self, spellings: Sequence[str]) -> str | None:
        by_plain = {plain(name): value for name, value in self._source.header.items()}
        return next((by_plain[plain(s)] for s in spellings if plain(s) in by_plain), None)

    def light_curves(self) -> Iterator[NamedLightCurve]:
        """All objects, then what is to be said of the file."""
        pieces = self._pieces()
        if self._columns.name is not None and self._is_scattered():
            parts = list(pieces)
            pieces = iter([gather(join(parts))] if parts else [])
        held: Rows | None = None  # the last object so far: its rows may go on in the next piece
        for piece in pieces:
            rows = piece if held is None else join([held, piece])
            bounds = run_bounds(rows.name)
            yield from self._objects.objects(rows, bounds[:-1])
            held = self._bounded(rows.slice(bounds[-2], bounds[-1]))
        if held is None:
            raise InputFileError(f"{self._path}: a table without rows")
        yield from self._objects.objects(held, np.array([0, len(held)]))
        self._report.close(self._source.uneven if isinstance(self._source, _Text) else 0)

    def _pieces(self) -> Iterator[Rows]:
        first = 0
        for batch in self._source.batches(self._columns.all, self._columns.time):
            size = len(batch[self._columns.time])
            if size:
                rows = self._rows.rows(batch, first)
                self._report.points += len(rows.band)
                yield rows
            first += size

    def _is_scattered(self) -> bool:
        """Whether rows of some name have rows of other names between them."""
        assert self._columns.name is not None
        first, last, seen = 0, None, set[str]()
        for batch in self._source.batches([self._columns.name], self._columns.name):
            column = batch[self._columns.name]
            if len(column):
                names = self._rows.names(column, first)
                starts = names[run_bounds(names)[:-1]].tolist()
                starts = starts[1:] if starts[0] == last else starts
                if not seen.isdisjoint(starts) or len(set(starts)) < len(starts):
                    return True
                seen.update(starts)
                last = names[-1]
            first += len(column)
        return False

    def _bounded(self, held: Rows) -> Rows:
        """The rows, or every second of them in order of time as often as they are too many."""
        while held.points.shape[1] > _MOST_HELD and len(held) > 1:
            time = np.full(len(held), np.inf)
            some = np.diff(held.start) > 0
            time[some] = held.points[0, held.start[:-1][some]]
            rows = np.sort(np.argsort(time, kind="stable")[::2])
            before = held.points.shape[1]
            held = held.take(rows)
            self._report.left_out[LeftOut.THINNED] += before - held.points.shape[1]
        return held
