"""Generations of each catalogue in Redis: one in use, perhaps one being loaded, what is left of dropped ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
import redis

from broker.catalog.cells import CellRows, by_cell
from broker.catalog.layout import (
    CatalogLayout,
    Entry,
    cell_prefix,
    counter_key,
    decode_index,
    encode_index,
    index_key,
    progress_key,
)
from broker.catalog.plausible import Counts
from broker.catalog.tables import Chunk
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.redis_client import CommandPipeline, RedisConnection, literally
from broker.redis_errors import redis_errors

_APPEND: Final = resources.files(__package__).joinpath("append.lua").read_text("utf-8")
_EXTEND: Final = """
local value = redis.call('GET', KEYS[1]) or ''
if #value == tonumber(ARGV[1]) then redis.call('SET', KEYS[1], value .. ARGV[2]) end
"""
"""Appends rows to a cell that has so many bytes, once."""
_WRITING: Final = "writing"
"""Field of a record in a cluster: a chunk is being written, cell by cell, on many nodes."""
_UNKNOWN: Final = "unknown:"
"""Begins the fields of a record that count values left out: ``unknown:<column>:<reason>``."""
_SCAN: Final = 5000
_OTHERS: Final = "catalogue {} is being loaded, or was dropped, by another process"
_TIMEOUT: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Contents:
    """What a generation of a catalogue holds."""

    rows: int
    """Sources."""
    skipped: int
    """Rows without a position or values."""
    chunks: int
    """Scripts that wrote it."""
    stored: int
    """Rows stored: more than ``rows``, as a source is in each cell that its path crosses."""
    files: dict[str, FileProgress]
    unknown: Counts
    """Values that were left out as unknown, and rows ("position", "row"), by column and reason."""
    writing: bool = False
    """In a cluster: whether a chunk is being written, or was when the loading stopped."""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """What was read of one file; the file is known by folder, name, size and time of its last change."""

    size: int
    mtime_ns: int
    rows: int
    """Rows read so far."""
    done: bool


class Generations:
    """The index of one Redis, and what it refers to; a generation is seen by alerts once it is published."""

    def __init__(self, url: str, prefix: str) -> None:
        """``url`` as redis-py takes it."""
        # No retries: a script whose answer was lost may have been done. The next load finds out where to go on.
        self._redis = RedisConnection(url, timeout=_TIMEOUT, retries=False)
        self._prefix = prefix

    @property
    def _client(self) -> Any:
        return self._redis.client

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def get(self, key: str) -> bytes | None:
        """One value."""
        with self.calls():
            value: bytes | None = self._client.get(key)
        return value

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Several values, in the order of their keys."""
        with self.calls():
            return self._redis.get_many(keys)

    def entries(self) -> list[Entry]:
        """All catalogues, in the order in which they fill an alert's values."""
        with self.calls():
            return decode_index(self._client.get(index_key(self._prefix)))

    def contents(self, name: str, layout: CatalogLayout) -> Contents:
        """What a generation holds so far."""
        with self.calls():
            record = self._client.hgetall(progress_key(self._prefix, name, layout.generation))
        files = {
            field.decode()[5:]: FileProgress(**json.loads(value))
            for field, value in record.items()
            if field.startswith(b"file:")
        }
        rows, skipped, chunks, stored = (int(record.get(f, 0)) for f in (b"rows", b"skipped", b"chunks", b"stored"))
        unknown: Counts = {}
        for field, count in record.items():
            if field.startswith(_UNKNOWN.encode()):
                column, _, reason = field.decode()[len(_UNKNOWN) :].partition(":")
                unknown.setdefault(column, {})[reason] = int(count)
        return Contents(
            rows, skipped, chunks, stored, files, dict(sorted(unknown.items())), writing=_WRITING.encode() in record
        )

    def entry(self, name: str) -> Entry | None:
        """One catalogue; None where there is none of that name."""
        return next((entry for entry in self.entries() if entry.name == name), None)

    def begin(
        self, name: str, order: int, columns: tuple[str, ...], epoch: float, radius: float, *, fixed_epoch: bool
    ) -> CatalogLayout:
        """Note a new generation in the index; see ``CatalogLayout`` for what it is made of."""
        with self.calls():
            generation = self._client.incr(counter_key(self._prefix))
        layout = CatalogLayout(generation, order, columns, epoch, radius, fixed_epoch)

        def change(entries: list[Entry]) -> list[Entry]:
            if name not in (e.name for e in entries):
                entries.append(Entry(name))
            for e in entries:
                if e.name == name:
                    e.loading = layout
            return entries

        self.change(change)
        return layout

    def append(
        self,
        name: str,
        layout: CatalogLayout,
        chunks: int,
        file: str,
        before: FileProgress,
        after: FileProgress,
        chunk: Chunk | None,
    ) -> None:
        """Write one chunk, after ``chunks`` others, and how far the file is read after it."""
        new = [b"", b"", b""]
        counts = [0, 0, 0]
        unknown: list[str | int] = []
        if chunk is not None:
            packed = by_cell(layout, chunk)
            new = [packed.cells.tobytes(), packed.sizes.tobytes(), packed.rows]
            counts = [len(chunk.ra), chunk.skipped, packed.count]
            for column, reasons in chunk.unknown.items():
                for reason, count in reasons.items():
                    unknown += [f"{_UNKNOWN}{column}:{reason}", count]
        record = progress_key(self._prefix, name, layout.generation)
        cells = cell_prefix(self._prefix, name, layout.generation)
        # In a cluster a chunk is written cell by cell, and may have been left half written.
        how = (
            "load it again with --replace"
            if self._redis.is_cluster
            else "what is loaded stays, and the same command goes on from there"
        )
        with self.calls(f"after row {before.rows:,} of {file}; {how}"):
            if self._redis.is_cluster:
                if not self._client.hsetnx(record, _WRITING, str(chunks)):
                    raise ConfigurationError(_OTHERS.format(name))
                if chunk is not None:
                    self._extend(cells, packed)
                new = [b"", b"", b""]
            done = self._client.eval(
                _APPEND, 1, record, chunks, f"file:{file}", json.dumps(asdict(after)), *counts, cells, *new, *unknown
            )
            if self._redis.is_cluster:
                self._client.hdel(record, _WRITING)
        if not done:
            raise ConfigurationError(_OTHERS.format(name))

    def _extend(self, start: str, packed: CellRows) -> None:
        """Append rows to cells that are anywhere in a cluster: two round trips to each node.

        A command that is sent again, since its answer was lost, does nothing the second time.
        """
        keys = [f"{start}{cell}" for cell in packed.cells.tolist()]
        ends = np.cumsum(packed.sizes).tolist()
        sizes = self._redis.commands(("STRLEN", key) for key in keys)

        def extend(pipeline: CommandPipeline) -> None:
            for key, size, first, end in zip(keys, sizes, [0, *ends[:-1]], ends, strict=True):
                pipeline.script(_EXTEND, [key], [size, packed.rows[first:end]])

        self._redis.execute(extend, write=True)

    def publish(self, name: str, layout: CatalogLayout) -> None:
        """Make a generation the one alerts are matched with, and delete the one before."""

        def change(entries: list[Entry]) -> list[Entry]:
            entry = next((e for e in entries if e.name == name), Entry(name))
            if entry.loading == layout:
                if entry.current is not None:
                    entry.stale += (entry.current.generation,)
                entry.current, entry.loading = layout, None
            elif entry.current != layout:
                raise ConfigurationError(_OTHERS.format(name))
            return entries

        self.change(change)
        self.clean(name)

    def discard_loading(self, name: str) -> None:
        """Drop the generation that is being loaded."""

        def change(entries: list[Entry]) -> list[Entry]:
            for entry in entries:
                if entry.name == name and entry.loading is not None:
                    entry.stale += (entry.loading.generation,)
                    entry.loading = None
            return entries

        self.change(change)
        self.clean(name)

    def clean(self, name: str) -> None:
        """Delete what generations that nothing refers to have left."""
        entry = self.entry(name)
        if entry is None or not entry.stale:
            return
        for generation in entry.stale:
            self.delete(name, generation)

        def change(entries: list[Entry]) -> list[Entry]:
            for other in entries:
                if other.name == name:
                    other.stale = tuple(g for g in other.stale if g not in entry.stale)
            return [e for e in entries if e.current is not None or e.loading is not None or e.stale]

        self.change(change)

    def delete(self, name: str, generation: int) -> None:
        """Delete the cells and the record of a generation; stopped in between, it is deleted again."""
        with self.calls():
            start = cell_prefix(self._prefix, name, generation)
            pattern = f"{literally(start)}*"
            keys: list[bytes] = []
            for key in self._client.scan_iter(pattern, count=_SCAN):
                keys.append(key)
                if len(keys) == _SCAN:
                    self._unlink(keys)
                    keys = []
            self._unlink([*keys, progress_key(self._prefix, name, generation).encode()])

    def _unlink(self, keys: Sequence[bytes]) -> None:
        if self._redis.is_cluster:
            self._redis.commands(("UNLINK", key.decode()) for key in keys)
        else:
            self._client.unlink(*keys)

    def change(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        """Change the index, whatever others change at the same moment."""
        key = index_key(self._prefix)

        def transaction(pipeline: Any) -> None:
            entries = change(decode_index(pipeline.get(key)))
            pipeline.multi()
            if entries:
                pipeline.set(key, encode_index(entries))
            else:
                pipeline.delete(key)

        with self.calls():
            self._client.transaction(transaction, key)

    @contextmanager
    def calls(self, where: str = "") -> Iterator[None]:
        """Errors of Redis as ours; ``where`` says how far the work got."""
        try:
            with redis_errors(where):
                yield
        except redis.RedisError as error:
            raise DependencyUnavailableError(f"Redis {where}: {error}") from error
