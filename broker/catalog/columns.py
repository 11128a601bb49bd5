"""Columns of tables as arrays: numbers, angles and texts, however a format or an archive writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker.sky import Array

NULLS: Final = [
    "", "null", "NULL", "Null", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "none", "NONE", "-",
    "--", "---", "masked", "INDEF", "\\N",
]  # fmt: skip
_NO_VALUE: Final = frozenset(null.lower() for null in NULLS)
_SEXAGESIMAL: Final = re.compile(
    r"\s*([+-]?)\s*(\d{1,3})[:hHdD°\s]\s*(\d{1,2})[:mM'′\s]?\s*(\d{1,2}(?:\.\d*)?)?\s*[sS\"″]?\s*"
)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which columns of a table, by its names, are not plain numbers."""

    texts: frozenset[str] = frozenset()
    angles: Mapping[str, float] = field(default_factory=dict)
    """Positions, which may be sexagesimal, with the degrees of their unit: 15 for right ascensions, in hours."""


def regroup(
    batches: Iterable[pa.RecordBatch], start: int, size: int, kinds: Kinds
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of any length as pieces of ``size`` rows, without the first ``start`` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        skipped = min(start, batch.num_rows)
        start -= skipped
        rest = batch.slice(skipped)
        while rows + rest.num_rows >= size:
            waiting.append(rest.slice(0, size - rows))
            yield _arrays(waiting, kinds)
            rest, waiting, rows = rest.slice(size - rows), [], 0
        if rest.num_rows:
            waiting.append(rest)
            rows += rest.num_rows
    if waiting:
        yield _arrays(waiting, kinds)


def _arrays(batches: list[pa.RecordBatch], kinds: Kinds) -> dict[str, NDArray[Any]]:
    table = pa.Table.from_batches(batches)
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        is_text = any(test(column.type) for test in _TEXTS)
        if name in kinds.texts:
            texts = column if is_text else column.cast(pa.string())
            columns[name] = as_texts(texts.cast(pa.binary()).to_pylist())
            continue
        if is_text:
            columns[name] = from_texts(name, column.to_pylist(), kinds)
            continue
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            try:
                column = column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"column {name} holds {column.type}, not numbers: {error}") from error
        columns[name] = np.asarray(column.to_numpy(), np.float64)
    return columns


_TEXTS: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def as_column(name: str, values: NDArray[Any], missing: NDArray[np.bool_] | None, kinds: Kinds) -> NDArray[Any]:
    """A column as float64, NaN where missing, or as bytes, empty where missing, as its kind is."""
    if name in kinds.texts and values.ndim == 1:
        texts = as_texts(values.tolist())
        if missing is not None:
            texts[missing] = b""
        return texts
    if values.ndim == 1 and values.dtype.kind in "SUO":
        numbers = from_texts(name, values.tolist(), kinds)
    elif values.ndim == 1 and values.dtype.kind in "fiub":
        numbers = values.astype(np.float64)
    else:
        raise ValueError(f"column {name} holds {values.dtype} of shape {values.shape[1:]}, not numbers")
    if missing is not None:
        numbers[missing] = np.nan
    return numbers


def as_texts(values: Sequence[Any]) -> NDArray[np.bytes_]:
    """Texts or numbers as UTF-8, without blanks around them."""
    texts = [value if isinstance(value, bytes) else b"" if value is None else str(value).encode() for value in values]
    stripped: NDArray[np.bytes_] = np.char.strip(np.array(texts, "S"))
    return stripped


def from_texts(name: str, texts: Iterable[Any], kinds: Kinds = Kinds()) -> Array:
    """Numbers of texts: NaN for blanks and words for unknown values, infinity for other text.

    Angles may be sexagesimal and are in degrees then. Raises ValueError where none of a piece is a number, though
    some are no blanks: then it is not that column.
    """
    texts = list(texts)
    numbers = np.array([_number_of(text) for text in texts], np.float64)
    wrong = np.isinf(numbers)
    if wrong.any() and (unit := kinds.angles.get(name)) is not None:
        for row in np.flatnonzero(wrong).tolist():
            numbers[row] = _angle_of(_as_str(texts[row]), unit)
        wrong = np.isinf(numbers)
    if wrong.any() and not np.isfinite(numbers).any():
        example = next(text for text, bad in zip(texts, wrong, strict=True) if bad)
        raise ValueError(f"column {name} holds text such as {_as_str(example)[:40]!r}, not numbers")
    return numbers


def _as_str(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _angle_of(text: str, unit: float) -> float:
    """Degrees of a sexagesimal text in units of so many degrees; infinity for what is none."""
    match = _SEXAGESIMAL.fullmatch(text)
    if match is None:
        return np.inf
    sign, whole, minutes, seconds = match.groups()
    if float(minutes) > 60.0 or float(seconds or 0.0) > 60.0:
        return np.inf
    degrees = (float(whole) + float(minutes) / 60.0 + float(seconds or 0.0) / 3600.0) * unit
    return -degrees if sign == "-" else degrees


def _number_of(text: Any) -> float:
    if text is None:
        return np.nan
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    text = str(text).strip()
    try:
        return float(text)
    except ValueError:
        pass
    if text.lower() in _NO_VALUE:
        return np.nan
    try:
        return float(text.lower().replace("d", "e"))  # Fortran's exponents
    except ValueError:
        return np.inf
