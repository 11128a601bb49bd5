"""What a FITS file claims of its size, checked against what it has, before anything is read for it."""

from __future__ import annotations

import math
import warnings
from typing import IO, Any, Final

_BLOCK: Final = 2880
_MAX_HEADER_BLOCKS: Final = 5000
_MAX_UNITS: Final = 10_000


class FitsError(ValueError):
    """A FITS file that is refused; the message says why."""


def check_fits(file: IO[bytes], max_pixels: int | None = None) -> None:
    """Look through the headers of an open file from its start.

    Raises FitsError where a header has no end, is damaged or claims more data than the file has, or where an image
    has more than ``max_pixels`` pixels.
    """
    for number in range(_MAX_UNITS):
        start = file.read(_BLOCK)
        if number and not start.startswith(b"XTENSION="):
            return  # nothing more, or what is no extension, which readers leave alone
        header = _header(file, start)
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
