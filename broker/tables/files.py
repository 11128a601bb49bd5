"""Tables from files of any format and compression, told by what they hold and not by their names.

| format | told by |
|---|---|
| Parquet | its magic bytes ``PAR1`` |
| FITS | ``SIMPLE  =`` |
| VOTable | ``<``, as any XML |
| CDS | a "Byte-by-byte Description" above the rows or in a ReadMe beside the file |
| text: CSV, TSV, ECSV, IPAC, VizieR, ... | all others without zero bytes |
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Final

from broker.avro.container import CONTAINER_MAGIC
from broker.errors import InputFileError
from broker.tables.cds import described
from broker.tables.content import MAX_UNPACKED, head_of
from broker.tables.encoding import decoded
from broker.tables.fits import FitsTable
from broker.tables.parquet import ParquetTable
from broker.tables.table import Table, input_errors
from broker.tables.text import ECSV, TextTable
from broker.tables.votable import MAX_BYTES as MAX_VOTABLE_BYTES
from broker.tables.votable import VoTable

SUFFIXES: Final = (
    ".parquet", ".pq", ".csv", ".tsv", ".ecsv", ".txt", ".fits", ".fit", ".xml", ".vot", ".votable",
    ".gz", ".bz2", ".xz", ".zst",
)  # fmt: skip
"""Of the files that are taken for tables in a folder."""


_IPAC: Final = re.compile(r"(?:\\.*\n|\s*\n)*\|.*\|[ \t]*\n(?:\|.*\n)*[^|\n]")


class Format(Enum):
    """Of a file's content."""

    PARQUET = "Parquet"
    FITS = "FITS"
    VOTABLE = "VOTable"
    AVRO = "Avro"
    TEXT = "text"


def format_of(head: bytes) -> Format:
    """The format of a content, by its first bytes."""
    for magic, format in ((b"PAR1", Format.PARQUET), (b"SIMPLE  =", Format.FITS), (CONTAINER_MAGIC, Format.AVRO)):
        if head.startswith(magic):
            return format
    return Format.VOTABLE if _is_xml(head) else Format.TEXT


def is_described(path: Path, head: bytes) -> bool:
    """Whether a text that begins with ``head`` says what its columns are: ECSV, IPAC, and fixed columns of the CDS."""
    text = decoded(head)
    return text.startswith(ECSV) or _IPAC.match(text) is not None or described(path, head) is not None


def open_table(path: Path, limit: int = MAX_UNPACKED) -> Table:
    """The table in a file, the first of several.

    Raises InputFileError, with the file's name, where it is none, is damaged, or has more than ``limit`` bytes when
    decompressed and has to be read as a whole (VOTable: 1 GiB at most) or in any order (Parquet, FITS).
    """
    with input_errors(path):
        head = head_of(path)
        match format_of(head):
            case Format.PARQUET:
                return ParquetTable(path, limit)
            case Format.FITS:
                return FitsTable(path, limit)
            case Format.VOTABLE:
                return VoTable(path, min(limit, MAX_VOTABLE_BYTES))
            case Format.AVRO:
                raise InputFileError("Avro, no table: alerts, or a message of spectra")
            case Format.TEXT:
                return described(path, head) or TextTable(path)


def _is_xml(head: bytes) -> bool:
    """Whether a file begins as XML does, in UTF-8 or UTF-16."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")):
        head = head.replace(b"\0", b"").lstrip(b"\xff\xfe")
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
