"""Annotations as tables of pandas, Polars and astropy, each of which is imported when it is asked for.

Columns have the names of ``annotation.avsc`` (docs/annotation.md) and are those of ``classify --output x.csv``: all
that are no nested tables, and ``p_<class>`` for each class.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from broker.errors import ConfigurationError
from broker.publish.annotation import PublishedAnnotation
from broker.publish.columns import FLAT, NULLABLE, PROBABILITIES, flat_columns
from broker.times import mjd_of

if TYPE_CHECKING:
    import astropy.table
    import pandas as pd
    import polars as pl

_KINDS: Final = FLAT | dict.fromkeys(PROBABILITIES, "double")
_UNITS: Final = {"ra": "deg", "dec": "deg", "mjd": "d", "historyStart": "d", "period": "d", "photometricPeriod": "d"}


def optional_module(name: str, needed_for: str) -> Any:
    """A module that the client does not bring; raises ConfigurationError, saying what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigurationError(f"{needed_for} needs {package}: pip install {package} ({error})") from error


def to_pandas(annotations: Iterable[PublishedAnnotation]) -> pd.DataFrame:
    """A row for each annotation. Times are of the zone UTC; what may have no value is NaN, NaT or NA.

    Lists, such as ``predictionSet``, are objects. Raises ConfigurationError where pandas is not installed.
    """
    pandas = optional_module("pandas", "to_pandas")
    kinds = {"string": "string", "double": "float64", "boolean": "bool", "texts": "object"}
    columns = {}
    for name, values in _columns(annotations).items():
        kind = _KINDS[name]
        if kind == "time":
            columns[name] = pandas.Series(values, dtype="datetime64[ms, UTC]")
        elif kind in ("int", "long"):
            width = 32 if kind == "int" else 64
            columns[name] = pandas.Series(values, dtype=f"Int{width}" if name in NULLABLE else f"int{width}")
        else:
            columns[name] = pandas.Series(values, dtype=kinds[kind])
    frame: pd.DataFrame = pandas.DataFrame(columns)
    return frame


def to_polars(annotations: Iterable[PublishedAnnotation]) -> pl.DataFrame:
    """A row for each annotation; raises ConfigurationError where Polars is not installed."""
    polars = optional_module("polars", "to_polars")
    kinds = {
        "string": polars.String, "double": polars.Float64, "boolean": polars.Boolean, "int": polars.Int32,
        "long": polars.Int64, "time": polars.Datetime("ms", "UTC"), "texts": polars.List(polars.String),
    }  # fmt: skip
    columns = _columns(annotations)
    frame: pl.DataFrame = polars.DataFrame(columns, schema={name: kinds[_KINDS[name]] for name in columns})
    return frame


def to_astropy(annotations: Iterable[PublishedAnnotation]) -> astropy.table.Table:
    """A row for each annotation, with units; what may have no value is masked.

    Times are ``Time`` in UTC; lists are texts with blanks between. Raises ConfigurationError where astropy is not
    installed.
    """
    table = optional_module("astropy.table", "to_astropy")
    time = optional_module("astropy.time", "to_astropy")
    np = optional_module("numpy", "to_astropy")
    kinds = {"string": str, "double": "f8", "boolean": bool, "int": "i4", "long": "i8", "texts": str}
    empty = {"string": "", "double": np.nan, "boolean": False, "int": 0, "long": 0}
    found = table.Table()
    for name, values in _columns(annotations).items():
        kind, mask = _KINDS[name], np.array([value is None for value in values], bool)
        if kind == "time":
            mjd = np.array([0.0 if value is None else mjd_of(value) for value in values], "f8")
            found[name] = time.Time(np.ma.array(mjd, mask=mask) if mask.any() else mjd, format="mjd", scale="utc")
            continue
        if kind == "texts":
            values = [" ".join(value) for value in values]
        filled = [empty[kind] if value is None else value for value in values]
        data = np.array(filled, kinds[kind])
        masked = name in NULLABLE or name in PROBABILITIES
        column = table.MaskedColumn(data, mask=mask) if masked else table.Column(data)
        column.unit = _UNITS.get(name)
        found[name] = column
    return found


def _columns(annotations: Iterable[PublishedAnnotation]) -> dict[str, list[Any]]:
    return flat_columns(list(annotations), "", 0.0)
