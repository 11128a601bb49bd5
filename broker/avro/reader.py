"""Runs programs over the messages of a batch, and gives what they read as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker.avro.compiler import Program, lay_out
from broker.avro.container import Block
from broker.avro.layout import Layout
from broker.avro.machine import (
    BOOLEAN,
    BRANCH,
    COUNT,
    CUT,
    ITEMS,
    LONG,
    MAX_DEPTH,
    MAX_RECORDS,
    MAX_ROWS,
    NEGATIVE,
    NULL,
    NULL_NUMBER,
    RECORDS,
    ROWS,
    SYMBOL,
    TRAILING,
    UTF8,
    WRONG,
    Kind,
    machine,
)
from broker.errors import DecodeError

MAX_BATCH_ROWS: Final = 2_000_000
"""Rows of one table at which a batch is cut: the rest of its messages is read in another run."""
_ROWS_A_RECORD: Final = 48
"""Guess, for the first size of tables."""
_STACK: Final = 2 * MAX_DEPTH + 2
"""Arrays and maps that can be open at a time."""
_REASONS: Final = {
    CUT: "the bytes end within it",
    LONG: "a number of more than 64 bits",
    NEGATIVE: "a length below zero",
    BRANCH: "a branch that its union does not have",
    SYMBOL: "a symbol that its enum does not have",
    ITEMS: "more items than there are bytes left",
    UTF8: "a string that is not UTF-8",
    BOOLEAN: "a boolean that is neither 0 nor 1",
    WRONG: "a value of a type that cannot be read",
}


class Message(NamedTuple):
    """What one message holds."""

    program: int
    """Index of the program that its records are read by."""
    blocks: Sequence[Block]


class FilledTable:
    """One table that the machine filled."""

    def __init__(self, cells: NDArray[np.int64], columns: dict[str, tuple[int, Kind]]) -> None:
        self._cells: Final[Sequence[NDArray[np.int64]]] = list(cells)
        self._columns: Final = columns
        self._count: Final = cells.shape[1]

    def __len__(self) -> int:
        return int(self._count)

    @property
    def owner(self) -> NDArray[np.int64]:
        """(n,) each row's record, ascending."""
        return self._cells[0]

    @property
    def path(self) -> NDArray[np.int64]:
        """(n,) which of the table's paths each row is from."""
        return self._cells[1]

    def integers(self, name: str) -> NDArray[np.int64]:
        """(n,) an INTEGER or LABEL column, NULL for null."""
        return self._cells[self._columns[name][0]]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) a NUMBER column, NaN for null."""
        return self._cells[self._columns[name][0]].view(np.float64)

    def is_null(self, name: str) -> NDArray[np.bool_]:
        """(n,) whether each value of a column is null, which for a number is not the same as NaN."""
        position, kind = self._columns[name]
        if kind is Kind.TEXT:
            return np.less(self._cells[position + 1], 0)
        return np.equal(self._cells[position], NULL_NUMBER if kind is Kind.NUMBER else NULL)

    def spans(self, name: str) -> tuple[list[int], list[int]]:
        """Offsets and lengths of a TEXT column in the bytes of each row's block; a length of -1 for null."""
        position = self._columns[name][0]
        return self._cells[position].tolist(), self._cells[position + 1].tolist()


class Records:
    """Columns of the records of several messages, as a survey's module gets them."""

    def __init__(
        self,
        tables: dict[str, FilledTable],
        cells: NDArray[np.int64],
        messages: Sequence[Message],
        programs: Sequence[Program],
    ) -> None:
        self.tables: Final = tables
        """The survey's tables by name; the first has one row a record."""
        self.message: Final = cells[0]
        """(n,) each record's message, ascending."""
        self.ends: Final = cells[2]
        """(n,) where each record ends in the bytes of its block."""
        self._block: Final[list[int]] = cells[1].tolist()
        self._data = [block.data for message in messages for block in message.blocks]
        self._messages, self._programs = messages, programs
        self.latest: NDArray[np.float64] = np.full(len(self._block), np.inf)
        """(n,) the latest time that each record's detections can have, MJD UTC, since it was received then or some
        days before; infinite where that is not known."""
        self.left_out: Final[Counter[str]] = Counter()
        """Points that the survey's module left out, by reason (``columns.LeftOut``)."""

    def __len__(self) -> int:
        return len(self._block)

    def texts(self, name: str) -> list[str | None]:
        """A TEXT column of the records' own table."""
        offsets, lengths = next(iter(self.tables.values())).spans(name)
        data = self._data
        return [
            None if length < 0 else data[block][offset : offset + length].decode()
            for block, offset, length in zip(self._block, offsets, lengths, strict=True)
        ]

    def schema_names(self) -> list[str]:
        """The name of each record's type."""
        return [self._programs[self._messages[message].program].schema_name for message in self.message.tolist()]


@dataclass(frozen=True, slots=True)
class ReadMessages:
    """What came of some messages."""

    records: Records
    errors: dict[int, DecodeError]
    """By the number of the message."""
    stopped: int
    """The number of the first message that was not read any more, since there were too many rows already."""


def run(programs: Sequence[Program], layout: Layout, messages: Sequence[Message], first: int = 0) -> ReadMessages:
    """Read all records of ``messages`` from number ``first`` on."""
    code, starts = lay_out(programs)
    entries = np.stack([starts, np.array([p.least_size for p in programs], np.int64)], axis=1)
    blocks = np.array(
        [
            (pa.py_buffer(block.data).address, block.end, block.start, block.number, message.program)
            for message in messages
            for block in message.blocks
        ],
        np.int64,
    ).reshape(-1, 5)
    ends = np.cumsum([len(message.blocks) for message in messages]).astype(np.int64)
    status = np.zeros((len(messages), 3), np.int64)
    widths = layout.widths
    rows, begun = np.zeros(len(widths), np.int64), np.zeros(len(widths), np.int64)
    stack = np.zeros(_STACK, np.int64)
    # Claimed numbers of records give no more than a first guess.
    guess = 1 + int(np.clip(blocks[:, 3], 0, 1 + (blocks[:, 1] - blocks[:, 2]) // 256).sum())
    capacity = np.array([guess] + [guess * _ROWS_A_RECORD] * (len(widths) - 1), np.int64)
    cells, base = _empty(widths, capacity)
    read = machine()
    while True:
        numbers = cells.view(np.float64)
        first, short = read(
            code, first, ends, blocks, entries, cells, numbers, base, capacity, rows, begun, stack, status
        )
        if short < 0 or rows.max() >= MAX_BATCH_ROWS:
            break
        grown = capacity.copy()
        grown[short] *= 2
        larger, new_base = _empty(widths, grown)
        for number, width in enumerate(widths):
            old = cells[base[number] : base[number] + width * capacity[number]].reshape(width, -1)
            new = larger[new_base[number] : new_base[number] + width * grown[number]].reshape(width, -1)
            new[:, : rows[number]] = old[:, : rows[number]]
        cells, base, capacity = larger, new_base, grown
    filled = [
        cells[base[number] : base[number] + width * capacity[number]].reshape(width, -1)[:, : rows[number]]
        for number, width in enumerate(widths)
    ]
    tables = {
        name: FilledTable(part, layout.columns[n])
        for n, (name, part) in enumerate(zip(layout.names, filled, strict=True))
    }
    errors = {
        int(message): _error(status[message].tolist(), starts, programs) for message in np.flatnonzero(status[:, 0])
    }
    return ReadMessages(Records(tables, filled[0], messages, programs), errors, first)


def _empty(widths: Sequence[int], capacity: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Room for all tables, column after column, and where each begins."""
    sizes = capacity * np.array(widths)
    return np.empty(int(sizes.sum()), np.int64), np.cumsum(sizes) - sizes


def _error(status: Sequence[int], starts: NDArray[np.int64], programs: Sequence[Program]) -> DecodeError:
    problem, pc, at = status
    if problem == COUNT:
        return DecodeError("damaged Avro record: too few bytes for the records that are announced")
    if problem == TRAILING:
        return DecodeError(f"damaged Avro record: bytes too many after it, at byte {at}")
    if problem == ROWS:
        return DecodeError(f"the message has more than {MAX_ROWS} items of one kind")
    if problem == RECORDS:
        return DecodeError(f"the message has more than {MAX_RECORDS} records")
    number = int(np.searchsorted(starts, pc, "right")) - 1
    place = programs[number].place(pc - int(starts[number]))
    return DecodeError(f"damaged Avro record: {_REASONS[problem]} ({place}, at byte {at})")
