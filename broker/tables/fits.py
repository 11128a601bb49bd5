"""Tables in FITS, and what a file claims of its size, checked against what it has before anything is read for it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa

from broker.errors import InputFileError
from broker.tables.arrays import to_arrow
from broker.tables.content import MAX_UNPACKED, buffered, open_content, seekable
from broker.tables.table import Table, TableColumn, input_errors

_BLOCK: Final = 2880
_MAX_HEADER_BLOCKS: Final = 5000
_MAX_UNITS: Final = 10_000


class FitsError(ValueError):
    """A FITS file that is refused; the message says why."""


class FitsTable(Table):
    """The first table of a FITS file, through a memory map; of a compressed one, from a temporary file."""

    format = "FITS table"

    def __init__(self, path: Path, limit: int = MAX_UNPACKED) -> None:
        """``limit`` is in bytes, of a compressed file. Raises FitsError and InputFileError."""
        self.path, self._limit, self._length = path, limit, path.stat().st_size
        with open_content(path) as (_, content), buffered(content) as file:
            headers = check_fits(file)
        header = next((h for h in headers if str(h.get("XTENSION", "")).strip() in ("BINTABLE", "TABLE")), None)
        if header is None:
            raise InputFileError("no table in this FITS file")
        self.rows = int(header["NAXIS2"])
        self.columns = [
            TableColumn(
                str(header.get(f"TTYPE{n}", f"col{n}")).strip(),
                str(header.get(f"TUNIT{n}", "")).strip() or None,
                str(header.get(f"TCOMM{n}", "")),
                str(header.get(f"TUCD{n}", "")),
            )
            for n in range(1, int(header.get("TFIELDS", 0)) + 1)
        ]
        self.header = {str(key): value for source in (headers[0], header) for key, value in source.items()}

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
        place = {name: number for number, name in reversed(list(enumerate(self.names)))}
        with input_errors(self.path), seekable(self.path, self._limit) as file, _first_table(file) as table:
            total = len(table.data)
            for first in range(start, total, size):
                rows = table.data[first : first + size]
                arrays = []
                for name in names:
                    column = table.columns[place[name]]
                    values = np.asarray(rows.field(place[name]))
                    missing = None if column.null is None or values.dtype == object else values == column.null
                    arrays.append(to_arrow(name, values, missing))
                self.bytes_read = self._length * min(first + size, total) // max(total, 1)
                yield pa.RecordBatch.from_arrays(arrays, names=list(names))


@contextmanager
def _first_table(file: IO[bytes]) -> Iterator[Any]:
    from astropy.io import fits

    with fits.open(file, mode="readonly", memmap=True, disable_image_compression=True) as found:
        yield next(hdu for hdu in found if isinstance(hdu, fits.BinTableHDU | fits.TableHDU))


def check_fits(file: IO[bytes], max_pixels: int | None = None) -> list[Any]:
    """Look through an open file from its start, and return the header of each of its units.

    Raises FitsError where a header has no end, is damaged or claims more data than the file has, or where an image
    has more than ``max_pixels`` pixels.
    """
    headers: list[Any] = []
    for number in range(_MAX_UNITS):
        start = file.read(_BLOCK)
        if number and not start.startswith(b"XTENSION="):
            return headers  # nothing more, or what is no extension, which readers leave alone
        header = _header(file, start)
        headers.append(header)
        where = f"extension {number} ({str(header.get('EXTNAME', ''))[:40]})" if number else "the primary header"
        pixels, size = _size(header, where)
        if max_pixels is not None and str(header.get("XTENSION", "IMAGE")).strip() == "IMAGE" and pixels > max_pixels:
            raise FitsError(f"{where} claims an image of {pixels:,} pixels; {max_pixels:,} are the most that are read")
        _skip(file, size, where)
    raise FitsError(f"more than {_MAX_UNITS} extensions")


def _header(file: IO[bytes], block: bytes) -> Any:
    from astropy.io import fits

    blocks: list[bytes] = []
    while len(block) == _BLOCK and len(blocks) < _MAX_HEADER_BLOCKS:
        blocks.append(block)
        if any(block[at : at + 80].rstrip() == b"END" for at in range(0, _BLOCK, 80)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return fits.Header.fromstring(b"".join(blocks))
        block = file.read(_BLOCK)
    raise FitsError("a header without an END card: cut short, or no FITS file")


def _size(header: Any, where: str) -> tuple[int, int]:
    """Pixels (or bytes of a table) and bytes of data of a unit, without padding."""
    try:
        axes = [int(header[f"NAXIS{n + 1}"]) for n in range(int(header["NAXIS"]))]
        width = abs(int(header["BITPIX"])) // 8
        extra, groups = int(header.get("PCOUNT", 0)), int(header.get("GCOUNT", 1))
    except (KeyError, ValueError, TypeError) as error:
        raise FitsError(f"{where} is damaged: {error}") from error
    if header.get("GROUPS") is True and axes and axes[0] == 0:
        axes = axes[1:]
    pixels = math.prod(axes) if axes else 0
    if min([*axes, extra, groups]) < 0:
        raise FitsError(f"{where} is damaged: a negative size")
    return pixels, width * groups * (extra + pixels)


def _skip(file: IO[bytes], size: int, where: str) -> None:
    """Go past data of ``size`` bytes and their padding; raises FitsError where the file ends before."""
    if not size:
        return
    start = file.tell()
    try:
        file.seek(start + size - 1)
        last = file.read(1)
    except (OSError, OverflowError):  # past what the file system can hold
        last = b""
    if not last:
        raise FitsError(f"{where} claims {size:,} bytes of data, more than the file has: cut short or damaged")
    file.seek(start + -(-size // _BLOCK) * _BLOCK)
