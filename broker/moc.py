"""Regions of the sky as MOCs (IVOA, Multi-Order Coverage map 2.0): ASCII, JSON, and FITS of cells or ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from broker import sky
from broker.errors import ConfigurationError, InputFileError

if TYPE_CHECKING:
    from broker.tables.table import Table

ORDER: Final = 29
"""Of the cells that ranges are of, the finest that HEALPix has in 64 bits."""
MAX_RANGES: Final = 200_000
Ranges = NDArray[np.int64]
"""(m, 2) first cell and the one behind the last, nested, of ORDER; sorted, without overlaps."""
NOWHERE: Final[Ranges] = np.empty((0, 2), np.int64)
_PART: Final = re.compile(r"(?:(\d{1,2})/)?(?:(\d{1,20})(?:-(\d{1,20}))?)?")


def of_text(text: str) -> Ranges:
    """Of ``5/1,3-7 6/24`` or ``{"5": [1, 3]}``; raises InputFileError."""
    text = text.strip()
    return _of_json(text) if text.startswith("{") else _of_ascii(text)


def _of_ascii(text: str) -> Ranges:
    order, found = -1, []
    for part in re.split(r"[\s,]+", text):
        match = _PART.fullmatch(part)
        if match is None or (match[1] is None and order < 0):
            raise InputFileError(f"no MOC: {part[:40]!r}; one is such as 5/1,3-7 6/24")
        order = order if match[1] is None else int(match[1])
        if match[2] is not None:
            found.append((order, int(match[2]), int(match[3] or match[2])))
    return _of_cells(found)


def _of_json(text: str) -> Ranges:
    try:
        given = json.loads(text)
        found = [(int(order), int(cell), int(cell)) for order, cells in given.items() for cell in cells]
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputFileError('no MOC: one in JSON is such as {"5": [1, 3], "6": [24]}') from None
    return _of_cells(found)


def _of_cells(cells: Iterable[tuple[int, int, int]]) -> Ranges:
    """Of order, first and last cell."""
    ranges = []
    for order, first, last in cells:
        if not (0 <= order <= ORDER and 0 <= first <= last < 12 << 2 * order):
            raise InputFileError(f"no MOC: no cells {first} to {last} of order {order}")
        shift = 2 * (ORDER - order)
        ranges.append((first << shift, (last + 1) << shift))
        if len(ranges) > 10 * MAX_RANGES:
            break
    return _joined(np.array(ranges, np.int64).reshape(-1, 2))


def is_text(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a MOC in ASCII or JSON, if it is one at all."""
    start = head.lstrip()
    order, slash, _ = start[:4].partition(b"/")
    return start.startswith(b"{") or (bool(slash) and order.isdigit())


def of_text_file(path: Path) -> Ranges:
    """Of a file in ASCII or JSON; raises InputFileError."""
    try:
        return of_text(path.read_text("ascii"))
    except UnicodeDecodeError:
        raise InputFileError(f"{path}: no MOC: it has characters other than ASCII") from None


def of_file(path: Path) -> Ranges:
    """Of a file in ASCII, JSON or FITS; raises InputFileError.

    FITS takes pyarrow and astropy, which not every installation has: raises ConfigurationError without them.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}") from error
    if is_text(head):
        return of_text_file(path)
    if not head.startswith((b"SIMPLE", b"\x1f\x8b")):
        raise InputFileError(f"{path}: no MOC: neither text such as 5/1,3-7 6/24, nor JSON, nor FITS")
    try:
        from broker.tables.files import open_table

        table = open_table(path)
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: a MOC in FITS needs astropy and pyarrow: pip install astropy pyarrow ({error}); one in ASCII or "
            "JSON needs neither"
        ) from error
    if not is_moc(table.header, table.names):
        raise InputFileError(f"{path}: a FITS table, but no MOC")
    return of_table(table)


def is_moc(header: Mapping[str, Any], names: list[str]) -> bool:
    """Whether a FITS table is one, by its header and columns."""
    told = "MOCVERS" in header or str(header.get("PIXTYPE", "")).strip() == "HEALPIX"
    return told and names in (["UNIQ"], ["RANGE"], ["NPIX"])


def of_table(table: Table) -> Ranges:
    """Of a FITS table; raises InputFileError where it holds times, or no cells."""
    header, (name,) = table.header, table.names
    if str(header.get("MOCDIM", "SPACE")).strip() != "SPACE":
        raise InputFileError("a MOC of times, not of the sky")
    if str(header.get("COORDSYS", "C")).strip() not in ("C", "", "ICRS"):
        raise InputFileError(f"a MOC in the coordinates {header['COORDSYS']}, not ICRS (C)")
    parts = [np.asarray(batch.column(0).to_numpy(zero_copy_only=False), np.int64) for batch in table.batches([name])]
    values = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if name == "RANGE":
        if len(values) % 2:
            raise InputFileError("no MOC: a range without its end")
        return _joined(values.reshape(-1, 2))
    if (values < 4).any():
        raise InputFileError("no MOC: a cell's number below 4")
    # UNIQ = 4 * 4^order + cell; frexp is exact: halves of the exponent of two are the order.
    order = (np.frexp(values.astype(np.float64))[1] - 3) // 2
    # A number close below a power of two was rounded up to it.
    order -= (values >> 2 * (order + 1)) < 1
    cell, shift = values - (np.int64(4) << 2 * order), 2 * (ORDER - order)
    if (order > ORDER).any() or (cell >= np.int64(12) << 2 * np.minimum(order, ORDER)).any():
        raise InputFileError("no MOC: a cell that there is not")
    return _joined(np.stack([cell << shift, (cell + 1) << shift], axis=1))


def _joined(ranges: Ranges) -> Ranges:
    """Sorted, those that touch as one."""
    if not len(ranges):
        raise InputFileError("a MOC without cells")
    if (ranges[:, 0] < 0).any() or (ranges[:, 1] <= ranges[:, 0]).any() or (ranges[:, 1] > 12 << 2 * ORDER).any():
        raise InputFileError("no MOC: ranges that are none")
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    behind = np.maximum.accumulate(ranges[:, 1])
    begins = np.concatenate([[True], ranges[1:, 0] > behind[:-1]])
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(ranges)) - 1
    joined = np.stack([ranges[starts, 0], behind[ends]], axis=1)
    if len(joined) > MAX_RANGES:
        raise InputFileError(f"a MOC of {len(joined):,} separate ranges; {MAX_RANGES:,} are the most")
    return joined


def cells_of(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) the cells of ORDER of positions (n,) in ICRS degrees."""
    return sky.cells(ra, dec, ORDER)


def inside(ranges: Ranges, cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) which cells of ORDER are in a region."""
    if not len(ranges):
        return np.zeros(len(cells), np.bool_)
    place = np.searchsorted(ranges[:, 0], cells, side="right") - 1
    return np.asarray((place >= 0) & (cells < ranges[np.maximum(place, 0), 1]), np.bool_)
