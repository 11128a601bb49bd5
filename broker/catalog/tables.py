"""Catalogue tables, a piece at a time: Parquet, CSV, FITS and VOTable to columns of ours.

Parquet and text (any dialect of ``broker.tables.text``, VizieR's and ECSV too; with gzip or without) are read in
batches, FITS tables through a memory map in slices, unpacked into a temporary file first where they have gzip. A
VOTable is parsed once, as a whole, and its numbers are kept in a temporary file: convert large ones. Which format a
file has is told by its first bytes. Nothing that a table names outside itself is read.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.catalog.cds import described
from broker.catalog.columns import NULLS, Kinds, as_column, regroup
from broker.catalog.known import NAME, STORED, TEXTS, TYPE, known_columns
from broker.catalog.layout import EPOCH
from broker.catalog.plausible import POSITION, Counts, plausible
from broker.catalog.presets import FIELDS, Preset, Source
from broker.errors import InputFileError
from broker.local_files import GZIP, HEAD_BYTES, Unpacked, foreign, is_xml, open_unpacked, require_regular
from broker.sky import Array
from broker.tables import votable
from broker.tables.fits import check_fits
from broker.tables.text import UTF_16, Readable, TextTable

SUFFIXES: Final = (
    ".parquet", ".pq", ".csv", ".tsv", ".ecsv", ".txt", ".fits", ".fit", ".xml", ".vot", ".votable", ".gz",
)  # fmt: skip
"""Of the files that are read from a folder."""
_CSV_BLOCK: Final = 8 << 20
"""Bytes of a CSV file that are parsed at once; a row cannot be longer."""
_BLANKS: Final = [" " * n for n in range(1, 40)]
"""VizieR pads columns to a width."""
_MOST_UNPACKED: Final = 1 << 36
"""Bytes of a FITS file after decompression."""
_NO_VALUES: Final = "no value"
_UNEVEN: Final = "another number of cells than the header"
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
    values: dict[str, NDArray[Any]]
    """(n,) each: the columns of METADATA_FEATURES that the table has, NaN where unknown; of known variable stars
    those of ``broker.catalog.known.STORED``."""
    rows_read: int
    """Rows of the file up to the end of this piece, usable or not: where to go on."""
    skipped: int
    """Rows of this piece without a position or without any value."""
    bytes_read: int
    """About how far into the file that is."""
    unknown: Counts = field(default_factory=dict)
    """Values of all rows of this piece that are unknown, and rows that are left out ("position", "row"), by reason."""


class _Table(Protocol):
    """A table in some format."""

    names: list[str]
    units: Mapping[str, str]
    """Of columns that have one."""
    uneven: int
    """Rows left out so far for having another number of cells than the header."""

    def keep(self, names: Sequence[str], kinds: Kinds) -> None:
        """Columns that will be asked for, and no others, and which of them are no numbers."""

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        """Columns from row ``start`` on, at most ``size`` rows at once, and the bytes read so far.

        Each is (n,) float64, or bytes where it is a text.
        """


class CatalogTable:
    """One file of a catalogue, read as a preset says."""

    def __init__(self, path: Path, preset: Preset) -> None:
        """Open ``path``; raises InputFileError where it is no table, or one without positions or values."""
        self.path: Final = path
        self.known: Final = preset.known
        """Whether it is one of known variable stars."""
        with _as_input_error(path):
            self._table = _open(path)
        self._sources = self._choose(preset)
        self._factors = {ours: self._factor(ours, source.name) for ours, source in self._sources.items()}
        with _as_input_error(path):
            named = {ours: source.name for ours, source in self._sources.items()}
            texts = frozenset(named[ours] for ours in TEXTS if ours in named) if self.known else frozenset()
            kinds = Kinds(texts, {named["ra"]: 15.0, named["dec"]: 1.0})
            self._table.keep(list(dict.fromkeys(named.values())), kinds)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns besides the position that the table gives, in the order of FIELDS or of STORED."""
        fields = tuple(STORED) if self.known else FIELDS
        return tuple(name for name in fields if name in self._sources and name not in ("ra", "dec"))

    def chunks(self, start: int = 0, size: int = 100_000) -> Iterator[Chunk]:
        """The table from its row ``start`` on, about ``size`` rows at a time; raises InputFileError."""
        done = start
        uneven = 0
        for columns, bytes_read in self._pieces(tuple(self._sources), start, size):
            read = len(columns["ra"])
            done += read
            ra, dec = columns.pop("ra"), columns.pop("dec")
            placed, unknown = _placed(ra, dec)
            epoch = np.full(read, np.nan)
            if self.known:
                values, listed, of_values = known_columns(columns)
            else:
                values, of_values = plausible(columns)
                epoch = values.pop(EPOCH, epoch)
                listed = np.any([np.isfinite(column) for column in values.values()], axis=0)
            usable = placed & listed
            unknown |= of_values
            left_out = {_NO_VALUES: int((placed & ~usable).sum()), _UNEVEN: self._table.uneven - uneven}
            uneven = self._table.uneven
            unknown["row"] = {reason: count for reason, count in left_out.items() if count}
            counts = {name: reasons for name, reasons in unknown.items() if reasons}
            yield Chunk(
                np.mod(ra[usable], 360.0), dec[usable], epoch[usable],
                {name: column[usable] for name, column in values.items()},
                done, read - int(usable.sum()), bytes_read, counts,
            )  # fmt: skip

    def positions(self, size: int = 1_000_000) -> Iterator[tuple[Array, Array]]:
        """Right ascensions and declinations of all rows that have them; raises InputFileError."""
        for columns, _ in self._pieces(("ra", "dec"), 0, size):
            ra, dec = columns["ra"], columns["dec"]
            known, _ = _placed(ra, dec)
            yield ra[known], dec[known]

    def _pieces(self, ours: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
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
        needed = {NAME, TYPE} if preset.known else set(FIELDS) - {"ra", "dec", EPOCH}
        if not needed & chosen.keys():
            what = "names or types" if preset.known else "catalogue values"
            raise InputFileError(
                f"{self.path}: no column of {what}; the table has {', '.join(self._table.names)}; "
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

    def _convert(self, ours: str, column: NDArray[Any]) -> NDArray[Any]:
        convert = self._sources[ours].convert
        if column.dtype.kind == "S":
            return column
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
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            self.names = list(file.schema_arrow.names)
        self.units: Mapping[str, str] = {}
        self.uneven = 0

    def keep(self, names: Sequence[str], kinds: Kinds) -> None:
        """Nothing is read ahead."""
        self._kinds = kinds

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        with self._path.open("rb") as raw, pq.ParquetFile(raw) as file:
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
            for columns in regroup(batches, start - before, size, self._kinds):
                done += len(columns[names[0]])
                yield columns, length * done // total


class _CsvTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._text = TextTable(str(path), self._opened)
        self.names = self._text.names
        if not self.names:
            raise InputFileError(f"{path}: no header line")
        if len(set(self.names)) != len(self.names):
            raise InputFileError(f"{path}: two columns have the same name: {', '.join(self.names)[:500]}")
        self.units: Mapping[str, str] = self._text.units
        self.uneven = 0

    @contextmanager
    def _opened(self) -> Iterator[Readable]:
        with open_unpacked(self._path) as (raw, file):
            yield _Watched(file, raw, self)

    def at(self, position: int) -> None:
        """Keep how far into the file it was read."""
        self._position = position

    def keep(self, names: Sequence[str], kinds: Kinds) -> None:
        """Nothing is read ahead."""
        self._kinds = kinds

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        self.uneven = 0
        done = start
        try:
            for columns, bytes_read in self._rows(names, start, size, pa.float64()):
                done += len(columns[names[0]])
                yield columns, bytes_read
        except pa.ArrowInvalid as error:
            if "conversion error" not in str(error):
                raise
            # Text in a column of numbers, which is read slowly from there on.
            yield from self._rows(names, done, size, pa.binary())

    def _rows(
        self, names: Sequence[str], start: int, size: int, kind: pa.DataType
    ) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        uneven = 0

        def skip(_: Any) -> Literal["skip", "error"]:
            nonlocal uneven
            uneven += 1
            return "skip"

        with self._text.rows() as file:
            try:
                reader = pa_csv.open_csv(
                    file,
                    pa_csv.ReadOptions(block_size=_CSV_BLOCK, column_names=self._text.all_names),
                    pa_csv.ParseOptions(delimiter=self._text.separator, invalid_row_handler=skip),
                    pa_csv.ConvertOptions(
                        column_types={n: pa.binary() if n in self._kinds.texts else kind for n in names},
                        include_columns=list(names),
                        null_values=[*NULLS, *_BLANKS],
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise
            with reader:
                for columns in regroup(reader, start, size, self._kinds):
                    self.uneven = max(self.uneven, uneven)
                    yield columns, self._position


class _Watched:
    """A file whose position, before decompression, is kept when it is closed."""

    def __init__(self, file: IO[bytes], raw: IO[bytes], table: _CsvTable) -> None:
        self._file, self._raw, self._table = file, raw, table

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._table.at(self._raw.tell())
        return data


class _FitsTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        with open_unpacked(path) as (_, file), self._table(file, memmap=False) as table:
            self.names = list(table.columns.names)
            self.units: Mapping[str, str] = {c.name: c.unit for c in table.columns if c.unit}
        self.uneven = 0

    def keep(self, names: Sequence[str], kinds: Kinds) -> None:
        """Nothing is read ahead."""
        self._kinds = kinds

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        with self._plain() as plain, plain.open("rb") as file, self._table(file, memmap=True) as table:
            total, length = len(table.data), self._path.stat().st_size
            nulls = {c.name: c.null for c in table.columns if c.null is not None}
            for first in range(start, total, size):
                rows = table.data[first : first + size]
                columns = {}
                for name in names:
                    values = np.asarray(rows[name])
                    missing = values == nulls[name] if name in nulls else None
                    columns[name] = as_column(name, values, missing, self._kinds)
                yield columns, length * min(first + size, total) // total

    @contextmanager
    def _plain(self) -> Iterator[Path]:
        """The file without gzip."""
        with self._path.open("rb") as file:
            packed = file.read(2) == GZIP
        unpacked = Unpacked(self._path, _MOST_UNPACKED) if packed else None
        yield self._path if unpacked is None else unpacked.path

    @contextmanager
    def _table(self, file: IO[bytes], *, memmap: bool) -> Iterator[Any]:
        """The first binary table of a file."""
        from astropy.io import fits

        check_fits(file)
        file.seek(0)
        with fits.open(file, mode="readonly", memmap=memmap, disable_image_compression=True) as found:
            table = next((hdu for hdu in found if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)), None)
            if table is None:
                raise InputFileError(f"{self._path}: no table in this FITS file")
            yield table


class _VoTable:
    def __init__(self, path: Path) -> None:
        with open_unpacked(path) as (_, file):
            table = votable.read(file).get_first_table()
        # The name is what the catalogue calls a column; the ID, a name made fit for XML, keys the array.
        self._ids = {field.name or field.ID: field.ID for field in table.fields}
        self.names = list(self._ids)
        self.units: Mapping[str, str] = {
            field.name or field.ID: str(field.unit) for field in table.fields if field.unit is not None
        }
        self.uneven = 0
        self._array = table.array
        self._length = path.stat().st_size

    def keep(self, names: Sequence[str], kinds: Kinds) -> None:
        """Keep these columns on disk, in a record for each row, and nothing in memory."""
        columns = {}
        for name in names:
            column = self._array[self._ids[name]]
            columns[name] = as_column(name, np.ma.getdata(column), np.ma.getmaskarray(column), kinds)
        records = np.empty(len(self._array), [(name, column.dtype) for name, column in columns.items()])
        for name, column in columns.items():
            records[name] = column
        with tempfile.NamedTemporaryFile(prefix="trifid-", suffix=".npy", delete=False) as file:
            self._file = Path(file.name)
            self._delete = weakref.finalize(self, self._file.unlink, missing_ok=True)
            np.save(file, records)
        self._array = None

    def pieces(self, names: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        columns = np.load(self._file, mmap_mode="r", allow_pickle=False)
        total = len(columns)
        for first in range(start, total, size):
            rows = {name: np.array(columns[name][first : first + size]) for name in names}
            yield rows, self._length * min(first + size, total) // total


def _open(path: Path) -> _Table:
    require_regular(path)
    with open_unpacked(path) as (_, file):
        start = file.read(HEAD_BYTES)
    if start.startswith(b"PAR1"):
        return _ParquetTable(path)
    if start.startswith(b"SIMPLE  ="):
        return _FitsTable(path)
    if (reason := foreign(start)) is not None:
        raise InputFileError(f"{path}: {reason}")
    if is_xml(start):
        return _VoTable(path)
    if b"\0" in start and not start.startswith(UTF_16):
        raise InputFileError(f"{path}: neither Parquet, FITS, VOTable nor CSV")
    return described(path, start) or _CsvTable(path)


def _placed(ra: Array, dec: Array) -> tuple[NDArray[np.bool_], Counts]:
    """Which rows have a position, and why the others have none."""
    blank = np.isnan(ra) | np.isnan(dec)
    with np.errstate(invalid="ignore"):
        inside = (ra >= -180.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    zero = (ra == 0.0) & (dec == 0.0)
    counts = {
        "blank": int(blank.sum()),
        "0, 0": int(zero.sum()),
        "not in degrees": int((~blank & ~inside).sum()),
    }
    return inside & ~zero, {POSITION: {reason: count for reason, count in counts.items() if count}}


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Whatever the libraries raise for a file that is damaged or no table, as InputFileError."""
    try:
        yield
    except InputFileError:
        raise
    except Exception as error:  # the readers of damaged files raise many kinds, such as zlib's own
        raise InputFileError(f"{path}: {str(error)[:500] or type(error).__name__}") from error
