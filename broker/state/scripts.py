"""The scripts of state, and how they are called: once on a single Redis, once for each home in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from typing import Any, Final

from broker.state.batch import Copy, StoredBatch
from broker.state.encoding import STAMP_BYTES
from broker.state.keys import ObjectName, object_key, sky_key


def _script(name: str) -> str:
    text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
    return text.replace("STAMP_BYTES", str(STAMP_BYTES))


READ: Final = _script("read")
WRITE: Final = _script("write")
REMOVE: Final = _script("remove")
Row = list[Any]
"""Arguments for one object or position."""
Call = tuple[list[str], list[Row]]
"""Homes, and rows that begin with the number of theirs."""


def calls_of(rows: Sequence[tuple[str, Row]], *, together: bool) -> list[Call]:
    """Calls of a script for rows in order of their homes: one for all, or one for each home."""
    calls: list[Call] = []
    for home, group in groupby(rows, key=lambda row: row[0]):
        if not together or not calls:
            calls.append(([], []))
        homes, of = calls[-1]
        homes.append(home)
        of += [[len(homes), *row] for _, row in group]
    return calls


def removal(prefix: str, name: ObjectName, home: str, copy: Copy) -> tuple[list[str], list[str | bytes]]:
    """Keys and arguments of ``remove.lua``."""
    keys = [object_key(prefix, home, name, kind) for kind in ("lc", "ps")]
    if copy.cell is not None:
        keys.append(sky_key(prefix, home, "objects", copy.cell))
    return keys, [(copy.value or b"")[:STAMP_BYTES], ":".join(name)]


def left_of(batch: StoredBatch, calls: Sequence[Call], found: Sequence[Any]) -> list[Call]:
    """Take in the answers to calls of READ; gives those for what was left."""
    left = []
    for (homes, rows), answer in zip(calls, found, strict=True):
        done = batch.add(answer, homes)
        if done < len(rows):
            left.append((homes, rows[done:]))
    return left
