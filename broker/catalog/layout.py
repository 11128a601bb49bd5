"""The bytes in which catalogues are kept: packed rows, and the index that says how to read them.

Keys, under the prefix that all of Trifid's have:

- ``<prefix>:catalogs``: the index, JSON, one for all catalogues; a reader needs nothing else to know where to look.
- ``<prefix>:catalogs:generations``: how many there were.
- ``<prefix>:cat:<name>:<generation>:<cell>``: the rows of one HEALPix cell, one after another.
- ``<prefix>:catalog:<name>:<generation>``: a hash, how far its loading got.

A row is little-endian words of four bytes: position, then one float32 for each stored column; of known variable
stars texts and a float64 (``broker.catalog.known.STORED``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.known import NAME, PERIOD, STORED, TYPE
from broker.catalog.plausible import EPOCH as EPOCH
from broker.errors import TrifidError
from broker.records import MAGNITUDES, METADATA_FEATURES
from broker.sky import ARCSEC, Array

VERSION: Final = 1
MARGIN: Final = 5.0
"""Arcsec by which an alert's star may have moved since a catalogue without proper motions saw it, and the cell
where it was then is read in any case: 0.19 arcsec a year over the 26 years since 2MASS."""
FIRST_YEAR, LAST_YEAR = 1990.0, 2060.0
"""Between these a source is found wherever its proper motion carries it."""
_RA_STEPS: Final = 2.0**32 / 360.0
_DEC_STEPS: Final = (2.0**32 - 1.0) / 180.0


class CatalogError(TrifidError):
    """Stored bytes that this version cannot read."""


@dataclass(frozen=True, slots=True)
class CatalogLayout:
    """How one generation of a catalogue is stored."""

    generation: int
    order: int
    """Of the HEALPix cells."""
    columns: tuple[str, ...]
    """Of METADATA_FEATURES, in the order of a row's words after the position; EPOCH may be the last."""
    epoch: float
    """Julian year of the positions, where EPOCH is no column or unknown."""
    radius: float
    """Arcsec within which a source is the alert's."""
    fixed_epoch: bool = False
    """Whether the epoch goes for all rows, whatever the tables say."""

    @property
    def words(self) -> int:
        """Words of four bytes in a row."""
        return 2 + sum(STORED.get(name, 1) for name in self.columns)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 4 * self.words

    @property
    def known(self) -> bool:
        """Whether it holds names and types of known variable stars, and no values."""
        return not set(self.columns).isdisjoint((NAME, TYPE))

    @property
    def moves(self) -> bool:
        """Whether the sources have proper motions of their own."""
        return "pmra" in self.columns and "pmdec" in self.columns

    @property
    def search_radius(self) -> float:
        """Arcsec around an alert in which cells are read."""
        return self.radius if self.moves else self.radius + MARGIN

    @property
    def features(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where the columns are among a row's values, and where among METADATA_FEATURES."""
        pairs = [(i, METADATA_FEATURES.index(c)) for i, c in enumerate(self.columns) if c != EPOCH]
        stored, features = np.array(pairs, np.intp).reshape(-1, 2).T
        return stored, features

    @property
    def brightness(self) -> str | None:
        """The column that tells the brighter of two sources."""
        preferred = ("phot_g_mean_mag", *MAGNITUDES)
        return next((name for name in preferred if name in self.columns), None)


@dataclass(slots=True)
class Entry:
    """One catalogue of the index."""

    name: str
    current: CatalogLayout | None = None
    """The complete generation that alerts are matched with."""
    loading: CatalogLayout | None = None
    """One that is not complete."""
    stale: tuple[int, ...] = ()
    """Generations whose keys are still to be deleted."""


def index_key(prefix: str) -> str:
    """Key of the index."""
    return f"{prefix}:catalogs"


def counter_key(prefix: str) -> str:
    """Key of the number of generations so far, of all catalogues: none is ever used again."""
    return f"{prefix}:catalogs:generations"


def cell_prefix(prefix: str, name: str, generation: int) -> str:
    """Keys of cells, without the number of the cell."""
    return f"{prefix}:cat:{name}:{generation}:"


def progress_key(prefix: str, name: str, generation: int) -> str:
    """Key of the record of how far loading got."""
    return f"{prefix}:catalog:{name}:{generation}"


def max_order(radius: float) -> int:
    """The order of the smallest cells in which a cone of ``radius`` arcsec and MARGIN is looked for."""
    size = ARCSEC * np.degrees(np.sqrt(np.pi / 3.0))
    return int(np.log2(size / (2.0 * (radius + MARGIN))))


def encode_index(entries: Sequence[Entry]) -> bytes:
    """The index, catalogues in the order in which they fill an alert's values."""
    return json.dumps({"version": VERSION, "catalogs": [asdict(entry) for entry in entries]}).encode()


def decode_index(data: bytes | None) -> list[Entry]:
    """The inverse of ``encode_index``, nothing for None; raises CatalogError for bytes of another form."""
    if data is None:
        return []
    try:
        index = json.loads(data)
        if index["version"] != VERSION:
            raise CatalogError(f"catalogues have version {index['version']}, this program reads version {VERSION}")
        return [
            Entry(e["name"], _layout(e["current"]), _layout(e["loading"]), tuple(map(int, e["stale"])))
            for e in index["catalogs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogError(f"the index of catalogues cannot be read: {error!r}") from error


def pack(ra: Array, dec: Array, values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Rows (n, 2 + k) of positions (n,) in ICRS degrees and values (n, k).

    Positions are kept to 0.15 mas in right ascension and 0.08 mas in declination.
    """
    words = np.empty((len(ra), 2 + values.shape[1]), "<u4")
    words[:, 0] = (np.rint(ra * _RA_STEPS).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
    words[:, 1] = np.rint((dec + 90.0) * _DEC_STEPS).astype(np.uint32)
    words[:, 2:] = np.ascontiguousarray(values, "<f4").view("<u4")
    return words


def pack_columns(columns: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Columns (n,) of texts and float64 as the words (n, k) that ``pack`` takes."""
    return np.concatenate(
        [np.ascontiguousarray(c).view("<f4").reshape(len(c), c.itemsize // 4) for c in columns], axis=1
    )


def unpack_columns(layout: CatalogLayout, stored: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The inverse of ``pack_columns`` for words (n, k) behind the position, by the layout's columns."""
    columns, first = {}, 0
    for name in layout.columns:
        block = np.ascontiguousarray(stored[:, first : first + STORED[name]])
        columns[name] = block.view("<f8" if name == PERIOD else f"S{4 * STORED[name]}")[:, 0]
        first += STORED[name]
    return columns


def unpack(words: NDArray[np.uint32]) -> tuple[Array, Array, NDArray[np.float32]]:
    """The inverse of ``pack``."""
    return words[:, 0] / _RA_STEPS, words[:, 1] / _DEC_STEPS - 90.0, words[:, 2:].view("<f4")


def _layout(fields: dict[str, Any] | None) -> CatalogLayout | None:
    if fields is None:
        return None
    layout = CatalogLayout(
        int(fields["generation"]), int(fields["order"]), tuple(fields["columns"]),
        float(fields["epoch"]), float(fields["radius"]), bool(fields["fixed_epoch"]),
    )  # fmt: skip
    if unknown := set(layout.columns) - {*METADATA_FEATURES, *STORED, EPOCH}:
        raise CatalogError(f"a catalogue has columns that this program does not know: {', '.join(sorted(unknown))}")
    return layout
