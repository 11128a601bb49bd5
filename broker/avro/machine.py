"""Runs the compiler's programs over a batch of records; over 400 lines, as Numba's cache is by file.

The bytes come from outside. Every read is checked against the end of its block; numbers of more than 64 bits,
lengths below zero, branches and symbols that do not exist, and arrays of more items than there are bytes left end the
message, with the place. An error concerns its message alone: rows already written of it are removed.

Compiled to machine code; what is compiled in must be defined in this file: see ``broker.compiled``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from broker.compiled import compiled

F = TypeVar("F", bound=Callable[..., Any])

MAX_DEPTH: Final = 32
"""Types within types. LSST's packets have four."""
FIXED_COLUMNS: Final = 3
"""Cells at the head of each row: of a record its message, its block and where it ends in that; of any other row
its record's row, its path's number and nothing."""
NULL: Final = -(2**63)
"""What INTEGER and LABEL columns hold for null."""
OTHER: Final = -1
"""What LABEL columns hold for a string of more than eight bytes; no UTF-8 has these bytes."""
NULL_NUMBER: Final = 0x7FF8_0000_0000_0BAD
"""Bits of what NUMBER columns hold for null: a NaN, but none that arithmetic or float32 makes."""
MAX_ROWS: Final = 1_000_000
"""Rows of one table that one message may have: 420 packets of ZTF in one file have 20,000."""
MAX_RECORDS: Final = 100_000
"""Records that one message may have."""


class Kind(IntEnum):
    """What a wanted field is read as."""

    NUMBER = 0
    """float64, of any number or boolean; NULL_NUMBER for null."""
    INTEGER = 1
    """int64, of integers, booleans, and floating-point numbers that are whole; NULL for null and what is not."""
    TEXT = 2
    """Where the bytes stand in their block (offset, length), checked to be UTF-8."""
    LABEL = 3
    """A string of up to eight bytes in one int64, first byte lowest; OTHER for a longer one; NULL for null.
    Whole numbers and booleans become the strings that stand for them, a fraction OTHER, NaN null."""


class Op(IntEnum):
    """Operations of the machine, with their operands."""

    END = 0
    SKIP_BYTES = 1  # how many
    SKIP_LONGS = 2  # how many
    SKIP_BLOBS = 3  # how many: bytes or strings
    SKIP_OPTIONAL_BYTES = 4  # branch of null, size, how many
    SKIP_OPTIONAL_LONGS = 5  # branch of null, how many
    SKIP_OPTIONAL_BLOBS = 6  # branch of null, how many
    SKIP_ENUM = 7  # number of symbols
    UNION = 8  # number of branches; then the target of each
    JUMP = 9  # target
    OPEN = 10  # an array or map begins
    NEXT = 11  # target after the last item, bytes that an item takes at least
    ROW = 12  # table, number of the path
    NULL = 13  # table, column, kind
    WRONG = 14  # a branch that cannot serve
    # Reading, all with table, column and branch of null (-1 for a field that cannot be null):
    FLOAT_NUMBER = 16
    DOUBLE_NUMBER = 17
    LONG_NUMBER = 18
    BOOLEAN_NUMBER = 19
    FLOAT_INTEGER = 20
    DOUBLE_INTEGER = 21
    LONG_INTEGER = 22
    BOOLEAN_INTEGER = 23
    STRING_TEXT = 24
    STRING_LABEL = 25
    LONG_LABEL = 26
    BOOLEAN_LABEL = 27
    FLOAT_LABEL = 28
    DOUBLE_LABEL = 29


# What went wrong, as the machine says it.
OK, MORE_ROWS, CUT, LONG, NEGATIVE, BRANCH, SYMBOL, ITEMS, UTF8, BOOLEAN, WRONG = range(11)
ROWS, RECORDS, COUNT, TRAILING = range(11, 15)
_TRUE, _FALSE = (int.from_bytes(word, "little") for word in (b"true", b"false"))
_WHOLE: Final = 2.0**53
"""Beyond this, a float64 does not tell one whole number from the next."""


def _compiled(function: F) -> F:
    """Part of the machine, compiled into what calls it."""
    return cast(F, njit(nogil=True)(function))


def _pointer_to(_: Any, address: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


_pointer: Any = intrinsic(_pointer_to)
"""Of an address, the pointer."""


@_compiled
def _read_long(data: Any, at: int, end: int) -> Any:
    """A zigzag variable-length number and the position after it; a position of -1 where it ends too late, -2 where
    it has more than 64 bits."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        byte = np.uint64(data[at])
        at += 1
        if shift == np.uint64(63) and byte > np.uint64(1):
            return 0, -2
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
    return 0, -1


@_compiled
def _bits32(data: Any, at: int) -> Any:
    return np.uint32(
        np.uint32(data[at])
        | np.uint32(data[at + 1]) << np.uint32(8)
        | np.uint32(data[at + 2]) << np.uint32(16)
        | np.uint32(data[at + 3]) << np.uint32(24)
    )


@_compiled
def _bits64(data: Any, at: int) -> Any:
    return np.int64(np.uint64(_bits32(data, at)) | np.uint64(_bits32(data, at + 4)) << np.uint64(32))


@_compiled
def _is_utf8(data: Any, at: int, end: int) -> bool:
    """Whether bytes are UTF-8 (RFC 3629: no overlong forms, no surrogates, none beyond U+10FFFF)."""
    while at < end:
        first = data[at]
        at += 1
        if first < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            more = 3
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        else:
            return False
        if at + more > end:
            return False
        if data[at] < low or data[at] > high:
            return False
        for k in range(1, more):
            if data[at + k] & 0xC0 != 0x80:
                return False
        at += more
    return True


@_compiled
def _whole(value: float) -> Any:
    """A float that is a whole number as that, any other as null."""
    if value == np.floor(value) and abs(value) <= _WHOLE:
        return np.int64(value)
    return np.int64(NULL)


@_compiled
def _digits(value: int) -> Any:
    """A whole number in decimal digits, as a label; OTHER where these are more than eight characters."""
    if value < -9_999_999 or value > 99_999_999:
        return np.int64(OTHER)
    left = abs(value)
    label = np.int64(48 + left % 10)
    left //= 10
    while left > 0:
        label = label << 8 | np.int64(48 + left % 10)
        left //= 10
    return label << 8 | np.int64(45) if value < 0 else label


@_compiled
def _number_label(value: float) -> Any:
    """A float as a label, see Kind.LABEL."""
    if np.isnan(value):
        return np.int64(NULL)
    whole = _whole(value)
    return np.int64(OTHER) if whole == NULL else _digits(whole)


@_compiled
def _record(
    code: Any, pc: int, data: Any, at: int, end: int, cells: Any, numbers: Any, base: Any, capacity: Any, rows: Any,
    begun: Any, stack: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Read one record from ``at``; returns what went wrong, the instruction and the position."""
    depth = 0
    owner = rows[0] - 1
    while True:
        op = code[pc]
        if op >= Op.FLOAT_NUMBER:
            table = code[pc + 1]
            cell = base[table] + code[pc + 2] * capacity[table] + rows[table] - 1
            null = code[pc + 3]
            if null >= 0:
                if at >= end:
                    return CUT, pc, at
                branch = data[at]
                at += 1
                if branch == null << 1:
                    if op <= Op.BOOLEAN_NUMBER:
                        cells[cell] = NULL_NUMBER
                    elif op == Op.STRING_TEXT:
                        cells[cell] = 0
                        cells[cell + capacity[table]] = -1
                    else:
                        cells[cell] = NULL
                    pc += 4
                    continue
                if branch != (1 - null) << 1:
                    return BRANCH, pc, at - 1
            if op == Op.FLOAT_NUMBER or op == Op.FLOAT_INTEGER or op == Op.FLOAT_LABEL:
                if end - at < 4:
                    return CUT, pc, at
                single = np.float64(np.uint32(_bits32(data, at)).view(np.float32))
                at += 4
                if op == Op.FLOAT_NUMBER:
                    numbers[cell] = single
                elif op == Op.FLOAT_LABEL:
                    cells[cell] = _number_label(single)
                else:
                    cells[cell] = _whole(single)
            elif op == Op.DOUBLE_NUMBER or op == Op.DOUBLE_INTEGER or op == Op.DOUBLE_LABEL:
                if end - at < 8:
                    return CUT, pc, at
                bits = _bits64(data, at)
                at += 8
                if op == Op.DOUBLE_NUMBER:
                    cells[cell] = bits
                elif op == Op.DOUBLE_LABEL:
                    cells[cell] = _number_label(np.int64(bits).view(np.float64))
                else:
                    cells[cell] = _whole(np.int64(bits).view(np.float64))
            elif op == Op.BOOLEAN_NUMBER or op == Op.BOOLEAN_INTEGER or op == Op.BOOLEAN_LABEL:
                if at >= end:
                    return CUT, pc, at
                truth = data[at]
                if truth > 1:
                    return BOOLEAN, pc, at
                at += 1
                if op == Op.BOOLEAN_NUMBER:
                    numbers[cell] = np.float64(truth)
                elif op == Op.BOOLEAN_INTEGER:
                    cells[cell] = np.int64(truth)
                else:
                    cells[cell] = _TRUE if truth else _FALSE
            else:
                value, after = _read_long(data, at, end)
                if after < 0:
                    return (CUT if after == -1 else LONG), pc, at
                at = after
                if op == Op.LONG_NUMBER:
                    numbers[cell] = np.float64(value)
                elif op == Op.LONG_INTEGER:
                    cells[cell] = value
                elif op == Op.LONG_LABEL:
                    cells[cell] = _digits(value)
                else:
                    if value < 0:
                        return NEGATIVE, pc, at
                    if value > end - at:
                        return CUT, pc, at
                    if not _is_utf8(data, at, at + value):
                        return UTF8, pc, at
                    if op == Op.STRING_TEXT:
                        cells[cell] = at
                        cells[cell + capacity[table]] = value
                    elif value > 8:
                        cells[cell] = OTHER
                    else:
                        label = np.uint64(0)
                        for k in range(value):
                            label |= np.uint64(data[at + k]) << np.uint64(8 * k)
                        cells[cell] = np.int64(label)
                    at += value
            pc += 4
        elif op == Op.SKIP_OPTIONAL_BYTES:
            null = code[pc + 1] << 1
            size = code[pc + 2]
            for _ in range(code[pc + 3]):
                if at >= end:
                    return CUT, pc, at
                branch = data[at]
                if branch == null:
                    at += 1
                elif branch == 2 - null:
                    if size >= end - at:
                        return CUT, pc, at
                    at += 1 + size
                else:
                    return BRANCH, pc, at
            pc += 4
        elif op == Op.SKIP_BYTES:
            if code[pc + 1] > end - at:
                return CUT, pc, at
            at += code[pc + 1]
            pc += 4
        elif op == Op.SKIP_LONGS or op == Op.SKIP_OPTIONAL_LONGS:
            null = code[pc + 1] << 1
            for _ in range(code[pc + 1] if op == Op.SKIP_LONGS else code[pc + 2]):
                if op == Op.SKIP_OPTIONAL_LONGS:
                    if at >= end:
                        return CUT, pc, at
                    branch = data[at]
                    if branch > 2 or branch == 1:
                        return BRANCH, pc, at
                    at += 1
                    if branch == null:
                        continue
                _, after = _read_long(data, at, end)
                if after < 0:
                    return (CUT if after == -1 else LONG), pc, at
                at = after
            pc += 4
        elif op == Op.SKIP_BLOBS or op == Op.SKIP_OPTIONAL_BLOBS:
            null = code[pc + 1] << 1
            for _ in range(code[pc + 1] if op == Op.SKIP_BLOBS else code[pc + 2]):
                if op == Op.SKIP_OPTIONAL_BLOBS:
                    if at >= end:
                        return CUT, pc, at
                    branch = data[at]
                    if branch > 2 or branch == 1:
                        return BRANCH, pc, at
                    at += 1
                    if branch == null:
                        continue
                value, after = _read_long(data, at, end)
                if after < 0:
                    return (CUT if after == -1 else LONG), pc, at
                if value < 0:
                    return NEGATIVE, pc, at
                if value > end - after:
                    return CUT, pc, at
                at = after + value
            pc += 4
        elif op == Op.UNION:
            value, after = _read_long(data, at, end)
            if after < 0:
                return (CUT if after == -1 else LONG), pc, at
            if value < 0 or value >= code[pc + 1]:
                return BRANCH, pc, at
            at = after
            pc += code[pc + 4 + value]
        elif op == Op.JUMP:
            pc += code[pc + 1]
        elif op == Op.OPEN:
            stack[depth] = 0
            depth += 1
            pc += 4
        elif op == Op.NEXT:
            if stack[depth - 1] == 0:
                value, after = _read_long(data, at, end)
                if after < 0:
                    return (CUT if after == -1 else LONG), pc, at
                if value == 0:
                    at = after
                    depth -= 1
                    pc += code[pc + 1]
                    continue
                if value < 0:  # the number of bytes follows, for readers that step over all items
                    if value == NULL:
                        return ITEMS, pc, at
                    value = -value
                    size, after = _read_long(data, after, end)
                    if after < 0:
                        return (CUT if after == -1 else LONG), pc, at
                    if size < 0:
                        return NEGATIVE, pc, at
                    if size > end - after:
                        return CUT, pc, at
                least = code[pc + 2]
                if least == 0:
                    at = after
                    continue
                if value > (end - after) // least:
                    return ITEMS, pc, at
                at = after
                stack[depth - 1] = value
            stack[depth - 1] -= 1
            pc += 4
        elif op == Op.ROW:
            table = code[pc + 1]
            row = rows[table]
            if row - begun[table] >= MAX_ROWS:
                return ROWS, pc, at
            if row >= capacity[table]:
                return MORE_ROWS, table, at
            cell = base[table] + row
            cells[cell] = owner
            cells[cell + capacity[table]] = code[pc + 2]
            rows[table] = row + 1
            pc += 4
        elif op == Op.NULL:
            table = code[pc + 1]
            cell = base[table] + code[pc + 2] * capacity[table] + rows[table] - 1
            if code[pc + 3] == Kind.NUMBER:
                cells[cell] = NULL_NUMBER
            elif code[pc + 3] == Kind.TEXT:
                cells[cell] = 0
                cells[cell + capacity[table]] = -1
            else:
                cells[cell] = NULL
            pc += 4
        elif op == Op.SKIP_ENUM:
            value, after = _read_long(data, at, end)
            if after < 0:
                return (CUT if after == -1 else LONG), pc, at
            if value < 0 or value >= code[pc + 1]:
                return SYMBOL, pc, at
            at = after
            pc += 4
        elif op == Op.END:
            return OK, pc, at
        else:
            return WRONG, pc, at


def _messages(
    code: Any, first: int, ends: Any, blocks: Any, entries: Any, cells: Any, numbers: Any, base: Any, capacity: Any,
    rows: Any, begun: Any, stack: Any, status: Any,
) -> tuple[int, int]:  # fmt: skip
    """Read messages from number ``first`` on; returns the message, and the table, that needs more rows, else the
    number of messages and -1.

    ``ends`` (messages,) is the number of the block after each message's last. ``blocks`` (blocks, 5): address,
    where records end, where they begin, how many, program. ``entries`` (programs, 2): where the code begins and the
    least size of a record. ``status`` (messages, 3) becomes what is wrong, the instruction and the position.
    """
    for message in range(first, len(ends)):
        for table in range(len(rows)):
            begun[table] = rows[table]
        problem, pc, at = OK, 0, 0
        for block in range(ends[message - 1] if message else 0, ends[message]):
            end = blocks[block, 1]
            data = carray(_pointer(blocks[block, 0]), end, np.uint8)
            at = blocks[block, 2]
            count = blocks[block, 3]
            entry = entries[blocks[block, 4], 0]
            pc = entry
            if count < 0 or count > (end - at) // entries[blocks[block, 4], 1]:
                problem = COUNT
                break
            for _ in range(count):
                row = rows[0]
                if row - begun[0] >= MAX_RECORDS:
                    problem = RECORDS
                    break
                if row >= capacity[0]:
                    problem = MORE_ROWS
                    pc = 0
                    break
                rows[0] = row + 1
                cells[base[0] + row] = message
                cells[base[0] + capacity[0] + row] = block
                problem, pc, at = _record(
                    code, entry, data, at, end, cells, numbers, base, capacity, rows, begun, stack
                )
                if problem != OK:
                    break
                cells[base[0] + 2 * capacity[0] + row] = at
            if problem != OK:
                break
            if at != end:
                problem = TRAILING
                break
        if problem != OK:
            for table in range(len(rows)):
                rows[table] = begun[table]
            if problem == MORE_ROWS:
                return message, pc
            status[message, 0] = problem
            status[message, 1] = pc
            status[message, 2] = at
    return len(ends), -1


_INT64: Final = types.Array(types.int64, 1, "C")
_TABLE64: Final = types.Array(types.int64, 2, "C")
_SIGNATURE: Final = types.UniTuple(types.int64, 2)(  # type: ignore[no-untyped-call]
    _INT64, types.int64, _INT64, _TABLE64, _TABLE64, _INT64, types.Array(types.float64, 1, "C"), _INT64, _INT64, _INT64,
    _INT64, _INT64, _TABLE64,
)  # fmt: skip


@cache
def machine() -> Callable[..., tuple[int, int]]:
    """The machine; compiled at the first call, or taken from Numba's cache on disk."""
    return compiled(_messages, _SIGNATURE)


def warm_up() -> None:
    """Compile the machine now and not at the first message: 10 s without Numba's cache, a tenth with it."""
    machine()
