"""Light curves from tables, Parquet or CSV: one row an object with lists, or one row a point.

Columns: ``name, ra, dec``, the time as ``mjd`` or ``hjd`` (a full Julian date), ``mag`` or ``vmag``, its
error as ``mag_err`` or ``vmag_err``, and optionally ``band``. Tables are read in pieces: memory does not grow
with the file, unless the rows of an object are scattered over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.errors import InputFileError
from broker.photometry import magnitude_to_flux
from broker.records import BAND_CODE, BANDS, JD_OF_MJD_0, LightCurve, PhotometryKind

_LIST_ROWS: Final = 512
"""Rows with lists that are read at once from a Parquet file."""
_POINT_ROWS: Final = 100_000
"""The same for rows of one point."""
_CSV_BLOCK: Final = 16 << 20
"""Bytes of a CSV file that are read at once; a row cannot be longer."""
_NUMBER: Final = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_BAND_NAMES: Final = {
    **{band.split(":")[1]: code for code, band in reversed(list(enumerate(BANDS)))},
    **{band: code for code, band in enumerate(BANDS)},
}
"""Band names with their survey, and bare ones: ``V`` is asas:V; ``g``, ``r``, ``i`` ZTF's, others LSST's."""
_NO_BAND: Final = 255
_BRIGHTEST, _FAINTEST = -30.0, 40.0
"""Magnitudes outside are codes for a missing value, such as 99.999."""
DEFAULT_BAND: Final = "asas:V"


@dataclass(frozen=True, slots=True, eq=False)
class NamedLightCurve:
    """One object of a table."""

    name: str
    ra: float
    """ICRS degrees, as ``dec``; NaN where the table has no number."""
    dec: float
    light_curve: LightCurve
    problem: str | None
    """Why points had to be left out, None where all are in."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """The names of the columns in one table."""

    time: str
    magnitude: str
    error: str
    band: str | None

    @staticmethod
    def of(path: Path, names: Sequence[str]) -> _Columns:
        def choose(*options: str) -> str:
            found = [name for name in options if name in names]
            if not found:
                raise InputFileError(
                    f"{path}: no column {' or '.join(options)}; the table has {', '.join(names) or 'none'}"
                )
            return found[0]

        for name in ("name", "ra", "dec"):
            choose(name)
        return _Columns(
            choose("mjd", "hjd"),
            choose("mag", "vmag"),
            choose("mag_err", "vmag_err"),
            "band" if "band" in names else None,
        )

    @property
    def all(self) -> list[str]:
        return [
            "name",
            "ra",
            "dec",
            self.time,
            self.magnitude,
            self.error,
            *([self.band] if self.band else []),
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """n rows of a table and the m points they hold, row by row."""

    name: NDArray[np.object_]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    start: NDArray[np.int64]
    """(n + 1,) the points of row i are ``start[i]:start[i + 1]``."""
    points: NDArray[np.float64]
    """(3, m) time, magnitude, error as they stand in the table."""
    band: NDArray[np.uint8]
    """(m,) index into BANDS, _NO_BAND where unknown."""
    uneven: NDArray[np.bool_]
    """(n,) whether the row's lists differ in length; it then has no points."""

    def __len__(self) -> int:
        return len(self.name)

    def slice(self, first: int, last: int) -> _Rows:
        """Rows ``first`` to ``last``, without the latter."""
        low, high = self.start[first], self.start[last]
        return _Rows(
            self.name[first:last],
            self.ra[first:last],
            self.dec[first:last],
            self.start[first : last + 1] - low,
            self.points[:, low:high],
            self.band[low:high],
            self.uneven[first:last],
        )

    def take(self, rows: NDArray[np.intp]) -> _Rows:
        """The rows with these numbers, in this order."""
        size = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(size)])
        points = np.repeat(self.start[rows] - start[:-1], size) + np.arange(start[-1])
        return _Rows(
            self.name[rows],
            self.ra[rows],
            self.dec[rows],
            start,
            self.points[:, points],
            self.band[points],
            self.uneven[rows],
        )


def _join(parts: Sequence[_Rows]) -> _Rows:
    sizes = np.concatenate([np.diff(part.start) for part in parts])
    return _Rows(
        np.concatenate([part.name for part in parts]),
        np.concatenate([part.ra for part in parts]),
        np.concatenate([part.dec for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([part.points for part in parts], axis=1),
        np.concatenate([part.band for part in parts]),
        np.concatenate([part.uneven for part in parts]),
    )


def read_light_curves(path: Path) -> Iterator[NamedLightCurve]:
    """Each object of a table once, in the order of their first rows; rows of one name are put together.

    Points whose time, magnitude or error is no finite number, whose error is not positive or whose band is
    unknown are left out, and ``problem`` says so: an object may thus have an empty light curve, but no name
    is lost. A row without a name is called ``row <number>``. Magnitudes are taken as AB (see
    ``broker.photometry``) and as total flux. Raises InputFileError where the file is not such a table.
    """
    try:
        columns = _Columns.of(path, _column_names(path))
        pieces = _read(path, columns)
        if _is_scattered(path):
            pieces = iter([_gather(_join(list(pieces)))])
        held: _Rows | None = None  # the last object so far: its rows may go on in the next piece
        for piece in pieces:
            rows = piece if held is None else _join([held, piece])
            bounds = _run_bounds(rows.name)
            yield from _light_curves(rows, bounds[:-1], columns)
            held = rows.slice(bounds[-2], bounds[-1])
        if held is not None:
            yield from _light_curves(held, np.array([0, len(held)]), columns)
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _column_names(path: Path) -> list[str]:
    if _is_parquet(path):
        return list(pq.read_schema(path).names)
    with pa_csv.open_csv(path) as reader:
        return list(reader.schema.names)


def _batches(path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns ``names`` of a table, piece by piece; those of a CSV file as text."""
    if _is_parquet(path):
        with pq.ParquetFile(path) as file:
            lists = any(pa.types.is_nested(file.schema_arrow.field(name).type) for name in names)
            yield from file.iter_batches(_LIST_ROWS if lists else _POINT_ROWS, columns=names)
        return
    convert = pa_csv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
    )
    with pa_csv.open_csv(path, pa_csv.ReadOptions(block_size=_CSV_BLOCK), pa_csv.ParseOptions(), convert) as reader:
        yield from reader


def _read(path: Path, columns: _Columns) -> Iterator[_Rows]:
    first = 0
    for batch in _batches(path, columns.all):
        if batch.num_rows:
            yield _rows(batch, columns, first)
        first += batch.num_rows


def _is_scattered(path: Path) -> bool:
    """Whether rows of some name have rows of other names between them."""
    first, last, seen = 0, None, set[str]()
    for batch in _batches(path, ["name"]):
        if batch.num_rows:
            names = _names(batch, first)
            starts = names[_run_bounds(names)[:-1]].tolist()
            starts = starts[1:] if starts[0] == last else starts
            if not seen.isdisjoint(starts) or len(set(starts)) < len(starts):
                return True
            seen.update(starts)
            last = names[-1]
        first += batch.num_rows
    return False


def _gather(rows: _Rows) -> _Rows:
    """The rows of each name together, names in the order of their first rows."""
    _, first, number = np.unique(rows.name.astype(str), return_index=True, return_inverse=True)
    return rows.take(np.argsort(first[number], kind="stable"))


def _run_bounds(names: NDArray[np.object_]) -> NDArray[np.intp]:
    """Where runs of equal names begin, and the end of the last."""
    return np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1, [len(names)]])


def _names(batch: pa.RecordBatch, first: int) -> NDArray[np.object_]:
    names = batch.column("name").cast(pa.string()).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero([not name for name in names]):
        names[row] = f"row {first + row + 1}"
    return names


def _rows(batch: pa.RecordBatch, columns: _Columns, first: int) -> _Rows:
    texts = [_values(batch.column(name)) for name in (columns.time, columns.magnitude, columns.error)]
    counts = np.stack([count for count, _ in texts])
    uneven = (counts != counts[0]).any(axis=0)
    points = np.stack([_numbers(values)[np.repeat(~uneven, count)] for count, values in texts])
    size = np.where(uneven, 0, counts[0])
    return _Rows(
        name=_names(batch, first),
        ra=_numbers(batch.column("ra")),
        dec=_numbers(batch.column("dec")),
        start=np.concatenate([[0], np.cumsum(size)]),
        points=points,
        band=_bands(batch.column(columns.band) if columns.band else None, size),
        uneven=uneven,
    )


def _values(column: pa.Array[Any]) -> tuple[NDArray[np.int64], pa.Array[Any]]:
    """How many values each row has, and all values; ``[1, 2]``, ``1 2`` and ``1;2`` in text are lists."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text: Any = pc.utf8_trim(pc.fill_null(column, ""), "[]() \t")  # type: ignore[call-overload, type-var]
        column = pc.split_pattern_regex(text, r"[,;\s]+")
    if not pa.types.is_nested(column.type):
        return np.ones(len(column), np.int64), column
    count = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return count, pc.list_flatten(column)


def _numbers(column: pa.Array[Any]) -> NDArray[np.float64]:
    """Values as numbers, NaN where there is none."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.match_substring_regex(column, _NUMBER), column, None)
        column = pc.utf8_trim_whitespace(column)
    numbers: Any = pc.fill_null(column.cast(pa.float64()), pa.scalar(np.nan))
    return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)


def _bands(column: pa.Array[Any] | None, size: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Codes for the points of all rows; a row may have one band for all its points or one for each."""
    if column is None:
        return np.full(size.sum(), BAND_CODE[DEFAULT_BAND], np.uint8)
    count, values = _values(column)
    names, number = np.unique(
        np.array([value or DEFAULT_BAND for value in values.cast(pa.string()).to_pylist()], dtype=str),
        return_inverse=True,
    )
    code = np.array([_BAND_NAMES.get(name.strip("'\""), _NO_BAND) for name in names], np.uint8)[number]
    fits = count == size
    single = np.flatnonzero((count == 1) & ~fits)
    start = np.cumsum(count) - count
    bands = np.full(size.sum(), _NO_BAND, np.uint8)
    bands[np.repeat(fits, size)] = code[np.repeat(fits, count)]
    bands[np.repeat(np.isin(np.arange(len(size)), single), size)] = np.repeat(code[start[single]], size[single])
    return bands


def _light_curves(rows: _Rows, bounds: NDArray[np.intp], columns: _Columns) -> Iterator[NamedLightCurve]:
    """One object for the rows between each two ``bounds``."""
    time, magnitude, error = rows.points
    with np.errstate(invalid="ignore"):
        good = (
            np.isfinite(time)
            & ((magnitude > _BRIGHTEST) & (magnitude < _FAINTEST))
            & (np.isfinite(error) & (error > 0))
            & (rows.band != _NO_BAND)
        )
    flux, flux_error = magnitude_to_flux(np.where(good, magnitude, np.nan), error)
    mjd = time - (JD_OF_MJD_0 if columns.time == "hjd" else 0.0)
    for first, last in pairwise(bounds):
        points = np.arange(rows.start[first], rows.start[last])
        used = points[good[points]]
        used = used[np.argsort(mjd[used], kind="stable")]
        problems = []
        if rows.uneven[first:last].any():
            problems.append(f"lists {columns.time}, {columns.magnitude}, {columns.error} of unequal length")
        if len(used) < len(points):
            problems.append(
                f"{len(points) - len(used)} of {len(points)} points without finite time, possible magnitude, "
                "positive error or known band"
            )
        yield NamedLightCurve(
            name=rows.name[first],
            ra=rows.ra[first],
            dec=rows.dec[first],
            light_curve=LightCurve(
                mjd[used],
                flux[used].astype(np.float32),
                flux_error[used].astype(np.float32),
                np.zeros(len(used), np.float32),
                rows.band[used],
                np.full(len(used), PhotometryKind.DETECTION, np.uint8),
            ),
            problem="; ".join(problems) or None,
        )
