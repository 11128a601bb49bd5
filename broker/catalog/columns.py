"""Columns of tables as arrays: numbers, angles and texts, however a format or an archive writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.errors import InputFileError
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


def regroup(batches: Iterable[pa.RecordBatch], size: int, kinds: Kinds) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of any length as pieces of ``size`` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        rest = batch
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
    columns: dict[str, NDArray[Any]] = {}
    for name in batches[0].schema.names:
        parts = [batch.column(name) for batch in batches]
        if len({part.type for part in parts}) > 1:  # numbers up to a row, and text from there on
            columns[name] = np.concatenate([_arrays([b.select([name])], kinds)[name] for b in batches])
            continue
        column = pa.chunked_array(parts)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        is_text = any(test(column.type) for test in _TEXTS)
        if name in kinds.texts:
            texts = column if is_text else column.cast(pa.string())
            columns[name] = as_texts(texts)
            continue
        if is_text:
            columns[name] = from_texts(name, column.to_pylist(), kinds)
            continue
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            try:
                column = column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputFileError(f"column {name} holds {column.type}, not numbers: {error}") from error
        columns[name] = np.asarray(column.to_numpy(), np.float64)
    return columns


_TEXTS: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def as_texts(column: Any) -> NDArray[np.bytes_]:
    """A column of text or bytes as UTF-8 of one width, without blanks around them; empty where missing."""
    array: Any = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in column.chunks])
    array = pc.fill_null(array, b"")
    size = pc.binary_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(size)])
    _, offsets, data = array.buffers()
    first = int(np.frombuffer(offsets, np.int64, 1, 8 * array.offset)[0])
    flat = np.frombuffer(data, np.uint8, int(start[-1]), first) if start[-1] else np.empty(0, np.uint8)
    width = max(int(size.max(initial=0)), 1)
    table = np.zeros((len(array), width), np.uint8)
    table[np.arange(width) < size[:, None]] = flat
    stripped: NDArray[np.bytes_] = np.char.strip(table.view(f"S{width}")[:, 0])
    return stripped


def from_texts(name: str, texts: Iterable[Any], kinds: Kinds = Kinds()) -> Array:
    """Numbers of texts: NaN for blanks and words for unknown values, infinity for other text.

    Angles may be sexagesimal and are in degrees then. Raises InputFileError where none of a piece is a number, though
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
        raise InputFileError(f"column {name} holds text such as {_as_str(example)[:40]!r}, not numbers")
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
