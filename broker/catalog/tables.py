"""Catalogue tables, a piece at a time: Parquet, CSV, FITS and VOTable to columns of ours.

Parquet and CSV (also tab separated, as VizieR writes it, and ECSV; gzip too) are read in batches, FITS tables
through a memory map in slices. A VOTable is read as a whole: convert large ones. Which format a file has is told
by its first bytes.
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.assemble.metadata import MAGNITUDES
from broker.catalog.layout import EPOCH
from broker.catalog.presets import FIELDS, Preset, Source
from broker.errors import InputFileError
from broker.sky import Array

SUFFIXES: Final = (
    ".parquet", ".pq", ".csv", ".tsv", ".ecsv", ".txt", ".fits", ".fit", ".xml", ".vot", ".votable", ".gz",
)  # fmt: skip
"""Of the files that are read from a folder."""
_CSV_BLOCK: Final = 8 << 20
"""Bytes of a CSV file that are parsed at once; a row cannot be longer."""
_NULLS: Final = ["", "null", "NULL", "Null", "nan", "NaN", "NAN", "NA", "N/A", "None", "--", "\\N"]
_BLANKS: Final = [" " * n for n in range(1, 40)]
"""VizieR pads columns to a width."""
_BRIGHTEST, _FAINTEST = -30.0, 40.0
"""Magnitudes outside are codes for a missing value, such as 99.999."""
_UNITS: Final = {
    "ra": "deg", "dec": "deg", EPOCH: "yr", "parallax": "mas", "parallax_error": "mas",
    "pmra": "mas/yr", "pmra_error": "mas/yr", "pmdec": "mas/yr", "pmdec_error": "mas/yr", "pm": "mas/yr",
}  # fmt: skip
"""Of our columns; a magnitude has none that could differ."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """n usable rows of a table."""

    ra: Array
    """(n,) ICRS degrees, 0 to 360."""
    dec: Array
    """(n,) ICRS degrees."""
    epoch: Array
    """(n,) Julian years; NaN where the table does not say."""
    values: dict[str, Array]
    """(n,) each: the columns of METADATA_FEATURES that the table has; NaN where unknown."""
    rows_read: int
    """Rows of the file up to the end of this piece, usable or not: where to go on."""
    skipped: int
    """Rows of this piece without a position or without any value."""
    bytes_read: int
    """About how far into the file that is."""


class _Table(Protocol):
    """A table in some format."""

    names: list[str]
    units: Mapping[str, str]
    """Of columns that have one."""

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        """Columns from row ``start`` on, at most ``size`` rows at once, and the bytes read so far."""


class CatalogTable:
    """One file of a catalogue, read as a preset says."""

    def __init__(self, path: Path, preset: Preset) -> None:
        """Open ``path``; raises InputFileError where it is no table, or one without positions or values."""
        self.path: Final = path
        with _as_input_error(path):
            self._table = _open(path)
        self._sources = self._choose(preset)
        self._factors = {ours: self._factor(ours, source.name) for ours, source in self._sources.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns besides the position that the table gives, in the order of FIELDS."""
        return tuple(name for name in FIELDS if name in self._sources and name not in ("ra", "dec"))

    def chunks(self, start: int = 0, size: int = 100_000) -> Iterator[Chunk]:
        """The table from its row ``start`` on, about ``size`` rows at a time; raises InputFileError."""
        done = start
        for columns, bytes_read in self._pieces(tuple(self._sources), start, size):
            read = len(columns["ra"])
            done += read
            ra, dec = columns.pop("ra"), columns.pop("dec")
            epoch = columns.pop(EPOCH, np.full(read, np.nan))
            values = {name: _plausible(name, column) for name, column in columns.items()}
            with np.errstate(invalid="ignore"):
                usable = (ra >= -180.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
            usable &= np.any([np.isfinite(column) for column in values.values()], axis=0)
            yield Chunk(
                np.mod(ra[usable], 360.0), dec[usable], epoch[usable],
                {name: column[usable] for name, column in values.items()},
                done, read - int(usable.sum()), bytes_read,
            )  # fmt: skip

    def positions(self, size: int = 1_000_000) -> Iterator[tuple[Array, Array]]:
        """Right ascensions and declinations of all rows that have them; raises InputFileError."""
        for columns, _ in self._pieces(("ra", "dec"), 0, size):
            ra, dec = columns["ra"], columns["dec"]
            known = np.isfinite(ra) & (np.abs(dec) <= 90.0)
            yield ra[known], dec[known]

    def _pieces(self, ours: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        names = list(dict.fromkeys(self._sources[name].name for name in ours))
        with _as_input_error(self.path):
            for columns, bytes_read in self._table.pieces(names, start, size):
                yield {name: self._convert(name, columns[self._sources[name].name]) for name in ours}, bytes_read

    def _choose(self, preset: Preset) -> dict[str, Source]:
        """For each of our columns the one of the table; raises InputFileError where too few are there."""
        by_lower = {name.lower(): name for name in reversed(self._table.names)}
        chosen = {}
        for ours, sources in preset.columns.items():
            for source in sources:
                exact = source.name if source.name in self._table.names else by_lower.get(source.name.lower())
                if exact is not None:
                    chosen[ours] = Source(exact, source.convert)
                    break
        wanted = [name for name in ("ra", "dec") if name not in chosen]
        if wanted:
            tried = " or ".join(" and ".join(s.name for s in preset.columns[name]) for name in wanted)
            raise InputFileError(
                f"{self.path}: no column for {' and '.join(wanted)} (looked for {tried}); "
                f"the table has {', '.join(self._table.names) or 'none'}"
            )
        if not set(chosen) - {"ra", "dec", EPOCH}:
            raise InputFileError(
                f"{self.path}: no column of catalogue values; the table has {', '.join(self._table.names)}; "
                "name them with --preset or --column"
            )
        return chosen

    def _factor(self, ours: str, theirs: str) -> float:
        """What to multiply a column with to have it in our unit."""
        from astropy import units

        text = self._table.units.get(theirs, "").strip()
        if not text or ours not in _UNITS or self._sources[ours].convert is not None:
            return 1.0
        unit = units.Unit(text, parse_strict="silent")
        if isinstance(unit, units.UnrecognizedUnit):
            return 1.0
        try:
            return float(unit.to(units.Unit(_UNITS[ours])))
        except units.UnitConversionError as error:
            raise InputFileError(
                f"{self.path}: column {theirs} is in {text}, which is not {_UNITS[ours]} in any scale"
            ) from error

    def _convert(self, ours: str, column: Array) -> Array:
        convert = self._sources[ours].convert
        return column * self._factors[ours] if convert is None else convert(column)


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files named, and those with a known suffix in the folders named; raises InputFileError where none is."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith((".", "_")))
            files = sorted(p for p in inside if p.is_file())
            if not files:
                raise InputFileError(f"{path}: no tables in this folder ({', '.join(SUFFIXES)})")
            found += files
        else:
            found.append(path)
    return list(dict.fromkeys(found))


class _ParquetTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            self.names = list(file.schema_arrow.names)
        self.units: Mapping[str, str] = {}

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        with pq.ParquetFile(self._path) as file:
            length = self._path.stat().st_size
            total = max(file.metadata.num_rows, 1)
            # Whole row groups before the start need not be read.
            group, before = 0, 0
            while group < file.num_row_groups:
                rows = file.metadata.row_group(group).num_rows
                if before + rows > start:
                    break
                group, before = group + 1, before + rows
            groups = list(range(group, file.num_row_groups))
            batches = file.iter_batches(size, row_groups=groups, columns=list(names)) if groups else iter(())
            done = start
            for columns in _regroup(batches, start - before, size):
                done += len(columns[names[0]])
                yield columns, length * done // total


class _CsvTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as (_, file):
            self.names, self._delimiter, units = _read_header(file, path)
        self.units: Mapping[str, str] = units

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        with self._open() as (raw, file):
            _read_header(file, self._path)
            try:
                reader = pa_csv.open_csv(
                    file,
                    pa_csv.ReadOptions(block_size=_CSV_BLOCK, column_names=self.names),
                    # Rows of another length, such as a comment at the end, are no rows of the table.
                    pa_csv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=lambda _: "skip"),
                    pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pa.float64()),
                        include_columns=list(names),
                        null_values=[*_NULLS, *_BLANKS],
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise
            with reader:
                for columns in _regroup(reader, start, size):
                    yield columns, raw.tell()

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """The file, and its contents with gzip taken off."""
        with self._path.open("rb") as raw:
            if raw.peek(2)[:2] == _GZIP:
                with gzip.open(raw) as unpacked:
                    yield raw, cast(IO[bytes], unpacked)
            else:
                yield raw, raw


class _FitsTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as table:
            self.names = list(table.columns.names)
            self.units: Mapping[str, str] = {c.name: c.unit for c in table.columns if c.unit}

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        with self._open() as table:
            total, length = len(table.data), self._path.stat().st_size
            nulls = {c.name: c.null for c in table.columns if c.null is not None}
            for first in range(start, total, size):
                rows = table.data[first : first + size]
                columns = {}
                for name in names:
                    values = np.asarray(rows[name])
                    missing = values == nulls[name] if name in nulls else None
                    columns[name] = _numbers(name, values, missing)
                yield columns, length * min(first + size, total) // total

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The first binary table of the file."""
        from astropy.io import fits

        with fits.open(self._path, memmap=True) as file:
            table = next((hdu for hdu in file if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)), None)
            if table is None:
                raise InputFileError(f"{self._path}: no table in this FITS file")
            yield table


class _VoTable:
    def __init__(self, path: Path) -> None:
        from astropy.io import votable

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what the standard asks for and services do not keep
            table = votable.parse_single_table(path, verify="ignore")
        # The name is what the catalogue calls a column; the ID, a name made fit for XML, keys the array.
        self._ids = {field.name or field.ID: field.ID for field in table.fields}
        self.names = list(self._ids)
        self.units: Mapping[str, str] = {
            field.name or field.ID: str(field.unit) for field in table.fields if field.unit is not None
        }
        self._array = table.array
        self._length = path.stat().st_size

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        total = len(self._array)
        for first in range(start, total, size):
            rows = self._array[first : first + size]
            columns = {}
            for name in names:
                column = rows[self._ids[name]]
                columns[name] = _numbers(name, np.ma.getdata(column), np.ma.getmaskarray(column))
            yield columns, self._length * min(first + size, total) // total


_GZIP: Final = b"\x1f\x8b"


def _open(path: Path) -> _Table:
    with path.open("rb") as file:
        start = file.peek(2)[:2]
        if start == _GZIP:
            with gzip.open(file) as unpacked:
                start = unpacked.read(2000)
        else:
            start = file.read(2000)
    if start.startswith(b"PAR1"):
        return _ParquetTable(path)
    if start.startswith(b"SIMPLE  ="):
        return _FitsTable(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _VoTable(path)
    if b"\0" in start:
        raise InputFileError(f"{path}: neither Parquet, FITS, VOTable nor CSV")
    return _CsvTable(path)


def _read_header(file: IO[bytes], path: Path) -> tuple[list[str], str, dict[str, str]]:
    """Column names, delimiter and units of a CSV table; ``file`` is left at its first row."""
    line = "#"
    while line.startswith("#") or not line.strip():
        raw = file.readline()
        if not raw:
            raise InputFileError(f"{path}: no header line")
        line = raw.decode("utf-8-sig", "replace").rstrip("\r\n")
    delimiter = max(",\t;| ", key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    if len(set(names)) != len(names):
        raise InputFileError(f"{path}: two columns have the same name: {', '.join(names)}")
    # VizieR puts a line of units and one of dashes below the names.
    start = file.tell()
    below, dashes = (file.readline().decode("utf-8", "replace").rstrip("\r\n") for _ in range(2))
    if dashes.startswith("--") and not dashes.strip("-" + delimiter):
        return names, delimiter, {n: u.strip() for n, u in zip(names, below.split(delimiter), strict=False) if u}
    file.seek(start)
    return names, delimiter, {}


def _regroup(batches: Iterable[pa.RecordBatch], start: int, size: int) -> Iterator[dict[str, Array]]:
    """Batches of any length as pieces of ``size`` rows, without the first ``start`` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        skipped = min(start, batch.num_rows)
        start -= skipped
        rest = batch.slice(skipped)
        while rows + rest.num_rows >= size:
            waiting.append(rest.slice(0, size - rows))
            yield _arrays(waiting)
            rest, waiting, rows = rest.slice(size - rows), [], 0
        if rest.num_rows:
            waiting.append(rest)
            rows += rest.num_rows
    if waiting:
        yield _arrays(waiting)


def _arrays(batches: list[pa.RecordBatch]) -> dict[str, Array]:
    table = pa.Table.from_batches(batches)
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            try:
                column = column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"column {name} holds {column.type}, not numbers: {error}") from error
        columns[name] = np.asarray(column.to_numpy(), np.float64)
    return columns


def _numbers(name: str, values: NDArray[Any], missing: NDArray[np.bool_] | None) -> Array:
    """A column as float64, NaN where missing."""
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise ValueError(f"column {name} holds {values.dtype} of shape {values.shape[1:]}, not numbers")
    numbers = values.astype(np.float64)
    if missing is not None:
        numbers[missing] = np.nan
    return numbers


def _plausible(name: str, column: Array) -> Array:
    """A column without infinities and codes for missing values."""
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(column)
        if name in MAGNITUDES:
            bad |= (column < _BRIGHTEST) | (column > _FAINTEST)
        elif name.startswith("e_") or name.endswith("_error"):
            bad |= column < 0
    return np.where(bad, np.nan, column)


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Whatever the libraries raise for a file that is damaged or no table, as InputFileError."""
    try:
        yield
    except InputFileError:
        raise
    # astropy's VOTable errors are ValueError or, as gzip's, OSError; a missing END card is OSError; expat's is its own.
    except (OSError, EOFError, ValueError, LookupError, TypeError, SyntaxError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error
