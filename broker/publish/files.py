"""Annotations in one file for programs: CSV, Parquet, JSON or a JSON record a line, by the file's ending."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.errors import ConfigurationError, InputFileError
from broker.publish.annotation import to_json
from broker.publish.columns import FLAT, PROBABILITIES, flat_columns, record_of
from broker.records import Annotation
from broker.replaced import Replaced
from broker.times import mjd_now

if TYPE_CHECKING:
    import pyarrow.parquet as pq

ENDINGS: Final = (".csv", ".parquet", ".json", ".jsonl")


class AnnotationSink(Protocol):
    """A file that annotations are written to."""

    def write(self, annotations: Sequence[Annotation]) -> None:
        """Add annotations to the file."""


@contextmanager
def annotation_file(path: Path, broker_name: str) -> Iterator[AnnotationSink]:
    """A file to write annotations to, which appears when all are in it; raises InputFileError where it cannot be.

    Parquet has the columns of ``broker.publish.arrow``. CSV has those that are no nested tables, and ``p_<class>`` for
    each class, empty where NotClassified. JSON has the records of ``annotation.avsc``, as an array, or one a line
    (``.jsonl``).
    """
    if path.suffix not in ENDINGS:
        raise InputFileError(f"{path}: the ending says what is written: {', '.join(ENDINGS)}")
    try:
        with Replaced(path) as partial:
            if path.suffix == ".parquet":
                with _parquet_writer(partial) as writer:
                    yield _Parquet(writer, broker_name)
            elif path.suffix == ".csv":
                with partial.open("w", newline="", encoding="utf-8") as file:
                    yield _Csv(file, broker_name)
            else:
                with partial.open("w", encoding="utf-8") as file:
                    sink = _Json(file, broker_name, array=path.suffix == ".json")
                    yield sink
                    sink.close()
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror or error}") from error


def _parquet_writer(path: Path) -> pq.ParquetWriter:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:  # of the client's requirements it would be the largest by far
        raise ConfigurationError(
            f"Parquet needs pyarrow: pip install pyarrow ({error}); or write CSV or JSON"
        ) from error
    from broker.publish.arrow import SCHEMA

    return pq.ParquetWriter(path, SCHEMA, compression="zstd")


class _Parquet:
    def __init__(self, writer: pq.ParquetWriter, broker_name: str) -> None:
        self._writer, self._broker = writer, broker_name

    def write(self, annotations: Sequence[Annotation]) -> None:
        from broker.publish.arrow import to_table

        self._writer.write_table(to_table(annotations, self._broker, mjd_now()))


class _Csv:
    def __init__(self, file: Any, broker_name: str) -> None:
        self._broker = broker_name
        self._writer = csv.writer(file)
        self._writer.writerow([*FLAT, *PROBABILITIES])

    def write(self, annotations: Sequence[Annotation]) -> None:
        columns = flat_columns(annotations, self._broker, mjd_now())
        self._writer.writerows(map(_cell, row) for row in zip(*columns.values(), strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(value)
    if value is None or value != value:
        return ""
    return value.isoformat() if hasattr(value, "isoformat") else value


class _Json:
    def __init__(self, file: Any, broker_name: str, *, array: bool) -> None:
        self._file, self._broker, self._array = file, broker_name, array
        self._between = "[\n" if array else ""

    def write(self, annotations: Sequence[Annotation]) -> None:
        for annotation in annotations:
            self._file.write(self._between + to_json(record_of(annotation, self._broker, mjd_now())))
            self._between = ",\n" if self._array else "\n"

    def close(self) -> None:
        end = "\n]\n" if self._array and self._between != "[\n" else "[]\n" if self._array else "\n"
        self._file.write(end if self._array or self._between else "")
