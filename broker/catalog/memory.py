"""Catalogues in this process's memory, for the classification of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.cells import by_cell, choose_order
from broker.catalog.layout import CatalogLayout, Entry, cell_prefix, encode_index, max_order
from broker.catalog.match import CatalogReader
from broker.catalog.plausible import Counts, add_counts, describe_unknown
from broker.catalog.presets import Preset
from broker.catalog.tables import CatalogTable
from broker.errors import InputFileError
from broker.records import SOURCE_FEATURES, Alert, Catalogued, SourceMetadata
from broker.sky import Array

_CHUNK_ROWS: Final = 200_000
_NAMELESS, _WITHOUT_VALUES, _REPEATED = "without a name", "no value", "of a name that is there already"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of one table."""

    sources: int
    left_out: int
    """Rows of which nothing is used."""
    unknown: Counts
    """Why, and values that are unknown in the others, by column (or "position", "row") and reason."""

    def __str__(self) -> str:
        """Without the number of sources."""
        said = [f"{self.left_out:,} row{'' if self.left_out == 1 else 's'} left out"] if self.left_out else []
        return "; ".join([*said, *([f"unknown {describe_unknown(self.unknown)}"] if self.unknown else [])])


class MemoryCatalogs:
    """Catalogues read from files, matched as those in Redis are."""

    def __init__(self) -> None:
        self._reader = CatalogReader()
        self._entries: list[Entry] = []
        self._cells: dict[str, _Cells] = {}
        self._named: dict[str, NDArray[np.float32]] = {}

    def load(self, name: str, path: Path, preset: Preset) -> Loaded:
        """Read a table as catalogue ``name``. Raises InputFileError."""
        table = CatalogTable(path, preset)
        order = min(choose_order([table]), max_order(preset.radius))
        layout = CatalogLayout(len(self._entries) + 1, order, table.columns, preset.epoch, preset.radius)
        packed, count, left_out = [], 0, 0
        unknown: Counts = {}
        for chunk in table.chunks(0, _CHUNK_ROWS):
            packed.append(by_cell(layout, chunk))
            count += len(chunk.ra)
            left_out += chunk.skipped
            add_counts(unknown, chunk.unknown)
        if not count:
            raise InputFileError(f"{path}: none of its rows is usable: no position, or neither name nor type")
        cells = np.concatenate([np.repeat(p.cells, p.sizes // layout.row_bytes) for p in packed])
        rows = np.concatenate([np.frombuffer(p.rows, f"V{layout.row_bytes}") for p in packed])
        order_of_cells = np.argsort(cells, kind="stable")
        self._cells[cell_prefix("trifid", name, layout.generation)] = _Cells(
            cells[order_of_cells], rows[order_of_cells]
        )
        self._entries = [*(e for e in self._entries if e.name != name), Entry(name, layout)]
        self._reader.prime(encode_index(self._entries))
        return Loaded(count, left_out, unknown)

    def load_named(self, path: Path, preset: Preset) -> Loaded:
        """Read a table of values by the names of objects, without positions.

        Of several rows of one name the first counts. Raises InputFileError.
        """
        before, read = len(self._named), 0
        unknown: Counts = {}
        for names, values, of_values in CatalogTable(path, preset, by_name=True).named_values():
            read += len(names)
            add_counts(unknown, of_values)
            reasons = {_NAMELESS: 0, _WITHOUT_VALUES: 0, _REPEATED: 0}
            rows = np.full((len(names), len(SOURCE_FEATURES)), np.nan, np.float32)
            for feature, column in values.items():
                if feature in SOURCE_FEATURES:
                    rows[:, SOURCE_FEATURES.index(feature)] = column
            for name, row in zip(names, rows, strict=True):
                if not name:
                    reasons[_NAMELESS] += 1
                elif not np.isfinite(row).any():
                    reasons[_WITHOUT_VALUES] += 1
                elif name in self._named:
                    reasons[_REPEATED] += 1
                else:
                    self._named[name] = row
            if any(reasons.values()):
                add_counts(unknown, {"row": {reason: count for reason, count in reasons.items() if count}})
        found = len(self._named) - before
        if not found:
            raise InputFileError(f"{path}: none of its rows has a name and a value")
        return Loaded(found, read - found, unknown)

    def look_up(self, ra: Array, dec: Array, mjd: Array) -> list[Catalogued]:
        """What is known of positions (n,), ICRS degrees at times (n,) MJD; nothing at NaN."""
        request = self._reader.request(ra, dec)
        return self._reader.match(request, self._values(request.keys), ra, dec, mjd)

    def of_alerts(self, alerts: Sequence[Alert]) -> list[Catalogued]:
        """The same for alerts, and what there is by their objects' names, where no source at the position has it."""
        found = self.look_up(*np.array([(a.ra, a.dec, a.mjd) for a in alerts], np.float64).reshape(-1, 3).T)
        if not self._named:
            return found
        return [self._filled(there, alert) for there, alert in zip(found, alerts, strict=True)]

    def _filled(self, there: Catalogued, alert: Alert) -> Catalogued:
        named = self._named.get(alert.object_id)
        if named is None:
            return there
        if there.metadata is not None:
            named = np.where(np.isnan(there.metadata.values), named, there.metadata.values)
        return replace(there, metadata=SourceMetadata(named))

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
