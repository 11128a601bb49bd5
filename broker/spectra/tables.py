"""Spectra in plain tables: which column is which, in any format.

A table has a row a pixel, or a row a spectrum with arrays in its columns. Names are taken case-insensitively and may
carry a unit or a medium: ``wave_air``, ``wavelength [nm]``, ``lambda_vac_um``. What is said of the whole spectrum
(position, time, redshift, ...) comes from columns of that name or from the table's header.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.sky import angle
from broker.spectra.normalise import MAX_PIXELS, MJD_RANGE, RawSpectrum, UnusableSpectrumError, error_of_ivar
from broker.tables import votable
from broker.tables.text import UTF_16, decoded
from broker.times import JD_OF_MJD_0, mjd_of

Array = NDArray[np.float64]

_WAVELENGTH: Final = ("wavelength", "wave", "wavelengths", "lambda", "lam", "wl", "spectralaxis")
_LOG_WAVELENGTH: Final = ("loglam", "logwave", "loglambda", "logwavelength")
_FLUX: Final = ("flux", "fluxdensity", "flambda", "fluxlambda", "flam")
_ERROR: Final = (
    "error", "fluxerror", "err", "fluxerr", "eflux", "errflux", "sigma", "fluxsigma", "uncertainty", "fluxuncertainty",
    "unc", "fluxunc", "std", "fluxstd",
)  # fmt: skip
_IVAR: Final = ("ivar", "fluxivar", "invvar", "inversevariance")
_VARIANCE: Final = ("var", "variance", "fluxvar", "fluxvariance")
_MASK: Final = ("mask", "andmask", "badpixel", "bad")
_KNOWN: Final = frozenset((*_WAVELENGTH, *_LOG_WAVELENGTH, *_FLUX, *_ERROR, *_IVAR, *_VARIANCE, *_MASK))
_NAMES: Final = {
    "spectrum_id": ("spectrum_id", "spectrumid", "specid", "spec_id", "id"),
    "survey": ("survey",),
    "object_id": ("object_id", "objectid"),
}
_UNITS_IN_NAMES: Final = {
    "nm": "nm", "um": "um", "micron": "um", "microns": "um", "angstrom": "Angstrom", "angstroms": "Angstrom",
    "ang": "Angstrom", "aa": "Angstrom", "a": "Angstrom", "jy": "Jy", "mjy": "mJy",
}  # fmt: skip
_MEDIA_IN_NAMES: Final = {"air": True, "vac": False, "vacuum": False}
_BRACKETS: Final = re.compile(r"^(.*?)\s*[\[(](.+)[\])]\s*$")
_NO_VALUE: Final = frozenset({"", "--", "-", "---", "null", "none", "masked", "n/a", "na", "indef", "nan"})
_COMMENT: Final = ("#", "!", "%", ";", "\\", "//", "*")
"""With which a line begins that is no row: of most programs, IRAF and Fortran, LaTeX, IDL, IPAC, C."""
_AFTER_A_ROW: Final = re.compile(r"\s+[#!].*$")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x19\x1b-\x1f]")
_SEPARATORS: Final = (";", "\t", ",", "|", None)
_MAX_LINES: Final = 2 * MAX_PIXELS
_MAX_CHUNK_VALUES: Final = 50_000_000
"""In one column of a row group of a Parquet file, which is decoded at once."""
_SPECTRA_AT_ONCE: Final = 16
_KEYWORD: Final = re.compile(r"^\s*([A-Za-z][\w\- ]{0,30}?)\s*[:=]\s*(.+?)\s*$")
_TRUE: Final = frozenset({"t", "true", "1", "yes"})


@dataclass(frozen=True, slots=True, eq=False)
class SpectrumColumn:
    """One column, and what the file says of it."""

    name: str
    values: Any
    """(rows,) or (rows, m), or a sequence of arrays."""
    unit: str | None = None
    ucd: str = ""
    """IVOA's word for what it is; ``em.wl;obs.atmos`` is a wavelength in air (ESO's science data products)."""


@dataclass(frozen=True, slots=True, eq=False)
class SpectrumTable:
    """Columns and header of any format."""

    columns: list[SpectrumColumn]
    header: Mapping[str, Any] = field(default_factory=dict)
    """Values that hold for all rows, by name."""


def read_text(data: bytes) -> SpectrumTable:
    """A table in CSV, ECSV, IPAC's form or separated by white space, in UTF-8, UTF-16 or Latin-1.

    Comments begin with ``#``, ``!``, ``%``, ``;``, ``\\``, ``//`` or ``*``; those of the form ``name: value`` or
    ``name = value`` are the header. The names of the columns are in a line above the numbers, or in the last comment
    there; without any, the columns are wavelength, flux and, if there is a third, error. Numbers may have Fortran's
    D exponents and, where the separator is no comma, decimal commas.

    Raises UnusableSpectrumError for what is no such table, with the line that does not fit.
    """
    if _CONTROL.search(data) and not data.startswith(UTF_16):
        raise UnusableSpectrumError("neither FITS, Parquet, VOTable nor text")
    text = decoded(data)
    if text.startswith("# %ECSV"):
        return _read_ecsv(text)
    comments: list[str] = []
    titles: list[str] = []
    rows: list[tuple[int, str]] = []
    separator: str | None = None
    for number, line in enumerate(itertools.islice(text.split("\n", _MAX_LINES + 1), _MAX_LINES + 1), 1):
        if number > _MAX_LINES:
            raise UnusableSpectrumError(f"more than {_MAX_LINES:,} lines: no spectrum, or many in one text")
        stripped = line.strip()
        if stripped.startswith(_COMMENT):
            if not rows:
                comments.append(stripped.lstrip("#!%;\\/* \t"))
        elif rows:
            if stripped:
                rows.append((number, stripped))
        elif stripped:
            separator = _separator(stripped)
            if _is_number(_split(stripped, separator)[0], separator != ","):
                rows.append((number, stripped))
            else:
                titles.append(stripped)
    if not rows and not titles:
        raise UnusableSpectrumError("a text without a table")
    if len(rows) > MAX_PIXELS:
        raise UnusableSpectrumError(f"{len(rows):,} rows; a spectrum has {MAX_PIXELS:,} pixels at most")
    cells = [_split(_AFTER_A_ROW.sub("", row), separator) for _, row in rows]
    names, units, others = _titles(titles, comments, separator, len(cells[0]) if cells else 0)
    for (number, row), values in zip(rows, cells, strict=True):
        if len(values) == len(names) + 1 and not values[-1].strip():  # a separator at the end of the line
            values.pop()
        if len(values) != len(names):
            raise UnusableSpectrumError(
                f"line {number}, {row[:60]!r}: a row of {len(values)} values under {len(names)} columns: "
                f"{', '.join(names)[:200]}"
            )
    header = {match[1].strip(): match[2] for line in (*others, *comments) if (match := _KEYWORD.match(line))}
    comma = separator != ","
    return SpectrumTable(
        [
            SpectrumColumn(name.strip(), _cells([row[i] for row in cells], comma), unit)
            for i, (name, unit) in enumerate(zip(names, units, strict=True))
        ],
        header,
    )


def _separator(row: str) -> str | None:
    """What separates the cells of a row: the first by which all are numbers, else the first that it has."""
    for separator in _SEPARATORS:
        cells = _split(row, separator)
        if len(cells) > 1 and all(_is_number(cell, separator != ",") for cell in cells):
            return separator
    return next((s for s in (",", ";", "\t", "|") if s in row.strip("|")), None)


def _split(row: str, separator: str | None) -> list[str]:
    if separator is None:
        return row.split() or [""]
    if separator == "|":
        row = row.strip().strip("|")
    return next(csv.reader([row], delimiter=separator), [""])


def _titles(
    titles: list[str], comments: list[str], separator: str | None, size: int
) -> tuple[list[str], list[str | None], list[str]]:
    """Names and units of ``size`` columns (0: of no rows), and the lines above the numbers that are neither."""
    for lines in (titles, comments):
        for number in reversed(range(len(lines))):
            names = next((n for n in _readings(lines[number], separator) if _is_header(n, size)), None)
            if names is None:
                continue
            below = lines[number + 1] if number + 1 < len(lines) else ""
            units = next((u for u in _readings(below, separator) if len(u) == len(names)), [])
            known = [u.strip() if re.search("[a-zA-Z]", u) else None for u in units] or [None] * len(names)
            if lines is comments or not _are_units(known):
                known = [None] * len(names)
            return names, known, titles[:number] if lines is titles else titles
    if titles and (not size or len(_split(titles[-1], _separator(titles[-1]))) == size):
        names = _split(titles[-1], _separator(titles[-1]) if not size else separator)
        return names, [None] * len(names), titles[:-1]
    names = ["wavelength", "flux", "error"] if size > 2 else ["wavelength", "flux"]
    return names, [None] * len(names), titles


def _readings(line: str, separator: str | None) -> Iterator[list[str]]:
    """A line of names in the ways it may be meant: as the rows are, or by another separator."""
    if line.startswith("|"):  # IPAC
        yield [name.strip() for name in line.strip("|").split("|")]
    for way in dict.fromkeys((separator, _separator(line), None)):
        yield _split(line, way)


def _are_units(units: list[str | None]) -> bool:
    """Whether a line below the names is of units: Angstrom and the like for the wavelength."""
    return any(u is not None and _is_wavelength_unit(u) for u in units)


def _is_wavelength_unit(text: str) -> bool:
    from broker.spectra.normalise import to_angstrom

    try:
        to_angstrom(np.ones(1), text)
    except UnusableSpectrumError:
        return False
    return True


def read_parquet(data: bytes) -> Iterator[SpectrumTable]:
    """A Parquet table, rows of arrays a few at a time; a field's metadata may name its ``unit``.

    Raises UnusableSpectrumError where columns hold more values than are read at once.
    """
    with pq.ParquetFile(io.BytesIO(data)) as file:
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        most = max((g.column(n).num_values for g in groups for n in range(g.num_columns)), default=0)
        nested = any(pa.types.is_nested(column.type) for column in file.schema_arrow)
        if most > _MAX_CHUNK_VALUES or (not nested and file.metadata.num_rows > MAX_PIXELS):
            raise UnusableSpectrumError(
                f"{file.metadata.num_rows:,} rows, {most:,} values in one column of a row group: {MAX_PIXELS:,} rows "
                f"of one spectrum, {_MAX_CHUNK_VALUES:,} values of arrays are the most that are read"
            )
        if not nested:
            yield _parquet_table(file.read())
            return
        for batch in file.iter_batches(_SPECTRA_AT_ONCE):
            yield _parquet_table(pa.Table.from_batches([batch], file.schema_arrow))


def _parquet_table(table: pa.Table) -> SpectrumTable:
    columns = []
    for number, column_field in enumerate(table.schema):
        column: Any = table.column(number)
        lists = pa.types.is_list(column_field.type) or pa.types.is_large_list(column_field.type)
        values = column.to_pylist() if pa.types.is_nested(column_field.type) and not lists else column.to_numpy()
        unit = (column_field.metadata or {}).get(b"unit")
        columns.append(SpectrumColumn(column_field.name, values, unit.decode("utf-8", "replace") if unit else None))
    header: dict[str, Any] = {}
    for name, value in (table.schema.metadata or {}).items():
        if len(value) <= 256:  # longer ones are other programs' descriptions of the table
            header[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return SpectrumTable(columns, header)


def read_votable(data: bytes) -> SpectrumTable:
    """The first table of a VOTable; raises what ``broker.tables.votable.read`` does."""
    file = votable.read(io.BytesIO(data))
    table = file.get_first_table()
    columns = [
        SpectrumColumn(
            f.name or f.ID, _filled(table.array[f.ID or f.name]), str(f.unit) if f.unit else None, f.ucd or ""
        )
        for f in table.fields
    ]
    params = [*table.params, *(p for resource in file.resources for p in resource.params)]
    return SpectrumTable(columns, {p.name: p.value for p in params})


def spectra(table: SpectrumTable, format_name: str) -> Iterator[RawSpectrum]:
    """The spectra of a table, one, or one a row; raises UnusableSpectrumError where the columns are missing."""
    named: dict[str, SpectrumColumn] = {}
    for column in table.columns:
        named.setdefault(_base(column.name), column)
    wave = _first(named, _WAVELENGTH) or _first(named, _LOG_WAVELENGTH)
    flux = _first(named, _FLUX)
    if wave is None or flux is None:
        missing = "wavelength" if wave is None else "flux"
        names = ", ".join(c.name for c in table.columns)[:300]
        raise UnusableSpectrumError(f"no column {missing}; the table has {names or 'none'}")
    logarithmic = _base(wave.name) in _LOG_WAVELENGTH
    mask = _first(named, _MASK)
    header = {str(name).lower(): value for name, value in table.header.items()}
    others = {name: column for name, column in named.items() if name not in _KNOWN and len(column.values)}
    vectors = _is_vector(flux.values)
    for row in range(len(flux.values)) if vectors else [0]:
        only = row if vectors else None
        wavelength = _numbers(wave, only)
        if logarithmic:
            with np.errstate(over="ignore"):
                wavelength = 10.0**wavelength
        yield RawSpectrum(
            wavelength=wavelength,
            flux=_numbers(flux, only),
            error=_error(named, only),
            bad=None if mask is None else np.nan_to_num(_numbers(mask, only), nan=1.0) != 0,
            wavelength_unit=(None if logarithmic else _unit(wave)) or "Angstrom",
            flux_unit=_unit(flux),
            air=is_air(wave, header),
            format=format_name,
            **described(header | {name: column.values[row] for name, column in others.items()}),
        )


def _numbers(column: SpectrumColumn, row: int | None) -> Array:
    """(m,) the column, or its array in one row."""
    values = column.values if row is None else column.values[row]
    try:
        return np.asarray(np.ma.filled(np.ma.asarray(values, np.float64), np.nan), np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise UnusableSpectrumError(f"column {column.name} is not of numbers") from error


def _error(named: Mapping[str, SpectrumColumn], row: int | None) -> Array | None:
    error, ivar, variance = (_first(named, names) for names in (_ERROR, _IVAR, _VARIANCE))
    if error is not None:
        return _numbers(error, row)
    if ivar is not None:
        return error_of_ivar(_numbers(ivar, row))
    return None if variance is None else np.sqrt(np.maximum(_numbers(variance, row), 0.0))


def described(header: Mapping[str, Any]) -> dict[str, Any]:
    """Id, position, time and redshift, where a header (names in lower case) has them, as fields of RawSpectrum."""
    found: dict[str, Any] = {}
    for name, keys in (("ra", ("ra", "raj2000", "raobj", "ra_obj")), ("dec", ("dec", "dej2000", "decobj", "dec_obj"))):
        value = next((header[k] for k in keys if k in header), None)
        degrees = angle(value, hours=name == "ra") if isinstance(value, str) else _number(value)
        if degrees is not None:
            found[name] = degrees
    found["redshift"] = next((redshift_of(header[k]) for k in ("redshift", "z") if k in header), None)
    found["mjd"] = time_of(header)
    for name, names in _NAMES.items():
        value = next((str(header[k]).strip() for k in names if k in header), "")
        if value:
            found[name] = value
    if not {"survey", "object_id"} <= found.keys():  # a header's SURVEY alone is no object
        found.pop("survey", None)
        found.pop("object_id", None)
    return found


def redshift_of(value: Any) -> float | None:
    """A redshift; text, NaN, and -9999 and the like, are none."""
    number = _number(value)
    return number if number is not None and number > -1.0 else None


def time_of(header: Mapping[str, Any]) -> float:
    """MJD UTC from a header with names in lower case, NaN where it has none."""
    for key in ("mjd", "mjd-obs", "mjd_obs", "mjdobs", "jd", "hjd"):
        value = _number(header.get(key))
        if value is not None:
            value -= JD_OF_MJD_0 if key.endswith("jd") and key != "mjd" else 0.0
            if MJD_RANGE[0] < value < MJD_RANGE[1]:
                return value
    for key in ("date-obs", "date_obs", "dateobs", "obs_date", "obsdate"):
        try:
            moment = datetime.fromisoformat(str(header[key]).strip())
        except (KeyError, ValueError):
            continue
        return mjd_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return float("nan")


def is_air(wave: SpectrumColumn | None, header: Mapping[str, Any]) -> bool:
    """Whether the wavelengths are said to be in air; vacuum where nothing is said. Header names in lower case."""
    if wave is not None:
        if "obs.atmos" in wave.ucd.lower():
            return True
        for token in _tokens(wave.name):
            if token in _MEDIA_IN_NAMES:
                return _MEDIA_IN_NAMES[token]
    for key in ("airorvac", "wavelength_medium", "wavelengthmedium", "medium"):
        if key in header:
            return str(header[key]).strip().lower().startswith("air")
    if "vacuum" in header:
        return str(header["vacuum"]).strip().lower() not in _TRUE
    return str(header.get("ctype1", "")).strip().upper().startswith("AWAV")


def _read_ecsv(text: str) -> SpectrumTable:
    from astropy.table import Table as AstropyTable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # As lines: a text of one line would be taken for the name of a file or an address.
        table = AstropyTable.read(text.split("\n"), format="ascii.ecsv")
    if len(table) > MAX_PIXELS:
        raise UnusableSpectrumError(f"{len(table):,} rows; {MAX_PIXELS:,} are the most that are read")
    columns = [
        SpectrumColumn(n, _filled(table[n]), str(table[n].unit) if table[n].unit else None) for n in table.colnames
    ]
    # Of YAML only plain values: nested ones could be of any size when written out.
    return SpectrumTable(
        columns, {name: value for name, value in table.meta.items() if isinstance(value, str | int | float)}
    )


def _filled(values: Any) -> Any:
    """Masked numbers as NaN."""
    array = np.ma.asarray(values)
    if array.dtype.kind in "fiu":
        return np.ma.filled(array.astype(np.float64), np.nan)
    return np.ma.getdata(array)


def _cells(texts: list[str], comma: bool) -> Any:
    """Numbers, NaN where there is none; the texts where they are not numbers."""
    try:
        return np.array(texts, np.float64)
    except ValueError:
        pass
    try:
        return np.array([_number_of(text, comma) for text in texts], np.float64)
    except ValueError:
        return texts


def _is_number(text: str, comma: bool) -> bool:
    try:
        _number_of(text, comma)
    except ValueError:
        return False
    return True


def _number_of(text: str, comma: bool) -> float:
    """The number, NaN for words that mean none; raises ValueError for other text. ``comma``: it may be a decimal."""
    text = text.strip()
    if text.lower() in _NO_VALUE:
        return float("nan")
    if comma and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text.lower().replace("d", "e"))


def _is_header(names: list[str], size: int) -> bool:
    return len(names) == (size or len(names)) and any(_base(name) in (*_WAVELENGTH, *_LOG_WAVELENGTH) for name in names)


def _tokens(name: str) -> list[str]:
    match = _BRACKETS.match(name)
    return re.findall(r"[a-z]+|\d+", (match[1] if match else name).lower())


def _base(name: str) -> str:
    """A name without its unit and, where it is one of a spectrum's columns, its medium; in lower case."""
    tokens = _tokens(name)
    plain = [t for t in tokens if t not in _UNITS_IN_NAMES and t not in _MEDIA_IN_NAMES]
    joined = "".join(plain or tokens)
    match = _BRACKETS.match(name)
    return joined if joined in _KNOWN else (match[1] if match else name).strip().lower()


def _unit(column: SpectrumColumn) -> str | None:
    if column.unit:
        return column.unit
    match = _BRACKETS.match(column.name)
    if match:
        return match[2]
    return next((_UNITS_IN_NAMES[t] for t in _tokens(column.name) if t in _UNITS_IN_NAMES), None)


def _first(named: Mapping[str, SpectrumColumn], names: tuple[str, ...]) -> SpectrumColumn | None:
    return next((named[name] for name in names if name in named), None)


def _is_vector(values: Any) -> bool:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.ndim > 1
    return len(values) > 0 and np.ndim(values[0]) > 0


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
