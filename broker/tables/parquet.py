"""Tables in Parquet, with lists, structs of lists and lists of structs (HATS, nested-pandas)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from broker.tables.content import MAX_UNPACKED, seekable
from broker.tables.table import Table, TableColumn, input_errors

_LONGEST_VALUE: Final = 256
"""Bytes of the file's metadata; longer ones are other programs' descriptions of the table."""


def is_list(kind: Any) -> bool:
    """Whether a type of Arrow's is one of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


class ParquetTable(Table):
    """A Parquet file; a field's metadata may name its ``unit``, ``description`` and ``ucd``."""

    format = "Parquet"
    most_at_once: int
    """Values in the largest column of a row group, which is decoded at once."""

    def __init__(self, path: Path, limit: int = MAX_UNPACKED) -> None:
        """``limit`` is in bytes, of a compressed file; raises what pyarrow does where it is damaged."""
        self.path, self._limit, self._length = path, limit, path.stat().st_size
        with seekable(path, limit) as raw, _opened(raw) as file:
            schema, metadata = file.schema_arrow, file.metadata
        self.rows = metadata.num_rows
        self.columns = []
        for field in schema:
            kind = field.type.value_type if is_list(field.type) else field.type
            about = {
                k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in (field.metadata or {}).items()
            }
            unit, rest = about.get("unit"), (about.get("description", ""), about.get("ucd", ""))
            if pa.types.is_struct(kind):
                self.columns += [TableColumn(name) for name in _names_in(field.name, kind)]
            else:
                self.columns.append(TableColumn(field.name, unit, *rest))
        self.header = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in (schema.metadata or {}).items()
            if len(value) <= _LONGEST_VALUE
        }
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        self.most_at_once = max((chunk.num_values for chunk in chunks), default=0)
        # Of a struct or list of structs, the first of its fields.
        self._values: dict[str, int] = {}
        for group in groups:
            seen = set()
            for number in range(group.num_columns):
                top = group.column(number).path_in_schema.split(".")[0]
                if top not in seen:
                    self._values[top] = self._values.get(top, 0) + group.column(number).num_values
                seen.add(top)

    def values_per_row(self, name: str) -> float:
        """See ``Table``."""
        return self._values.get(name.split(".")[0], 0) / max(self.rows or 0, 1)

    def batches(
        self,
        names: Sequence[str],
        start: int = 0,
        size: int = 100_000,
        *,
        numbers: Collection[str] = (),
        words_are_missing: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Table``."""
        with input_errors(self.path), seekable(self.path, self._limit) as raw, _opened(raw) as file:
            # Whole row groups before the start need not be read.
            group, before = 0, 0
            while group < file.num_row_groups:
                rows = file.metadata.row_group(group).num_rows
                if before + rows > start:
                    break
                group, before = group + 1, before + rows
            groups = list(range(group, file.num_row_groups))
            if not groups:
                return
            schema = file.schema_arrow
            top = [name for name in schema.names if any(n == name or n.startswith(name + ".") for n in names)]
            # A list of structs is read whole, of a struct of lists only what is asked for.
            wanted = top if any(is_list(schema.field(name).type) for name in top) else list(names)
            skip, done, total = start - before, start, max(file.metadata.num_rows, 1)
            for read in file.iter_batches(size, row_groups=groups, columns=wanted):
                batch = read.slice(min(skip, read.num_rows))
                skip -= read.num_rows - batch.num_rows
                if batch.num_rows:
                    done += batch.num_rows
                    self.bytes_read = self._length * done // total
                    yield pa.RecordBatch.from_arrays([inside(batch, name) for name in names], names=list(names))


def _opened(raw: IO[bytes]) -> pq.ParquetFile:
    return pq.ParquetFile(raw)


def names_of(schema: pa.Schema) -> list[str]:
    """Of the columns; fields of structs, and of lists of structs, as ``struct.field``."""
    names: list[str] = []
    for field in schema:
        kind = field.type.value_type if is_list(field.type) else field.type
        names += _names_in(field.name, kind) if pa.types.is_struct(kind) else [field.name]
    return names


def _names_in(top: str, kind: Any) -> list[str]:
    return [f"{top}.{kind.field(i).name}" for i in range(kind.num_fields)]


def inside(batch: pa.RecordBatch, path: str) -> pa.Array[Any]:
    """A column, or one field of a struct or of a list of structs, which is a list then."""
    if path in batch.schema.names:
        return batch.column(path)
    top, _, name = path.partition(".")
    column: Any = batch.column(top)
    if pa.types.is_struct(column.type):
        inside: pa.Array[Any] = pc.struct_field(column, name)
        return inside
    count = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values: Any = pc.struct_field(pc.list_flatten(column), name)
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int64())
    return cast("pa.Array[Any]", pa.LargeListArray.from_arrays(offsets, values))
