"""Catalogues in this process's memory, for the classification of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.cells import by_cell, choose_order
from broker.catalog.layout import CatalogLayout, Entry, cell_prefix, encode_index, max_order
from broker.catalog.match import CatalogReader
from broker.catalog.presets import Preset
from broker.catalog.tables import CatalogTable
from broker.errors import InputFileError
from broker.records import Alert, Catalogued
from broker.sky import Array

_CHUNK_ROWS: Final = 200_000


class MemoryCatalogs:
    """Catalogues read from files, matched as those in Redis are."""

    def __init__(self) -> None:
        self._reader = CatalogReader()
        self._entries: list[Entry] = []
        self._cells: dict[str, _Cells] = {}

    def load(self, name: str, path: Path, preset: Preset) -> int:
        """Read a table as catalogue ``name``; returns its number of sources. Raises InputFileError."""
        table = CatalogTable(path, preset)
        order = min(choose_order([table]), max_order(preset.radius))
        layout = CatalogLayout(len(self._entries) + 1, order, table.columns, preset.epoch, preset.radius)
        packed = [(by_cell(layout, chunk), len(chunk.ra)) for chunk in table.chunks(0, _CHUNK_ROWS)]
        count = sum(rows for _, rows in packed)
        if not count:
            raise InputFileError(f"{path}: none of its rows is usable: no position, or neither name nor type")
        cells = np.concatenate([np.repeat(p.cells, p.sizes // layout.row_bytes) for p, _ in packed])
        rows = np.concatenate([np.frombuffer(p.rows, f"V{layout.row_bytes}") for p, _ in packed])
        order_of_cells = np.argsort(cells, kind="stable")
        self._cells[cell_prefix("trifid", name, layout.generation)] = _Cells(
            cells[order_of_cells], rows[order_of_cells]
        )
        self._entries = [*(e for e in self._entries if e.name != name), Entry(name, layout)]
        self._reader.prime(encode_index(self._entries))
        return count

    def look_up(self, ra: Array, dec: Array, mjd: Array) -> list[Catalogued]:
        """What is known of positions (n,), ICRS degrees at times (n,) MJD; nothing at NaN."""
        request = self._reader.request(ra, dec)
        return self._reader.match(request, self._values(request.keys), ra, dec, mjd)

    def of_alerts(self, alerts: Sequence[Alert]) -> list[Catalogued]:
        """The same for alerts."""
        return self.look_up(*np.array([(a.ra, a.dec, a.mjd) for a in alerts], np.float64).reshape(-1, 3).T)

    def _values(self, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = [None]  # the index, which the reader has
        for key in keys[1:]:
            start, _, cell = key.rpartition(":")
            values.append(self._cells[f"{start}:"].rows_of(int(cell)))
        return values


class _Cells:
    """Packed rows by cell."""

    def __init__(self, cells: NDArray[np.int64], rows: NDArray[np.void]) -> None:
        self._cells, self._rows = cells, rows

    def rows_of(self, cell: int) -> bytes:
        """The rows of one cell."""
        first, end = np.searchsorted(self._cells, [cell, cell + 1])
        return self._rows[first:end].tobytes()
