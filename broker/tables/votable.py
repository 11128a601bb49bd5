"""VOTables from anybody: read, without fetching or opening anything that they name.

astropy follows the ``href`` of a STREAM, to any address and to local files, and believes sizes that a table claims.
So the document is looked through by Python's own expat before: it may name no data outside itself, declare nothing
in a document type (entities, which can name files or grow without bound, and default attributes) and claim no more
than it can hold.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import IO, Any, Final
from xml.parsers import expat

MAX_BYTES: Final = 1 << 30
"""Of a document, decompressed: it is read as a whole."""
MAX_TABLE_BYTES: Final = 2 << 30
"""That its tables may take in memory, at most."""
_PIECE: Final = 1 << 20
_CHARACTER: Final = 4
_LONGEST: Final = 16
"""Bytes of one character, and of the longest number."""
_SIZE: Final = re.compile(r"\d+")


class VotableError(ValueError):
    """A VOTable that is refused; the message says why."""


def read(file: IO[bytes], max_bytes: int = MAX_BYTES) -> Any:
    """The ``astropy.io.votable.tree.VOTableFile`` of an open file at its start, with any gzip taken off.

    Raises VotableError for a document that names data outside itself, has entities or is too large, and what astropy
    raises (ValueError, OSError, LookupError, TypeError and SyntaxError) for one that is damaged.
    """
    from astropy.io.votable import parse

    _check(file, max_bytes)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what the standard asks for and services do not keep
        return parse(file, verify="ignore")


def _check(file: IO[bytes], max_bytes: int) -> None:
    parser = expat.ParserCreate()
    looked = _Looked()
    parser.StartElementHandler = looked.element
    parser.EntityDeclHandler = looked.entity
    parser.AttlistDeclHandler = looked.entity
    parser.ExternalEntityRefHandler = looked.entity
    size = 0
    try:
        while piece := file.read(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise VotableError(f"a VOTable of more than {max_bytes:,} bytes: convert it to Parquet or FITS")
            parser.Parse(piece, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise VotableError(f"not well-formed XML: {error}") from error
    looked.finish(size)


class _Looked:
    """What a document holds and claims."""

    def __init__(self) -> None:
        self._row_bytes = 0
        self._rows = 0
        self._claimed = 0
        self._binary = False

    def element(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2].upper()
        if tag == "TR":
            self._rows += 1
        elif tag == "FIELD":
            self._field({key.rpartition(":")[2].lower(): value for key, value in attributes.items()})
        elif tag == "STREAM":
            self._binary = True
            href = next((v for key, v in attributes.items() if key.rpartition(":")[2].lower() == "href"), None)
            if href is not None:
                raise VotableError(
                    f"its data are elsewhere (STREAM href={href[:200]!r}), which is not followed: "
                    "download a VOTable that holds its data"
                )
        elif tag in ("FITS", "PARQUET"):
            raise VotableError(f"its data are {tag}, not part of the VOTable: give that file itself")
        elif tag == "TABLE":
            claimed = next((v for key, v in attributes.items() if key.lower() == "nrows"), "")
            self._claimed = max(self._claimed, int(claimed) if claimed.strip().isdecimal() else 0)

    def entity(self, *_: Any) -> int:
        raise VotableError("its document type declares entities or attributes, which are not used: remove them")

    def finish(self, size: int) -> None:
        if self._binary and not self._row_bytes:
            raise VotableError("binary data without a FIELD")
        if self._claimed > size:  # memory for them would be taken before any is read
            raise VotableError(f"it claims {self._claimed:,} rows in {size:,} bytes")
        table = max(self._rows, self._claimed, 1) * self._row_bytes
        if table > MAX_TABLE_BYTES:
            raise VotableError(
                f"its rows would take {table:,} bytes, more than {MAX_TABLE_BYTES:,}: convert it to Parquet or FITS"
            )

    def _field(self, attributes: dict[str, str]) -> None:
        shape = [int(size) for size in _SIZE.findall(attributes.get("arraysize", ""))]
        if 0 in shape:  # such a column takes no bytes, and rows of them never end
            raise VotableError(f"column {attributes.get('name', '')!r:.80} has the array size 0")
        text = attributes.get("datatype", "").lower().endswith("char")
        self._row_bytes += math.prod(shape) * (_CHARACTER if text else _LONGEST)
