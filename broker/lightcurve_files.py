"""Light curves from tables, Parquet or text: one row an object with lists, or one row a point.

Columns are taken by their names (``broker.lightcurve_columns``): the object's name and position, the time, the
magnitude and its error, the band and, where the archive has one, a flag of bad points. Text may have any dialect
(``broker.text_tables``), Parquet lists, structs of lists or lists of structs (HATS, nested-pandas). Tables are read in
pieces: memory does not grow with the file, unless the rows of an object are scattered over it.

Points that are no measurements are left out: codes for missing values, limits, flagged points, times that are none.
What was left out, and why, is counted, and said in one line for each reason. What remains is merged as the points of
alert packets are (``broker.state.merge``), so that a row that is there twice counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.asassn import UNNAMED, bands_of_cameras, is_asassn, split_filters
from broker.errors import InputFileError
from broker.files import Stream, inflated, open_stream
from broker.lightcurve_columns import (
    DEC,
    NAME,
    NO_BAND,
    RA,
    Columns,
    TimeColumn,
    as_text,
    bad_points,
    band_code,
    is_text,
    numbers,
    plain,
    times,
)
from broker.photometry import magnitude_to_flux
from broker.records import BANDS, LightCurve, PhotometryKind, TimeSystem
from broker.sky import angle, separation
from broker.state.merge import MAX_POINTS, merge
from broker.surveys.columns import MAX_UNKNOWN_BANDS
from broker.text_tables import TextTable
from broker.times import mjd_now

_POINTS_AT_ONCE: Final = 200_000
"""Points that are read at once from a Parquet file, about."""
_ROWS_AT_ONCE: Final = 100_000
_CSV_BLOCK: Final = 16 << 20
"""Bytes of a text that are parsed at once; a row cannot be longer."""
_MOST_HELD: Final = 1 << 20
"""Points of one object that are kept while its rows are read."""
_BRIGHTEST, _FAINTEST = -2.0, 30.0
"""Magnitudes: Sirius has -1.5, and no survey sees fainter than 28. What is outside is a code for a missing value, such
as 99.999, or the magnitude of a negative flux (ATLAS)."""
_NO_SIGNAL: Final = 2.5 / np.log(10.0)
"""An error in magnitudes at which the signal is as large as the noise: no detection. Codes (99.99) are larger."""
_CODES: Final = np.array(
    [float("9." + "9" * digits) for digits in range(2, 7)] + [float("19." + "9" * n) for n in (2, 3)]
)
"""Codes that might be magnitudes."""
_CODE_GAP: Final = 1.0
"""Magnitudes between a code and the object's nearest point; a star as bright as 9.999 has others near it."""
_OTHER_BAND_GAP: Final = 4.0
"""The same where the band has no other point: colours differ."""
_IMPOSSIBLE_GAP: Final = 5.0
"""A single point, brighter or fainter by so many magnitudes than all others of its band, is a mistake. The deepest
eclipses have 4 mag, and an outburst of more lasts for days."""
_FEW: Final = 0.02
"""Share of the points that may be taken for mistakes."""
_NAMED_GAP, _NAMED_SIGMA = 1.0, 10.0
"""A point that is so far from all others, in magnitudes, and from the median, in deviations, is named and kept."""
_MOST_NAMED: Final = 20
"""Points of one file that are named one by one."""
_MOST_BANDS: Final = 100
"""Unknown bands of one file that are told apart."""
_SHORTEST: Final = 0.01
"""Days that the points of an object must span: the shortest periods of the classes are 0.02 d."""
_SAME_PLACE: Final = 360.0
"""Arcsec within which the rows of one name must lie: moving stars and poor positions do."""
_EXACT: Final = {pa.float64(): 2**53, pa.float32(): 2**24, pa.float16(): 2**11}
"""From here on floating-point numbers skip integers, so that two ids become one."""
_UNNAMED: Final = ("hjd", "mag", "mag_err")
"""Columns of a text without names (OGLE and many others). The range of the times tells what they are."""
_FLOAT_ID: Final = r"^\d+(\.\d*[eE]\+?\d+|[eE]\+\d+|\.0*)$"
_LIST: Final = r"[,;\s\[(]"
_LIMIT: Final = r"^\s*[<>\x{2264}\x{2265}]"


class LeftOut(IntEnum):
    """Why a point is left out."""

    USED = 0
    TIME = 1
    LIMIT = 2
    MAGNITUDE = 3
    ERROR = 4
    NO_SIGNAL = 5
    CODE = 6
    FAR = 7
    BAND = 8
    POSITION = 9
    FLAGGED = 10
    REPEATED = 11
    THINNED = 12
    AT_ONCE = 13
    FILTER = 14


@dataclass(frozen=True, slots=True, eq=False)
class NamedLightCurve:
    """One object of a table."""

    name: str
    ra: float
    """ICRS degrees, as ``dec``; NaN where the table has none, or none that can be."""
    dec: float
    light_curve: LightCurve
    """In order of time; points at the same time and band are merged."""
    problem: str | None
    """Why points had to be left out, None where all are in."""
    unknown_bands: tuple[str, ...] = ()
    """Bands, as the table spells them, of points that were left out because no wavelength is known for them."""
    time_system: TimeSystem = TimeSystem.UTC
    """Of the times of ``light_curve``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """n rows of a table and the m points they hold, row by row."""

    name: NDArray[np.object_]
    ra: NDArray[np.float64]
    """(n,) ICRS degrees as they stand in the table, as ``dec``: NaN where there is none, infinite for other text."""
    dec: NDArray[np.float64]
    start: NDArray[np.int64]
    """(n + 1,) the points of row i are ``start[i]:start[i + 1]``."""
    points: NDArray[np.float64]
    """(3, m) time, magnitude, error as they stand in the table."""
    band: NDArray[np.uint8]
    """(m,) index into BANDS; of unknown ones, numbers from NO_BAND down (``_Report.unknown_band``)."""
    reason: NDArray[np.uint8]
    """(m,) LeftOut, as far as the values alone tell."""
    uneven: NDArray[np.bool_]
    """(n,) whether the row's lists differ in length; it then has no points."""

    def __len__(self) -> int:
        return len(self.name)

    def slice(self, first: int, last: int) -> _Rows:
        """Rows ``first`` to ``last``, without the latter."""
        low, high = self.start[first], self.start[last]
        return _Rows(
            self.name[first:last], self.ra[first:last], self.dec[first:last], self.start[first : last + 1] - low,
            self.points[:, low:high], self.band[low:high], self.reason[low:high], self.uneven[first:last],
        )  # fmt: skip

    def take(self, rows: NDArray[np.intp]) -> _Rows:
        """The rows with these numbers, in this order."""
        size = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(size)])
        points = np.repeat(self.start[rows] - start[:-1], size) + np.arange(start[-1])
        return _Rows(
            self.name[rows], self.ra[rows], self.dec[rows], start,
            self.points[:, points], self.band[points], self.reason[points], self.uneven[rows],
        )  # fmt: skip


def _join(parts: Sequence[_Rows]) -> _Rows:
    sizes = np.concatenate([np.diff(part.start) for part in parts])
    return _Rows(
        np.concatenate([part.name for part in parts]),
        np.concatenate([part.ra for part in parts]),
        np.concatenate([part.dec for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([part.points for part in parts], axis=1),
        np.concatenate([part.band for part in parts]),
        np.concatenate([part.reason for part in parts]),
        np.concatenate([part.uneven for part in parts]),
    )


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
            kind = column.type.value_type if _is_list(column.type) else column.type
            inside = [f"{column.name}.{kind.field(i).name}" for i in range(kind.num_fields)] if _is_struct(kind) else []
            self.names += inside or [column.name]

    def batches(self, names: Sequence[str], size_of: str) -> Iterator[dict[str, pa.Array[Any]]]:
        with pq.ParquetFile(self._path) as file:
            top = [
                name for name in file.schema_arrow.names if any(n == name or n.startswith(name + ".") for n in names)
            ]
            listed = any(_is_list(file.schema_arrow.field(name).type) for name in top)
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


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


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


@dataclass(slots=True)
class _Report:
    """What is said of one file."""

    path: Path
    columns: Columns
    say: Callable[[str], None]
    points: int = 0
    left_out: Counter[int] = field(default_factory=Counter)
    examples: dict[int, str] = field(default_factory=dict)
    """Of some reasons a value, as a text for the message."""
    bands: Counter[str] = field(default_factory=Counter)
    """Unknown ones, with their points."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Of unknown bands, in the order in which they came."""
    ways: set[str] = field(default_factory=set)
    named: int = 0
    uneven_lists: int = 0
    wide: int = 0
    """Objects whose rows lie within _SAME_PLACE, but not within a few arcsec."""

    def line(self, text: str) -> None:
        self.say(f"{self.path}: {text}")

    def unknown_band(self, name: str) -> int:
        """The code of an unknown band, from below NO_BAND on; of more than _MOST_BANDS all others have the last."""
        return NO_BAND - 1 - min(self.numbers.setdefault(name, len(self.numbers)), _MOST_BANDS - 1)

    def band_names(self, codes: NDArray[np.uint8]) -> tuple[str, ...]:
        """The names of such codes (n,), each once."""
        names, numbers = list(self.numbers), (NO_BAND - 1 - np.unique(codes)[::-1].astype(int)).tolist()
        return tuple(names[number] for number in numbers if number >= 0)

    def describe(self, counts: Counter[int], points: int, examples: dict[int, str]) -> str:
        """``3 of 60 points left out: 2 upper limits; 1 ...``."""
        parts = []
        for reason in sorted(counts):
            example = examples.get(reason)
            parts.append(f"{counts[reason]} {self._text(reason)}{f' ({example})' if example else ''}")
        return f"{sum(counts.values())} of {points} points left out: {'; '.join(parts)}"

    def _text(self, reason: int) -> str:
        columns = self.columns
        return {
            LeftOut.TIME: "without a possible time",
            LeftOut.LIMIT: "upper limits",
            LeftOut.MAGNITUDE: f"without a possible magnitude in column {columns.magnitude} "
            f"({_BRIGHTEST:g} to {_FAINTEST:g}, not 0)",
            LeftOut.ERROR: f"without a positive error in column {columns.error}",
            LeftOut.NO_SIGNAL: f"with an error of {_NO_SIGNAL:.2f} mag or more in {columns.error}: limits, or noise",
            LeftOut.CODE: f"codes such as 9.999 in column {columns.magnitude}",
            LeftOut.FAR: f"further than {_IMPOSSIBLE_GAP:g} mag from all others of their object",
            LeftOut.BAND: f"of a band that is not known (known: {', '.join(BANDS)})",
            LeftOut.POSITION: "at a position that cannot be",
            LeftOut.FLAGGED: f"flagged as bad in column {columns.flag}",
            LeftOut.REPEATED: "repeated at the same time in the same band",
            LeftOut.AT_ONCE: f"within {_SHORTEST:g} d, too short a time to tell how a star varies",
            LeftOut.FILTER: "of ASAS-SN in V or in g, and nothing tells which",
            LeftOut.THINNED: f"beyond {MAX_POINTS} in a band (an even choice in time is kept)",
        }[LeftOut(reason)]

    def time_read(self, way: str, said: str, value: float) -> None:
        """Say once how times are read."""
        if way not in self.ways:
            self.ways.add(way)
            but = "" if way == said or said == "time" else f", although the column's name says {said}"
            self.line(f"times in column {self.columns.time} ({value:.10g}, ...) are read as {way}{but}")

    def close(self, uneven: int) -> None:
        """Say what was left out of the whole file."""
        if self.bands:
            common = ", ".join(f"{band!r}" for band, _ in self.bands.most_common(8))
            self.examples[LeftOut.BAND] = f"in column {self.columns.band}: {common}"
        if self.left_out:
            self.line(self.describe(self.left_out, self.points, self.examples))
        if self.named > _MOST_NAMED:
            self.line(f"{self.named - _MOST_NAMED} more points far from the median of their object")
        if self.wide:
            self.line(f"objects with rows more than 3 arcsec apart: {self.wide}; their median position is used")
        if self.uneven_lists:
            names = f"{self.columns.time}, {self.columns.magnitude}, {self.columns.error}"
            self.line(f"rows left out for lists {names} of unequal length: {self.uneven_lists}")
        if uneven:
            self.line(f"rows left out for another number of cells than the header: {uneven}")


class _Reader:
    """One pass through one file."""

    def __init__(self, path: Path, say: Callable[[str], None], time_system: TimeSystem | None) -> None:
        self._path = path
        self._source = _source(path)
        try:
            self._columns = Columns.of(self._source.names)
        except ValueError as error:
            raise InputFileError(f"{path}: {error}") from error
        self._report = _Report(path, self._columns, say)
        texts = (path.name, *self._source.names, *self._source.header, *self._source.header.values())
        self._two_filters = any(map(is_asassn, texts))
        if isinstance(self._source, _Text) and self._source.unnamed:
            self._report.line(f"no line of column names: the columns are taken as {', '.join(_UNNAMED)}")
        self._time = TimeColumn(self._columns.time, mjd_now() + 1.0)
        self._time_system = time_system or self._time.system
        self._whole_name = self._of_header(NAME) or path.name.split(".")[0] or path.name
        self._whole_ra, self._whole_dec = (
            _angles(pa.array([self._of_header(spellings) or ""]), hours, self._source.decimal_comma)[0]
            for spellings, hours in ((RA, True), (DEC, False))
        )

    def _of_header(self, spellings: Sequence[str]) -> str | None:
        by_plain = {plain(name): value for name, value in self._source.header.items()}
        return next((by_plain[plain(s)] for s in spellings if plain(s) in by_plain), None)

    def light_curves(self) -> Iterator[NamedLightCurve]:
        """All objects, then what is to be said of the file."""
        pieces = self._pieces()
        if self._columns.name is not None and self._is_scattered():
            parts = list(pieces)
            pieces = iter([_gather(_join(parts))] if parts else [])
        held: _Rows | None = None  # the last object so far: its rows may go on in the next piece
        for piece in pieces:
            rows = piece if held is None else _join([held, piece])
            bounds = _run_bounds(rows.name)
            yield from self._objects(rows, bounds[:-1])
            held = self._bounded(rows.slice(bounds[-2], bounds[-1]))
        if held is None:
            raise InputFileError(f"{self._path}: a table without rows")
        yield from self._objects(held, np.array([0, len(held)]))
        self._report.close(self._source.uneven if isinstance(self._source, _Text) else 0)

    def _pieces(self) -> Iterator[_Rows]:
        first = 0
        for batch in self._source.batches(self._columns.all, self._columns.time):
            size = len(batch[self._columns.time])
            if size:
                rows = self._rows(batch, first)
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
                names = self._names(column, first)
                starts = names[_run_bounds(names)[:-1]].tolist()
                starts = starts[1:] if starts[0] == last else starts
                if not seen.isdisjoint(starts) or len(set(starts)) < len(starts):
                    return True
                seen.update(starts)
                last = names[-1]
            first += len(column)
        return False

    def _bounded(self, held: _Rows) -> _Rows:
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

    def _names(self, column: pa.Array[Any], first: int) -> NDArray[np.object_]:
        """(n,) names; InputFileError where they are ids that floating-point numbers do not hold."""
        name = self._columns.name
        limit = _EXACT.get(column.type)
        if limit is not None:
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)
            self._refuse_ids(values, limit, str(column.type))
            texts = [
                None if not np.isfinite(v) else str(int(v)) if v == int(v) else repr(v) for v in values.tolist()
            ]  # fmt: skip
            names = np.array(texts, np.object_)
        else:
            text: Any = as_text(column)
            floats: Any = pc.fill_null(pc.match_substring_regex(text, _FLOAT_ID), False)
            names = pc.utf8_trim_whitespace(text).to_numpy(zero_copy_only=False)
            is_float = floats.to_numpy(zero_copy_only=False)
            if is_float.any():
                names = names.copy()
                values = names[is_float].astype(np.float64)
                self._refuse_ids(values, 2**53, "text written from floating-point numbers")
                names[is_float] = [
                    str(int(v)) if v == int(v) else t for v, t in zip(values, names[is_float], strict=True)
                ]
        empty = np.flatnonzero([not value for value in names])
        if len(empty):
            names = names.copy()
            names[empty] = [f"row {first + row + 1}" for row in empty]
        assert name is not None
        return names

    def _refuse_ids(self, values: NDArray[np.float64], limit: int, kind: str) -> None:
        with np.errstate(invalid="ignore"):
            large = np.flatnonzero(np.abs(values) >= limit)
        if len(large):
            raise InputFileError(
                f"{self._path}: column {self._columns.name} holds ids as {kind}, such as {values[large[0]]:.0f}: from "
                f"{limit} on these skip integers, so that different objects have one id. Write them as int64 or text"
            )

    def _rows(self, batch: dict[str, pa.Array[Any]], first: int) -> _Rows:
        columns, comma = self._columns, self._source.decimal_comma
        lists = [_values(batch[name], comma) for name in (columns.time, columns.magnitude, columns.error)]
        counts = np.stack([count for count, _ in lists])
        uneven = (counts != counts[0]).any(axis=0)
        self._report.uneven_lists += int(uneven.sum())
        size = np.where(uneven, 0, counts[0])
        kept = [np.repeat(~uneven, count) for count, _ in lists]
        values = [value for _, value in lists]
        time = times(values[0], comma)[kept[0]]
        magnitude, error = (numbers(v, comma)[k] for v, k in zip(values[1:], kept[1:], strict=True))
        reason = self._judge(time, magnitude, error, values, kept)
        band = self._bands(None if columns.band is None else batch[columns.band], size)
        if columns.flag is not None:
            reason[_per_point(batch[columns.flag], size, lambda v: bad_points(columns.flag or "", v), comma)] = (
                LeftOut.FLAGGED
            )
        rows = len(counts[0])
        if columns.name is not None:
            names = self._names(batch[columns.name], first)
        elif (counts[0] > 1).any():
            names = np.array([f"row {first + row + 1}" for row in range(rows)], np.object_)
        else:
            names = np.full(rows, self._whole_name, np.object_)
        if columns.band is None:
            band = self._filters(band, names, None if columns.camera is None else batch[columns.camera], time, size)
        reason[(band >= len(BANDS)) & (band != UNNAMED)] = LeftOut.BAND
        ra, dec = (
            np.full(rows, whole) if name is None else _angles(_first(batch[name]), hours, comma)
            for name, whole, hours in ((columns.ra, self._whole_ra, True), (columns.dec, self._whole_dec, False))
        )
        start = np.concatenate([[0], np.cumsum(size)])
        wrong = np.repeat(_is_wrong(ra, dec), size)
        if wrong.any():
            row = int(np.searchsorted(start, np.flatnonzero(wrong)[0], "right")) - 1
            self._report.examples.setdefault(LeftOut.POSITION, f"ra {ra[row]:g}, dec {dec[row]:g} of {names[row]}")
        reason[wrong] = LeftOut.POSITION
        return _Rows(names, ra, dec, start, np.stack([time, magnitude, error]), band, reason, uneven)

    def _judge(
        self,
        time: NDArray[np.float64],
        magnitude: NDArray[np.float64],
        error: NDArray[np.float64],
        values: list[pa.Array[Any]],
        kept: list[NDArray[np.bool_]],
    ) -> NDArray[np.uint8]:
        """(m,) LeftOut by the values alone; examples for the messages."""
        reason = np.zeros(len(time), np.uint8)
        with np.errstate(invalid="ignore"):
            reason[error >= _NO_SIGNAL] = LeftOut.NO_SIGNAL
            reason[~(error > 0)] = LeftOut.ERROR
            reason[~((magnitude > _BRIGHTEST) & (magnitude < _FAINTEST) & (magnitude != 0.0))] = LeftOut.MAGNITUDE
        if is_text(values[1]):
            text: Any = values[1]
            limits: Any = pc.fill_null(pc.match_substring_regex(text, _LIMIT), False)
            reason[limits.to_numpy(zero_copy_only=False)[kept[1]]] = LeftOut.LIMIT
        mjd, ways = self._time.to_mjd(time)
        reason[np.isnan(mjd)] = LeftOut.TIME
        for way, found in ways.items():
            self._report.time_read(way, self._time.said, float(time[np.argmax(found)]))
        for which, number in ((LeftOut.MAGNITUDE, 1), (LeftOut.ERROR, 2), (LeftOut.NO_SIGNAL, 2), (LeftOut.LIMIT, 1)):
            points = np.flatnonzero(reason == which)
            if len(points) and which not in self._report.examples:
                value = values[number][int(np.flatnonzero(kept[number])[points[0]])].as_py()
                self._report.examples[which] = f"such as {value!r}"
        bad = np.flatnonzero(reason == LeftOut.TIME)
        if len(bad):
            self._report.examples.setdefault(LeftOut.TIME, self._time.mistake(float(time[bad[0]])))
        return reason

    def _bands(self, column: pa.Array[Any] | None, size: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(m,) codes for the points of all rows; a row may have one band for all its points or one for each."""
        asassn = self._columns.asassn
        if column is None:
            return np.full(size.sum(), band_code(None, asassn), np.uint8)

        def codes(values: pa.Array[Any]) -> NDArray[np.uint8]:
            encoded: Any = as_text(values).dictionary_encode()
            names = encoded.dictionary.to_pylist()
            known = [band_code(name, asassn) for name in names]
            index = pc.fill_null(encoded.indices, len(known)).to_numpy(zero_copy_only=False)
            counts = np.bincount(index, minlength=len(known) + 1).tolist()
            unknown = {str(n): count for n, code, count in zip(names, known, counts, strict=False) if code == NO_BAND}
            self._report.bands.update(unknown)
            known = [
                self._report.unknown_band(str(n)) if str(n) in unknown else c for n, c in zip(names, known, strict=True)
            ]
            found: NDArray[np.uint8] = np.array([*known, band_code(None, asassn)], np.uint8)[index]
            return found

        return _per_point(column, size, codes, False, np.uint8(NO_BAND))

    def _filters(
        self,
        band: NDArray[np.uint8],
        names: NDArray[np.object_],
        camera: pa.Array[Any] | None,
        time: NDArray[np.float64],
        size: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """``band`` (m,) of a table that names no bands, with ASAS-SN's by the camera, or UNNAMED."""
        two = np.full(len(band), self._two_filters)
        if not self._two_filters:
            two = np.repeat([is_asassn(name) for name in names], size)
        found = np.full(len(band), UNNAMED, np.uint8)
        if camera is not None:
            texts = _per_point(camera, size, lambda v: np.array(as_text(v).to_pylist(), np.object_), False, None)
            found = bands_of_cameras(texts.tolist(), self._time.to_mjd(time)[0])
            two |= found != UNNAMED
        if two.any() and "" not in self._report.ways:
            self._report.ways.add("")
            self._report.line(
                "no column for the filter: ASAS-SN's V and g are told apart by "
                f"{'camera, ' if camera is not None else ''}date and the two levels of each object"
            )
        return np.where(two, found, band)

    def _objects(self, rows: _Rows, bounds: NDArray[np.intp]) -> Iterator[NamedLightCurve]:
        """One object for the rows between each two ``bounds``."""
        time, magnitude, error = rows.points
        mjd, _ = self._time.to_mjd(time)
        flux, flux_error = magnitude_to_flux(np.where(rows.reason == 0, magnitude, np.nan), error)
        for first, last in pairwise(bounds):
            low, high = rows.start[first], rows.start[last]
            own = slice(low, high)
            reason = rows.reason[own].copy()
            problems = []
            if rows.uneven[first:last].any():
                columns = self._columns
                problems.append(f"lists {columns.time}, {columns.magnitude}, {columns.error} of unequal length")
            ra, dec, apart = _place(rows.ra[first:last], rows.dec[first:last])
            if apart > _SAME_PLACE:
                problems.append(
                    f"the rows of this name lie up to {apart / 3600:.3g} degrees apart: more than one object; "
                    "name them apart"
                )
                self._report.line(f"{rows.name[first]}: {problems[-1]}")
                reason[:] = LeftOut.POSITION
                ra = dec = float("nan")
            self._report.wide += 3.0 < apart <= _SAME_PLACE
            band = rows.band[own]
            if (band == UNNAMED).any():
                good = reason == 0
                band = band.copy()
                band[good] = split_filters(mjd[own][good], magnitude[own][good], band[good])
                reason[good & (band == UNNAMED)] = LeftOut.FILTER
            self._leave_out_far(rows.name[first], mjd[own], magnitude[own], band, reason)
            used = low + np.flatnonzero(reason == 0)
            curve = merge(
                LightCurve(
                    mjd[used], flux[used].astype(np.float32), flux_error[used].astype(np.float32),
                    np.zeros(len(used), np.float32), band[used - low],
                    np.full(len(used), PhotometryKind.DETECTION, np.uint8),
                ),
                LightCurve.empty(), 0,
            )  # fmt: skip
            counts = Counter(reason[reason > 0].tolist())
            unknown: tuple[str, ...] = ()
            if len(curve) < len(used):
                counts[LeftOut.REPEATED] = len(used) - len(curve)
            thinned = _thinned(curve)
            if len(thinned) < len(curve):
                counts[LeftOut.THINNED] = len(curve) - len(thinned)
            if len(thinned) > 1 and np.ptp(thinned.mjd) < _SHORTEST:
                counts[LeftOut.AT_ONCE] = len(thinned)
                thinned = LightCurve.empty()
            if counts:
                examples: dict[int, str] = {}
                if counts[LeftOut.TIME]:
                    bad = int(low) + int(np.argmax(reason == LeftOut.TIME))
                    examples[LeftOut.TIME] = self._time.mistake(float(time[bad]))
                if counts[LeftOut.POSITION] and apart <= _SAME_PLACE:
                    row = first + int(np.argmax(_is_wrong(rows.ra[first:last], rows.dec[first:last])))
                    examples[LeftOut.POSITION] = f"ra {rows.ra[row]:g}, dec {rows.dec[row]:g}"
                if unknown := self._report.band_names(band[reason == LeftOut.BAND]):
                    named = ", ".join(map(repr, unknown[:MAX_UNKNOWN_BANDS]))
                    examples[LeftOut.BAND] = f"in column {self._columns.band}: {named}"
                problems.append(self._report.describe(counts, high - low, examples))
            self._report.left_out.update(counts)
            yield NamedLightCurve(
                rows.name[first], ra, dec, thinned, "; ".join(problems) or None, unknown[:MAX_UNKNOWN_BANDS],
                self._time_system,
            )  # fmt: skip

    def _leave_out_far(
        self,
        name: str,
        mjd: NDArray[np.float64],
        magnitude: NDArray[np.float64],
        band: NDArray[np.uint8],
        reason: NDArray[np.uint8],
    ) -> None:
        """Mark points of one object that are codes or impossible, and name those that are far from the others.

        A row that is there twice is counted once.
        """
        used = reason == 0
        all_values = magnitude[used]
        if not len(all_values) or (np.ptp(all_values) < _NAMED_GAP and not _is_code(all_values).any()):
            return
        regular = np.unique(all_values[~_is_code(all_values)])
        for code in np.unique(band[used]):
            own = np.flatnonzero(used & (band == code))
            value = magnitude[own]
            codes = _is_code(value)
            others = np.unique(value[~codes])
            if codes.any():
                near, gap = (others, _CODE_GAP) if len(others) else (regular, _OTHER_BAND_GAP)
                wrong = codes & (_nearest(value, near) > gap)
                reason[own[wrong]] = LeftOut.CODE
                own, value = own[~wrong], value[~wrong]
            each = np.sort(np.unique(mjd[own] + 1j * value).imag)
            if len(each) < 5:
                continue
            median = float(np.median(each))
            low, high = _cluster(each, median, _IMPOSSIBLE_GAP)
            outside = (each < low) | (each > high)
            if 0 < len(np.unique(each[outside])) <= max(1, int(_FEW * len(each))):  # a code may be there often
                wrong = (value < low) | (value > high)
                reason[own[wrong]] = LeftOut.FAR
                for point in own[wrong]:
                    self._name(name, mjd[point], magnitude[point], median, code, "left out as impossible")
                own, value, each = own[~wrong], value[~wrong], each[~outside]
            deviation = 1.4826 * float(np.median(np.abs(each - median)))
            alone = each[_alone(each) & (np.abs(each - median) > max(_NAMED_GAP, _NAMED_SIGMA * deviation))]
            for point in own[np.isin(value, alone)]:
                self._name(name, mjd[point], magnitude[point], median, code, "kept")

    def _name(self, name: str, mjd: float, magnitude: float, median: float, band: int, what: str) -> None:
        self._report.named += 1
        if self._report.named <= _MOST_NAMED:
            self._report.line(
                f"{name}: magnitude {magnitude:g} at MJD {mjd:.5f} is {abs(magnitude - median):.1f} mag from the "
                f"median {median:.2f} in {BANDS[band]}, and no other is near it: {what}"
            )


def _is_code(magnitude: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Single precision gives 9.99899959 for 9.999.
    return np.asarray((np.abs(magnitude[:, None] - _CODES) < 1e-6).any(axis=1))


def _nearest(value: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) distance to the nearest of ``others``, which are sorted; infinite without any."""
    padded = np.concatenate([[-np.inf], others, [np.inf]])
    at = np.searchsorted(padded, value)
    distance: NDArray[np.float64] = np.minimum(padded[at] - value, value - padded[at - 1])
    return distance


def _cluster(value: NDArray[np.float64], median: float, gap: float) -> tuple[float, float]:
    """The least and the largest of the sorted values around the median between which there is no such gap."""
    ends = np.flatnonzero(np.diff(value) > gap)
    bounds = np.concatenate([[0], ends + 1, [len(value)]])
    runs = [(value[a], value[b - 1]) for a, b in pairwise(bounds)]
    return next(((float(a), float(b)) for a, b in runs if a <= median <= b), (float(value[0]), float(value[-1])))


def _alone(value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which of the sorted values have none within _NAMED_GAP."""
    gap = np.concatenate([[np.inf], np.diff(value), [np.inf]])
    return np.asarray((gap[1:] > _NAMED_GAP) & (gap[:-1] > _NAMED_GAP))


def _thinned(curve: LightCurve) -> LightCurve:
    """At most MAX_POINTS in each band, evenly chosen in order of time."""
    if len(curve) <= MAX_POINTS:
        return curve
    kept = []
    for band in np.unique(curve.band):
        own = np.flatnonzero(curve.band == band)
        if len(own) > MAX_POINTS:
            own = own[np.arange(MAX_POINTS) * (len(own) - 1) // (MAX_POINTS - 1)]
        kept.append(own)
    index = np.sort(np.concatenate(kept))
    return replace(
        curve,
        **{
            name: getattr(curve, name)[index]
            for name in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
        },
    )


def _is_wrong(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which positions are given, but cannot be."""
    with np.errstate(invalid="ignore"):
        return (ra < -180.0) | (ra > 360.0) | (np.abs(dec) > 90.0)


def _place(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median position of rows, and how far they lie apart, in arcsec; NaN, NaN, 0 where none has one."""
    good = np.isfinite(ra) & np.isfinite(dec) & ~_is_wrong(ra, dec)
    if not good.any():
        return float("nan"), float("nan"), 0.0
    ra, dec = np.mod(ra[good], 360.0), dec[good]
    if (ra == ra[0]).all() and (dec == dec[0]).all():
        return float(ra[0]), float(dec[0]), 0.0
    # Relative to a whole degree near all of them, so that 359.9 and 0.1 are neighbours.
    around = np.exp(1j * np.radians(ra)).sum()
    middle = float(np.round(np.degrees(np.angle(around))))
    centre_ra = float(np.mod(middle + np.median(np.mod(ra - middle + 180.0, 360.0) - 180.0), 360.0))
    centre_dec = float(np.median(dec))
    from_centre = separation(ra, dec, np.full(len(ra), centre_ra), np.full(len(ra), centre_dec))
    furthest = int(np.argmax(from_centre))
    apart = separation(ra, dec, np.full(len(ra), ra[furthest]), np.full(len(ra), dec[furthest]))
    return centre_ra, centre_dec, float(apart.max())


def _gather(rows: _Rows) -> _Rows:
    """The rows of each name together, names in the order of their first rows."""
    number = pa.array(rows.name, pa.string()).dictionary_encode().indices.to_numpy()
    return rows.take(np.argsort(number, kind="stable"))


def _run_bounds(names: NDArray[np.object_]) -> NDArray[np.intp]:
    """Where runs of equal names begin, and the end of the last."""
    return np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1, [len(names)]])


def _values(column: pa.Array[Any], decimal_comma: bool) -> tuple[NDArray[np.int64], pa.Array[Any]]:
    """How many values each row has, and all values; ``[1, 2]``, ``1 2`` and ``1;2`` in text are lists."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()  # type: ignore[attr-defined]
    if is_text(column):
        text: Any = pc.utf8_trim(pc.fill_null(column, ""), " \t")  # type: ignore[call-overload, type-var]
        pattern = _LIST.replace(",", "") if decimal_comma else _LIST
        if not pc.any(pc.match_substring_regex(text, pattern)).as_py() or _is_one_number(text):
            return np.ones(len(column), np.int64), column
        text = pc.utf8_trim(text, "[]()")
        column = pc.split_pattern_regex(text, r"[;\s]+" if decimal_comma else r"[,;\s]+")
    if not _is_list(column.type):
        return np.ones(len(column), np.int64), column
    count = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat: Any = pc.list_flatten(column)
    return count, flat


def _is_one_number(text: Any) -> bool:
    """Whether blanks stand only where one value may have them: after the sign of a limit, in a date."""
    single: Any = pc.match_substring_regex(text, r"^[<>]\s*\S+$|^\d{4}-\d{2}-\d{2} \S+$|^[^,;\s\[(]*$")
    return bool(pc.all(single).as_py())


def _per_point(
    column: pa.Array[Any],
    size: NDArray[np.int64],
    convert: Callable[[pa.Array[Any]], NDArray[Any]],
    decimal_comma: bool,
    missing: Any = False,
) -> NDArray[Any]:
    """(m,) one value for each point of all rows: a row has one for all its points, or a list with one for each."""
    if (size <= 1).all() and not _is_list(column.type):  # ``Johnson V`` is no list
        count, values = np.ones(len(column), np.int64), column
    else:
        count, values = _values(column, decimal_comma)
    converted = convert(values)
    fits = count == size
    single = (count == 1) & ~fits
    start = np.cumsum(count) - count
    result = np.full(size.sum(), missing, converted.dtype)
    result[np.repeat(fits, size)] = converted[np.repeat(fits, count)]
    result[np.repeat(single, size)] = np.repeat(converted[start[single]], size[single])
    return result


def _first(column: pa.Array[Any]) -> pa.Array[Any]:
    """The first value of each row's list; other columns as they are."""
    if not _is_list(column.type):
        return column
    first: pa.Array[Any] = pa.array([None if not value else value[0] for value in column.to_pylist()])
    return first


def _angles(column: pa.Array[Any], hours: bool, decimal_comma: bool) -> NDArray[np.float64]:
    """(n,) degrees, NaN where there is no value, infinity for text that is no angle.

    Text with colons, blanks or letters is sexagesimal, right ascension then in hours.
    """
    found = numbers(column, decimal_comma).copy()
    if is_text(column):
        texts = column.to_pylist() if np.isnan(found).any() else []
        for row in np.flatnonzero(np.isnan(found)) if texts else ():
            text = (texts[row] or "").strip()
            if text and text.lower() != "nan":
                degrees = angle(text, hours=hours)
                found[row] = np.inf if degrees is None else degrees
    return found
