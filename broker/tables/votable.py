"""VOTables from anybody: read, without fetching or opening anything that they name.

astropy follows the ``href`` of a STREAM, to any address and to local files, and believes sizes that a table claims.
So the document is looked through by Python's own expat before: it may name no data outside itself, declare nothing
in a document type (entities, which can name files or grow without bound, and default attributes) and claim no more
than it can hold.
"""

from __future__ import annotations

import math
import re
import tempfile
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final
from xml.parsers import expat

import numpy as np
import pyarrow as pa

from broker.files import Stream
from broker.tables.arrays import to_arrow
from broker.tables.content import open_content
from broker.tables.table import Table, TableColumn, input_errors

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


class VoTable(Table):
    """The first table of a VOTable, which is parsed once, as a whole."""

    format = "VOTable"

    def __init__(self, path: Path, limit: int = MAX_BYTES) -> None:
        """``limit`` is in bytes, of the content; raises what ``read`` does."""
        self.path, self._length = path, path.stat().st_size
        document = read(lambda: open_content(path), limit)
        table = document.get_first_table()
        # The name is what the archive calls a column; the ID, a name made fit for XML, keys the array.
        self._ids = {field.name or field.ID: field.ID or field.name for field in table.fields}
        about = {field.name or field.ID: field for field in table.fields}
        self.columns = [
            TableColumn(
                name, str(f.unit) if f.unit is not None else None, str(f.description or "").strip(), f.ucd or ""
            )
            for name, f in about.items()
        ]
        params = [*table.params, *(p for resource in document.resources for p in resource.params)]
        self.header = {p.name: p.value for p in params}
        self.rows = len(table.array)
        self._array = table.array
        self._kept: Path | None = None

    def keep(self, names: Sequence[str]) -> None:
        """Keep these columns in a temporary file and nothing in memory."""
        with input_errors(self.path):
            with tempfile.NamedTemporaryFile(prefix="trifid-", suffix=".arrow", delete=False) as file:
                self._kept = Path(file.name)
                self._delete = weakref.finalize(self, self._kept.unlink, missing_ok=True)
                arrays = [to_arrow(n, *self._column(n, slice(None))) for n in names]
                whole = pa.RecordBatch.from_arrays(arrays, names=list(names))
                with pa.ipc.new_file(str(self._kept), whole.schema) as writer:
                    writer.write_batch(whole)
            self._array = None

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
        total = self.rows or 0
        with input_errors(self.path):
            kept = None
            if self._kept is not None and total:
                kept = pa.ipc.open_file(pa.memory_map(str(self._kept))).get_batch(0).select(list(names))
            for first in range(start, total, size):
                self.bytes_read = self._length * min(first + size, total) // total
                if kept is not None:
                    yield kept.slice(first, size)
                else:
                    arrays = [to_arrow(name, *self._column(name, slice(first, first + size))) for name in names]
                    yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _column(self, name: str, rows: slice) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        column = self._array[self._ids[name]][rows]
        return np.ma.getdata(column), np.ma.getmaskarray(column)


def read(opened: Callable[[], AbstractContextManager[tuple[Any, Stream]]], max_bytes: int = MAX_BYTES) -> Any:
    """The ``astropy.io.votable.tree.VOTableFile`` of a content, which is opened twice.

    Raises VotableError for a document that names data outside itself, has entities or is too large, and what astropy
    raises (ValueError, OSError, LookupError, TypeError and SyntaxError) for one that is damaged.
    """
    from astropy.io.votable import parse

    with opened() as (_, content):
        _check(content, max_bytes)
    with warnings.catch_warnings(), opened() as (_, content):
        warnings.simplefilter("ignore")  # on what the standard asks for and services do not keep
        return parse(content.take, verify="ignore")  # whose reader takes a short piece for the last


def _check(file: Stream, max_bytes: int) -> None:
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
