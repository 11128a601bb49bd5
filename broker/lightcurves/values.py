"""Values of the points of each row: a row has one, or a list with one for each of its points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.lightcurves.columns import is_text, numbers
from broker.sky import angle
from broker.tables.parquet import is_list
from broker.tables.text import NULLS

_LIST: Final = r"[,;\s\[(]"
_TWO: Final = r"(?i)^[-+.\d]+\s+(" + "|".join([*filter(str.isalpha, NULLS), "inf"]) + ")$"
"""A number and a missing value, not a number with its unit."""


def values_of(column: pa.Array[Any], decimal_comma: bool) -> tuple[NDArray[np.int64], pa.Array[Any]]:
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
    if not is_list(column.type):
        return np.ones(len(column), np.int64), column
    count = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat: Any = pc.list_flatten(column)
    return count, flat


def _is_one_number(text: Any) -> bool:
    """Whether blanks stand only where one value may have them: after the sign of a limit, in a date, before a unit."""
    single: Any = pc.match_substring_regex(
        text, r"^[<>]\s*\S+$|^\d{4}-\d{2}-\d{2} \S+$|^[-+.\d]+\s+[A-Za-zµ]+$|^[^,;\s\[(]*$"
    )
    two: Any = pc.match_substring_regex(text, _TWO)
    return bool(pc.all(pc.and_not(single, two)).as_py())


def per_point(
    column: pa.Array[Any],
    size: NDArray[np.int64],
    convert: Callable[[pa.Array[Any]], NDArray[Any]],
    decimal_comma: bool,
    missing: Any = False,
) -> NDArray[Any]:
    """(m,) one value for each point of all rows: a row has one for all its points, or a list with one for each."""
    if (size <= 1).all() and not is_list(column.type):  # ``Johnson V`` is no list
        count, values = np.ones(len(column), np.int64), column
    else:
        count, values = values_of(column, decimal_comma)
    converted = convert(values)
    fits = count == size
    single = (count == 1) & ~fits
    start = np.cumsum(count) - count
    result = np.full(size.sum(), missing, converted.dtype)
    result[np.repeat(fits, size)] = converted[np.repeat(fits, count)]
    result[np.repeat(single, size)] = np.repeat(converted[start[single]], size[single])
    return result


def first_values(column: pa.Array[Any]) -> pa.Array[Any]:
    """The first value of each row's list; other columns as they are."""
    if not is_list(column.type):
        return column
    first: pa.Array[Any] = pa.array([None if not value else value[0] for value in column.to_pylist()])
    return first


def angles(column: pa.Array[Any], hours: bool, decimal_comma: bool) -> NDArray[np.float64]:
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
