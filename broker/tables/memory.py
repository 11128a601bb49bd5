"""A table that is in memory already, as Arrow has it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from broker.tables.parquet import inside, is_list, names_of
from broker.tables.table import Table, TableColumn


class MemoryTable(Table):
    """The rows of an Arrow table, with lists, structs of lists and lists of structs as in Parquet."""

    format = "Arrow"

    def __init__(self, table: pa.Table, path: Path) -> None:
        """``path`` is the name by which messages call it."""
        self._table, self.path = table, path
        self.columns = [TableColumn(name) for name in names_of(table.schema)]
        self.header = {}
        self.rows = table.num_rows

    def values_per_row(self, name: str) -> float:
        """See ``Table``."""
        if not self._table.num_rows:
            return 0.0
        first: Any = self._table.slice(0, 1000).combine_chunks().to_batches()[0]
        column: Any = inside(first, name)
        return len(column.flatten()) / len(column) if is_list(column.type) else 1.0

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
        for batch in self._table.slice(start).to_batches(size):
            yield pa.RecordBatch.from_arrays([inside(batch, name) for name in names], names=list(names))
