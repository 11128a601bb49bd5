"""Which cells rows are stored in, and how large cells are to be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker import sky
from broker.catalog.layout import EPOCH, FIRST_YEAR, LAST_YEAR, CatalogLayout, pack, pack_columns
from broker.catalog.tables import CatalogTable, Chunk
from broker.errors import InputFileError
from broker.sky import ARCSEC, Array

ROWS_A_CELL: Final = 11.3
"""Wanted on average. Orders differ by a factor of 4, so it will be 5.7 to 22.6: fewer waste memory on keys (about 140
bytes each), more are read in vain."""
_WHOLE_SKY_ROWS: Final = 200_000_000
"""Tables larger than this are taken to cover the whole sky; of others all positions are read to find out."""
_SAMPLE: Final = 1_000_000
"""Positions from which the density on the sky is found."""
_WELL_FILLED: Final = 16.0
"""Positions of the sample in a cell that make its density known."""
_MIN_ORDER: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class CellRows:
    """Packed rows, cell by cell."""

    cells: NDArray[np.int64]
    """(c,) little-endian."""
    sizes: NDArray[np.uint32]
    """(c,) bytes of rows in each, little-endian."""
    rows: bytes
    count: int
    """Rows, of which a source has one in each of its cells."""


def choose_order(tables: Sequence[CatalogTable]) -> int:
    """The order of cells that hold ROWS_A_CELL sources on average, of those that hold any."""
    sample, total = _sample(tables)
    if not len(sample[0]):
        return _MIN_ORDER
    order, occupied = 0, 1
    # The finest cells in which the sample is dense enough to tell which part of the sky the table covers.
    for finer in range(30):
        filled = len(np.unique(sky.cells(*sample, finer)))
        if len(sample[0]) / filled < _WELL_FILLED and finer:
            break
        order, occupied = finer, filled
    return max(order + round(math.log(total / occupied / ROWS_A_CELL, 4.0)), _MIN_ORDER)


def _sample(tables: Sequence[CatalogTable]) -> tuple[tuple[Array, Array], int]:
    """Positions spread evenly over the rows, at most 2 * _SAMPLE, and how many rows with a position there are.

    Past _WHOLE_SKY_ROWS the rest is not read, but estimated from the sizes of the files; and as a sorted
    table's first rows are in one part of the sky only, the whole is taken to be covered evenly.
    """
    ra, dec = np.empty(0), np.empty(0)
    total, stride, phase = 0, 1, 0
    read = 0
    for table in tables:
        for more_ra, more_dec in _readable(table):
            total += len(more_ra)
            ra = np.concatenate([ra, more_ra[phase::stride]])
            dec = np.concatenate([dec, more_dec[phase::stride]])
            phase = (phase - len(more_ra)) % stride
            while len(ra) > 2 * _SAMPLE:
                # Every other of those taken so far; the next one keeps its distance.
                if len(ra) % 2:
                    phase += stride
                ra, dec = ra[::2], dec[::2]
                stride *= 2
        read += table.path.stat().st_size
        if total > _WHOLE_SKY_ROWS:
            size = sum(t.path.stat().st_size for t in tables)
            rng = np.random.default_rng(0)
            z = rng.uniform(-1.0, 1.0, _SAMPLE)
            return (rng.uniform(0.0, 360.0, _SAMPLE), np.degrees(np.arcsin(z))), total * size // max(read, 1)
    return (ra, dec), total


def _readable(table: CatalogTable) -> Iterator[tuple[Array, Array]]:
    """The positions of a table, as far as it can be read: what is wrong with the rest is said when it is loaded."""
    with suppress(InputFileError):
        yield from table.positions()


def by_cell(layout: CatalogLayout, chunk: Chunk) -> CellRows:
    """The rows of a table, packed, each in all its cells."""
    ra, dec = chunk.ra, chunk.dec
    columns = dict(chunk.values)
    row_epoch = np.where(np.isnan(chunk.epoch) | layout.fixed_epoch, layout.epoch, chunk.epoch)
    if layout.moves:
        # With proper motions one epoch does for all.
        other = np.flatnonzero(row_epoch != layout.epoch)
        if len(other):
            ra, dec = ra.copy(), dec.copy()
            ra[other], dec[other] = sky.move(
                ra[other], dec[other], columns["pmra"][other], columns["pmdec"][other],
                layout.epoch - row_epoch[other],
            )  # fmt: skip
        owner, cell = _path_cells(layout, ra, dec, columns["pmra"], columns["pmdec"])
    else:
        owner, cell = np.arange(len(ra)), sky.cells(ra, dec, layout.order)
    columns[EPOCH] = row_epoch
    if layout.known:
        values = pack_columns([columns[name] for name in layout.columns])
    else:
        values = np.stack([columns[name] for name in layout.columns], axis=1).astype(np.float32)
    order = np.argsort(cell, kind="stable")
    cell = cell[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    sizes = np.diff(first, append=len(cell)) * layout.row_bytes
    rows = pack(ra, dec, values)[owner[order]].tobytes()
    return CellRows(cell[first].astype("<i8"), sizes.astype("<u4"), rows, len(cell))


def _path_cells(
    layout: CatalogLayout, ra: Array, dec: Array, pmra: Array, pmdec: Array
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The cells on each source's path from FIRST_YEAR to LAST_YEAR."""
    before, after = layout.epoch - FIRST_YEAR, LAST_YEAR - layout.epoch
    span = np.ones(len(ra))
    start = sky.cells(*sky.move(ra, dec, pmra, pmdec, -before * span), layout.order)
    end = sky.cells(*sky.move(ra, dec, pmra, pmdec, after * span), layout.order)
    # A path much shorter than a cell that ends in the cell it began in stays in it: almost all do.
    size = ARCSEC * np.degrees(np.sqrt(np.pi / 3.0)) / (1 << layout.order)
    length = np.hypot(np.nan_to_num(pmra), np.nan_to_num(pmdec)) / 1000.0 * (before + after)
    leaves = (start != end) | (length > size / 8.0)
    moving = np.flatnonzero(leaves)
    stay = np.flatnonzero(~leaves)
    span = span[moving]
    owner, cell = sky.track_cells(
        ra[moving], dec[moving], pmra[moving], pmdec[moving], before * span, after * span, 0.0, layout.order
    )
    return np.concatenate([stay, moving[owner]]), np.concatenate([start[stay], cell])
