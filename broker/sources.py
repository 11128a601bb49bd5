"""Alert packets from files, folders and archives, one message each, as the survey would send them."""

from __future__ import annotations

import math
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from broker.errors import DecodeError, InputFileError
from broker.surveys.decoder import split_container
from broker.surveys.wire import CONTAINER_MAGIC, confluent_message, lsst_schema

_ARCHIVE: Final = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$")
_PACKETS: Final = (".avro", ".parquet")
_LSST_VERSION: Final = re.compile(r"lsst\.v(\d+)_(\d+)")
_VERSION_COLUMN: Final = "lsst_schema_version"
_PARQUET_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class Packet:
    """One message."""

    name: str
    """Where it comes from: the file, and the member of an archive or the number of the record in it."""
    payload: bytes


def iter_packets(paths: Iterable[Path]) -> Iterator[Packet]:
    """Packets of all ``paths``, in their order; a folder's files by name.

    Taken are Avro files (a container of many alerts becomes as many containers of one), messages in Confluent's
    wire format, tar archives of these, as ZTF's public archive has them, and Parquet tables of LSST alerts with
    the column ``lsst_schema_version``. Of folders and archives only files named .avro, .parquet or, in folders,
    .tar, .tar.gz, .tar.xz and so on. What is no packet after all is passed on as it is, for the decoder to
    refuse. Raises InputFileError where a file cannot be read.
    """
    for path in paths:
        try:
            if path.is_dir():
                for file in sorted(p for p in path.rglob("*") if p.is_file()):
                    if file.suffix in _PACKETS or _ARCHIVE.search(file.name):
                        yield from _file(file)
            else:
                yield from _file(path)
        except (OSError, EOFError, tarfile.TarError, pa.ArrowException) as error:
            raise InputFileError(f"{path}: {error}") from error


def _file(path: Path) -> Iterator[Packet]:
    if _ARCHIVE.search(path.name):
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(_PACKETS) and (file := archive.extractfile(member)):
                    name = f"{path.name}/{member.name}"
                    yield from (
                        _parquet(name, BytesIO(file.read())) if name.endswith(".parquet") else _avro(name, file.read())
                    )
    elif path.suffix == ".parquet":
        yield from _parquet(path.name, path)
    else:
        yield from _avro(path.name, path.read_bytes())


def _avro(name: str, payload: bytes) -> Iterator[Packet]:
    if not payload.startswith(CONTAINER_MAGIC):
        yield Packet(name, payload)
        return
    try:
        parts = split_container(payload)
    except DecodeError:
        yield Packet(name, payload)
        return
    if len(parts) == 1:
        yield Packet(name, payload)
        return
    for number, part in enumerate(parts):
        yield Packet(f"{name}[{number}]", part)


def _parquet(name: str, file: Path | BytesIO) -> Iterator[Packet]:
    """Rows of LSST alerts, written again in the wire format by the schema that they name."""
    table = pq.ParquetFile(file)
    if _VERSION_COLUMN not in table.schema_arrow.names:
        raise InputFileError(f"{name}: no column {_VERSION_COLUMN}, so no table of LSST alerts")
    number = 0
    for batch in table.iter_batches(_PARQUET_ROWS):
        for row in batch.to_pylist():
            yield Packet(f"{name}[{number}]", _lsst_message(f"{name}[{number}]", row))
            number += 1


def _lsst_message(name: str, row: dict[str, Any]) -> bytes:
    version = _LSST_VERSION.fullmatch(str(row[_VERSION_COLUMN]))
    if version is None:
        raise InputFileError(f"{name}: {row[_VERSION_COLUMN]!r} is no version of LSST's alerts")
    schema_id = 100 * int(version[1]) + int(version[2])
    out = BytesIO()
    try:
        schema = lsst_schema(schema_id)
        fastavro.schemaless_writer(out, schema, _fit(row, schema, {}))
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputFileError(f"{name} does not fit LSST's schema {version[0]}: {str(error)[:500]}") from error
    return confluent_message(schema_id, out.getvalue())


def _fit(value: Any, schema: Any, records: dict[str, Any]) -> Any:
    """A value of a table as the schema has it: pandas makes floating-point numbers of integers beside nulls."""
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"]
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return None if missing else _fit(value, branches[0], records)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        records[schema["name"]] = schema
        return {
            field["name"]: _fit(value[field["name"]], field["type"], records)
            for field in schema["fields"]
            if field["name"] in value
        }
    if kind in records:
        return _fit(value, records[kind], records)
    if kind == "array":
        return [_fit(item, schema["items"], records) for item in value]
    return int(value) if kind in ("int", "long") and value is not None else value
