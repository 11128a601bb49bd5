"""Spectra in plain tables: which column is which, in any format.

A table has a row a pixel, or a row a spectrum with arrays in its columns. Names are taken case-insensitively and may
carry a unit or a medium: ``wave_air``, ``wavelength [nm]``, ``lambda_vac_um``. What is said of the whole spectrum
(position, time, redshift, ...) comes from columns of that name or from the table's header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker.sky import angle
from broker.spectra.normalise import MAX_PIXELS, MJD_RANGE, RawSpectrum, UnusableSpectrumError, error_of_ivar
from broker.tables.parquet import ParquetTable
from broker.tables.table import Table
from broker.tables.text import TextTable
from broker.times import mjd_of, mjd_of_jd

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
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
_MAX_CHUNK_VALUES: Final = 50_000_000
"""In one column of a row group of a Parquet file, which is decoded at once."""
_SPECTRA_AT_ONCE: Final = 16
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


def read_table(table: Table) -> Iterator[SpectrumTable]:
    """A table of any format, rows of arrays a few at a time.

    Raises UnusableSpectrumError where columns hold more values than are read at once.
    """
    names = list(dict.fromkeys(table.names))
    most = table.most_at_once if isinstance(table, ParquetTable) else 0
    first = next(table.batches(names, size=1, numbers=names), None)
    nested = first is not None and any(map(_is_nested, first.columns))
    if most > _MAX_CHUNK_VALUES or (not nested and (table.rows or 0) > MAX_PIXELS):
        raise UnusableSpectrumError(
            f"{table.rows or 0:,} rows, {most:,} values in one column of a row group: {MAX_PIXELS:,} rows "
            f"of one spectrum, {_MAX_CHUNK_VALUES:,} values of arrays are the most that are read"
        )
    if nested:
        for batch in table.batches(names, size=_SPECTRA_AT_ONCE, numbers=names):
            yield _of_batches(table, [batch])
        return
    held, rows = [], 0
    for batch in table.batches(names, numbers=names):
        held.append(batch)
        rows += batch.num_rows
        if rows > MAX_PIXELS:
            raise UnusableSpectrumError(f"{rows:,} rows; a spectrum has {MAX_PIXELS:,} pixels at most")
    if table.uneven:
        raise UnusableSpectrumError(f"rows with another number of cells than the header: {table.uneven}")
    yield _of_batches(table, held)


def _is_nested(column: pa.Array[Any]) -> bool:
    """Whether a column holds arrays, in ECSV as text: ``[1.0, 2.0]``."""
    if pa.types.is_string(column.type):
        return any(value is not None and value.startswith("[") for value in column.to_pylist())
    return pa.types.is_nested(column.type)


def _of_batches(table: Table, batches: Sequence[pa.RecordBatch]) -> SpectrumTable:
    columns = []
    for about in {column.name: column for column in table.columns}.values():
        parts = [_values(batch.column(about.name), table) for batch in batches]
        arrays = all(isinstance(part, np.ndarray) for part in parts)
        values = np.concatenate(parts) if parts and arrays else [value for part in parts for value in part]
        # Of a struct of arrays the field is what tells.
        name = about.name.rpartition(".")[2] if isinstance(table, ParquetTable) else about.name
        columns.append(SpectrumColumn(name, values, about.unit, about.ucd))
    return SpectrumTable(columns, table.header)


def _values(column: Any, table: Table) -> Any:
    """Numbers with NaN where they are missing, texts, or arrays."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [None if v is None else v.decode("utf-8", "replace") for v in column.to_pylist()]
    if pa.types.is_nested(column.type):
        return column.to_pylist()
    if pa.types.is_string(column.type) and isinstance(table, TextTable):
        texts = ["" if v is None else v for v in column.to_pylist()]
        if _is_nested(column):
            return [json.loads(text) if text else [] for text in texts]
        return numbers_or_texts(texts, table.decimal_comma)
    return column.to_numpy(zero_copy_only=False)


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
            value = mjd_of_jd(value) if key.endswith("jd") and key != "mjd" else value
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


def numbers_or_texts(texts: list[str], comma: bool) -> Any:
    """Numbers, NaN where there is none; the texts where they are not numbers."""
    try:
        return np.array(texts, np.float64)
    except ValueError:
        pass
    try:
        return np.array([_number_of(text, comma) for text in texts], np.float64)
    except ValueError:
        return texts


def is_number(text: str, comma: bool) -> bool:
    """Whether a cell is a number or a word for none; ``comma``: it may have a decimal comma."""
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


def is_wavelength(name: str) -> bool:
    """Whether a column of this name holds wavelengths or their logarithms."""
    return _base(name) in (*_WAVELENGTH, *_LOG_WAVELENGTH)


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
