"""Spectra in plain tables: which column is which, in any format.

A table has a row a pixel, or a row a spectrum with arrays in its columns. Names are taken case-insensitively and may
carry a unit or a medium: ``wave_air``, ``wavelength [nm]``, ``lambda_vac_um``. What is said of the whole spectrum
(position, time, redshift, ...) comes from columns of that name or from the table's header.
"""

from __future__ import annotations

import csv
import io
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

from broker.publish.annotation import mjd_of
from broker.records import JD_OF_MJD_0
from broker.spectra.normalise import MJD_RANGE, RawSpectrum, UnusableSpectrumError, error_of_ivar

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
_NO_VALUE: Final = frozenset({"", "--", "-", "null", "none", "masked", "n/a"})
_KEYWORD: Final = re.compile(r"^\s*([A-Za-z][\w\- ]{0,30}?)\s*[:=]\s*(.+?)\s*$")
_TRUE: Final = frozenset({"t", "true", "1", "yes"})


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column, and what the file says of it."""

    name: str
    values: Any
    """(rows,) or (rows, m), or a sequence of arrays."""
    unit: str | None = None
    ucd: str = ""
    """IVOA's word for what it is; ``em.wl;obs.atmos`` is a wavelength in air (ESO's science data products)."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns and header of any format."""

    columns: list[Column]
    header: Mapping[str, Any] = field(default_factory=dict)
    """Values that hold for all rows, by name."""


def read_text(data: bytes) -> Table:
    """A table in CSV, ECSV or separated by white space.

    Comments begin with ``#``; those of the form ``name: value`` or ``name = value`` are the header. The names of the
    columns are in the first line that is no comment, or in the last comment before the numbers; without any, the
    columns are wavelength, flux and, if there is a third, error.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableSpectrumError("neither FITS, Parquet, VOTable nor text") from error
    if text.startswith("# %ECSV"):
        return _read_ecsv(text)
    comments: list[str] = []
    rows: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", "%")):
            if not rows:
                comments.append(stripped.lstrip("#% \t"))
        elif stripped:
            rows.append(stripped)
    if not rows:
        raise UnusableSpectrumError("a text without a table")
    separator = next((s for s in (",", ";", "\t", "|") if s in rows[0]), None)
    cells = [line.split() for line in rows] if separator is None else list(csv.reader(rows, delimiter=separator))
    if not _is_number(cells[0][0]):
        names = cells.pop(0)
    else:
        commented = (line.split(separator) for line in reversed(comments))
        names = next((n for n in commented if _is_header(n, len(cells[0]))), ["wavelength", "flux", "error"])
        names = names if len(cells[0]) > 2 else names[:2]
    uneven = next((row for row in cells if len(row) != len(names)), None)
    if uneven is not None:
        raise UnusableSpectrumError(
            f"a row of {len(uneven)} values under {len(names)} columns: {', '.join(names)[:200]}"
        )
    header = {match[1].strip(): match[2] for line in comments if (match := _KEYWORD.match(line))}
    columns = [Column(name.strip(), _cells([row[i] for row in cells])) for i, name in enumerate(names)]
    return Table(columns, header)


def read_parquet(data: bytes) -> Table:
    """A Parquet table; a field's metadata may name its ``unit``."""
    table = pq.read_table(io.BytesIO(data))
    columns = []
    for number, column_field in enumerate(table.schema):
        column: Any = table.column(number)
        nested = pa.types.is_nested(column_field.type)
        values = column.to_pylist() if nested else column.to_numpy()
        unit = (column_field.metadata or {}).get(b"unit")
        columns.append(Column(column_field.name, values, unit.decode("utf-8", "replace") if unit else None))
    header: dict[str, Any] = {}
    for name, value in (table.schema.metadata or {}).items():
        if len(value) <= 256:  # longer ones are other programs' descriptions of the table
            header[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return Table(columns, header)


def read_votable(data: bytes) -> Table:
    """The first table of a VOTable."""
    from astropy.io.votable import parse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = parse(io.BytesIO(data), verify="ignore")
        table = file.get_first_table()
    columns = [
        Column(f.name or f.ID, _filled(table.array[f.ID or f.name]), str(f.unit) if f.unit else None, f.ucd or "")
        for f in table.fields
    ]
    params = [*table.params, *(p for resource in file.resources for p in resource.params)]
    return Table(columns, {p.name: p.value for p in params})


def spectra(table: Table, format_name: str) -> Iterator[RawSpectrum]:
    """The spectra of a table, one, or one a row; raises UnusableSpectrumError where the columns are missing."""
    named: dict[str, Column] = {}
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


def _numbers(column: Column, row: int | None) -> Array:
    """(m,) the column, or its array in one row."""
    values = column.values if row is None else column.values[row]
    try:
        return np.asarray(np.ma.filled(np.ma.asarray(values, np.float64), np.nan), np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise UnusableSpectrumError(f"column {column.name} is not of numbers") from error


def _error(named: Mapping[str, Column], row: int | None) -> Array | None:
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
        angle = _angle(next((header[k] for k in keys if k in header), None), hours=name == "ra")
        if angle is not None:
            found[name] = angle
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


def is_air(wave: Column | None, header: Mapping[str, Any]) -> bool:
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


def _read_ecsv(text: str) -> Table:
    from astropy.table import Table as AstropyTable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = AstropyTable.read(text, format="ascii.ecsv")
    columns = [Column(n, _filled(table[n]), str(table[n].unit) if table[n].unit else None) for n in table.colnames]
    return Table(columns, dict(table.meta))


def _filled(values: Any) -> Any:
    """Masked numbers as NaN."""
    array = np.ma.asarray(values)
    if array.dtype.kind in "fiu":
        return np.ma.filled(array.astype(np.float64), np.nan)
    return np.ma.getdata(array)


def _cells(texts: list[str]) -> Any:
    """Numbers, NaN where there is none; the texts where they are not numbers."""
    try:
        return np.array([np.nan if t.strip().lower() in _NO_VALUE else float(t) for t in texts], np.float64)
    except ValueError:
        return texts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in _NO_VALUE
    return True


def _is_header(names: list[str], size: int) -> bool:
    return len(names) == size and any(_base(name) in (*_WAVELENGTH, *_LOG_WAVELENGTH) for name in names)


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


def _unit(column: Column) -> str | None:
    if column.unit:
        return column.unit
    match = _BRACKETS.match(column.name)
    if match:
        return match[2]
    return next((_UNITS_IN_NAMES[t] for t in _tokens(column.name) if t in _UNITS_IN_NAMES), None)


def _first(named: Mapping[str, Column], names: tuple[str, ...]) -> Column | None:
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


def _angle(value: Any, hours: bool) -> float | None:
    """Degrees; text with colons, blanks or letters is sexagesimal, right ascension then in hours."""
    number = _number(value)
    if number is not None or not isinstance(value, str):
        return number
    from astropy import units
    from astropy.coordinates import Angle

    try:
        return float(Angle(value.strip(), units.hourangle if hours else units.deg).deg)
    except ValueError:
        return None
