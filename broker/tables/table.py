"""What a table of any format is to its readers: named columns, read a piece at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from broker.errors import InputFileError


@dataclass(frozen=True, slots=True)
class TableColumn:
    """What a file says of one column."""

    name: str
    unit: str | None = None
    """As it is spelled there; None where it is not said."""
    description: str = ""
    ucd: str = ""
    """IVOA's word for what it is, such as ``em.wl`` (https://www.ivoa.net/documents/UCD1+)."""


class Table(ABC):
    """A table in a file."""

    format: ClassVar[str]
    """For messages."""
    path: Path
    columns: list[TableColumn]
    header: Mapping[str, Any]
    """What is said of the whole table, by name, as it is spelled."""
    decimal_comma: bool = False
    """Whether numbers in columns of text are written with a comma: ``15,392``."""
    uneven: int = 0
    """Rows left out so far for having another number of cells than the header."""
    bytes_read: int = 0
    """About how far into the file the last piece was."""
    rows: int | None = None
    """Rows that it has; None where only reading it tells."""

    @property
    def names(self) -> list[str]:
        """Of the columns; fields of structs as ``struct.field``."""
        return [column.name for column in self.columns]

    @property
    def units(self) -> dict[str, str]:
        """Of columns that have one."""
        return {column.name: column.unit for column in self.columns if column.unit}

    def keep(self, names: Sequence[str]) -> None:  # noqa: B027
        """Say that these columns will be asked for and no others, so that the rest need not be kept."""

    def values_per_row(self, name: str) -> float:
        """How many values a row of a column has on average, as far as the file tells without being read."""
        return 1.0

    @abstractmethod
    def batches(
        self,
        names: Sequence[str],
        start: int = 0,
        size: int = 100_000,
        *,
        numbers: Collection[str] = (),
        words_are_missing: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """Columns from row ``start`` on, at most ``size`` rows at once; missing values are null (numbers may be NaN).

        Texts give ``numbers`` as float64 while all cells are numbers, other columns and from there on all as text.
        In these, words such as ``null`` and ``NA`` are missing values unless ``words_are_missing`` is false. Raises
        InputFileError where the file is damaged.
        """


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Whatever the libraries raise for a file that is damaged or no table, as InputFileError with the file's name."""
    try:
        yield
    except InputFileError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputFileError(f"{path}: {error}") from error
    except Exception as error:  # the readers of damaged files raise many kinds, such as zlib's own
        raise InputFileError(f"{path}: cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    if not text or isinstance(error, KeyError | IndexError | AttributeError | TypeError):
        return f"{type(error).__name__}: {text}"
    return text
