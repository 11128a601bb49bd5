"""What a list holds: positions with a label, names of objects, a region; from files, text and the database."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker import moc, sky
from broker.errors import InputFileError
from broker.lightcurves.columns import DEC, NAME, RA, as_text, find
from broker.lightcurves.values import angles
from broker.tables.files import open_table
from broker.tables.table import Table

MOST: Final = 1_000_000
"""Positions and names of one file, whatever a user's quota."""
_LONGEST: Final = 128
"""Characters of a name."""
Array = NDArray[np.float64]


def _none() -> Array:
    return np.empty(0, np.float64)


@dataclass(slots=True)
class Content:
    """Of one list."""

    ra: Array = field(default_factory=_none)
    """(n,) ICRS degrees, as ``dec``."""
    dec: Array = field(default_factory=_none)
    labels: list[str] = field(default_factory=list)
    """What the user calls each position; may be empty."""
    names: list[str] = field(default_factory=list)
    """Of objects in a survey, ``ZTF18abc`` or ``ztf:ZTF18abc``."""
    region: moc.Ranges = field(default_factory=lambda: moc.NOWHERE)
    remarks: list[str] = field(default_factory=list)
    """What was left out of a file."""

    @property
    def size(self) -> int:
        """Positions and names together, which quotas count."""
        return len(self.ra) + len(self.names)

    def __bool__(self) -> bool:
        return bool(self.size or len(self.region))

    def joined(self, other: Content) -> Content:
        """Both together; the region of ``other`` where it has one."""
        return Content(
            np.concatenate([self.ra, other.ra]),
            np.concatenate([self.dec, other.dec]),
            self.labels + other.labels,
            list(dict.fromkeys(self.names + other.names)),
            other.region if len(other.region) else self.region,
            self.remarks + other.remarks,
        )

    def stored(self) -> dict[str, bytes]:
        """Columns of the database."""
        return {
            "places": zlib.compress(np.concatenate([self.ra, self.dec]).astype("<f8").tobytes(), 1),
            "texts": zlib.compress(json.dumps([self.labels, self.names]).encode(), 1),
            "region": zlib.compress(self.region.astype("<i8").tobytes(), 1),
        }

    @classmethod
    def of_stored(cls, places: bytes, texts: bytes, region: bytes) -> Content:
        """The inverse of ``stored``."""
        both = np.frombuffer(zlib.decompress(places), "<f8").astype(np.float64).reshape(2, -1)
        labels, names = json.loads(zlib.decompress(texts))
        ranges = np.frombuffer(zlib.decompress(region), "<i8").astype(np.int64).reshape(-1, 2)
        return cls(both[0], both[1], labels, names, ranges)


def of_lines(text: str) -> Content:
    """Of lines as people write them: ``ra, dec[, label]`` in degrees or sexagesimal, or an object's name.

    Without a label, a space will do between the two.

    Raises InputFileError, naming the line.
    """
    places: list[tuple[float, float, str]] = []
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = [part.strip() for part in line.split(",", 2)]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(parts) == 1 and len(words) > 1 and _is_position(words[0], words[1]):
            if len(words) > 2:
                raise InputFileError(f"line {number}: {line[:60]!r}: give commas, as in 269.45, 4.69, my star")
            parts = words
        if len(parts) == 1:
            names.append(_name(parts[0], f"line {number}"))
            continue
        ra, dec = sky.angle(parts[0], hours=True), sky.angle(parts[1], hours=False)
        if ra is None or dec is None or not (0.0 <= ra <= 360.0 and abs(dec) <= 90.0):
            raise InputFileError(f"line {number}: {line[:60]!r} is no position such as 269.45, 4.69, my star")
        places.append((ra, dec, _name(parts[2], f"line {number}") if len(parts) == 3 and parts[2] else ""))
    ra_dec = np.array([place[:2] for place in places], np.float64).reshape(-1, 2)
    return Content(ra_dec[:, 0], ra_dec[:, 1], [place[2] for place in places], list(dict.fromkeys(names)))


def _is_position(ra: str, dec: str) -> bool:
    return sky.angle(ra, hours=True) is not None and sky.angle(dec, hours=False) is not None


def of_file(path: Path, limit: int) -> Content:
    """Of a table with positions or names, or a MOC in FITS, ASCII or JSON; ``limit`` in bytes when unpacked.

    Raises InputFileError where nothing of it can be used.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if moc.is_text(head):
        return Content(region=moc.of_text_file(path))
    table = open_table(path, limit)
    if moc.is_moc(table.header, table.names):
        return Content(region=moc.of_table(table))
    return _of_table(table)


def _of_table(table: Table) -> Content:
    ra, dec, name = (find(table.names, spellings) for spellings in (RA, DEC, NAME))
    if (ra is None) != (dec is None):
        raise InputFileError(f"{table.path}: a column {ra or dec} without the other of ra and dec")
    if ra is None and name is None:
        raise InputFileError(
            f"{table.path}: neither columns of positions (ra, dec) nor of names (name, object_id); it has "
            + ", ".join(table.names)[:200]
        )
    wanted = [one for one in (ra, dec, name) if one is not None]
    table.keep(wanted)
    found, left_out, rows = Content(), 0, 0
    for batch in table.batches(wanted, numbers=[one for one in (ra, dec) if one is not None]):
        rows += batch.num_rows
        if rows > MOST:
            raise InputFileError(f"{table.path}: more than {MOST:,} rows")
        texts = _texts(batch, name)
        if ra is None or dec is None:
            found.names += [_name(text, "a name") for text in texts if text]
            left_out += sum(1 for text in texts if not text)
            continue
        east, north = (
            angles(batch[column], hours, table.decimal_comma) for column, hours in ((ra, True), (dec, False))
        )
        good = np.isfinite(east) & np.isfinite(north) & (np.abs(north) <= 90.0) & (east >= 0.0) & (east <= 360.0)
        left_out += int(np.count_nonzero(~good))
        found.ra, found.dec = (np.concatenate([old, new[good]]) for old, new in ((found.ra, east), (found.dec, north)))
        found.labels += [texts[row][:_LONGEST] for row in np.flatnonzero(good).tolist()]
    found.names = list(dict.fromkeys(found.names))
    if not found:
        raise InputFileError(
            f"{table.path}: {'no row' if not rows else f'none of {rows:,} rows'} has a place or a name"
        )
    if left_out:
        found.remarks.append(f"{left_out:,} of {rows:,} rows were left out: no place in degrees, or no name")
    return found


def _texts(batch: pa.RecordBatch, name: str | None) -> list[str]:
    if name is None:
        return [""] * batch.num_rows
    texts: list[Any] = as_text(batch[name]).to_pylist()
    return ["" if text is None else "".join(c for c in str(text).strip() if c.isprintable()) for text in texts]


def _name(text: str, where: str) -> str:
    if len(text) > _LONGEST or not text.isprintable():
        raise InputFileError(f"{where}: a name has at most {_LONGEST} printable characters")
    return text
