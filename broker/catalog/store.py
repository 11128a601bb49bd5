"""Loading catalogues into Redis, so that it can be stopped at any moment and go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.catalog.cells import by_cell, choose_order
from broker.catalog.layout import (
    EPOCH,
    CatalogLayout,
    Entry,
    cell_prefix,
    counter_key,
    decode_index,
    encode_index,
    index_key,
    max_order,
    progress_key,
)
from broker.catalog.match import CatalogReader, Match
from broker.catalog.plausible import Counts
from broker.catalog.presets import Preset
from broker.catalog.tables import CatalogTable, Chunk, expand
from broker.errors import ConfigurationError, DependencyUnavailableError, InputFileError
from broker.records import METADATA_FEATURES, Catalogued
from broker.redis_errors import redis_errors

NAME: Final = r"[A-Za-z0-9_.-]+"
"""Pattern of catalogue names, which are part of keys."""
CHUNK_ROWS: Final = 20_000
"""Rows of one script, for which Redis does nothing else and the service waits: some 10 ms where the table is sorted
by place, 85 to 170 ms where it is not and each row is for another cell."""
_APPEND: Final = resources.files(__package__).joinpath("append.lua").read_text("utf-8")
_UNKNOWN: Final = "unknown:"
"""Begins the fields of a record that count values left out: ``unknown:<column>:<reason>``."""
_SCAN: Final = 5000
_SHOWN: Final = 5
_OTHERS: Final = "catalogue {} is being loaded, or was dropped, by another process"
_TIMEOUT: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load got."""

    rows: int
    """Rows read in this run."""
    bytes_done: int
    """Bytes of the files that are read, those of earlier runs included."""
    bytes_total: int


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


@dataclass(frozen=True, slots=True)
class FileProgress:
    """What was read of one file; the file is known by folder, name, size and time of its last change."""

    size: int
    mtime_ns: int
    rows: int
    """Rows read so far."""
    done: bool


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load did."""

    layout: CatalogLayout
    contents: Contents
    already_complete: bool
    """All files were there before; nothing was done."""
    in_use: bool
    """Whether alerts are matched with it; not where it has no source, or where a file of a replacement failed."""
    failures: tuple[str, ...]
    """Files that could not be read, or only in part, or that have no usable row, with the reason."""


class CatalogStore:
    """The catalogues of one Redis."""

    def __init__(self, url: str, prefix: str = "trifid") -> None:
        """``url`` as redis-py takes it."""
        # No retries: a script whose answer was lost may have been done. The next load finds out where to go on.
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT, socket_connect_timeout=5.0, retry=Retry(NoBackoff(), 0)
        )
        self._prefix = prefix

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def entries(self) -> list[Entry]:
        """All catalogues, in the order in which they fill an alert's values."""
        with self._calls():
            return decode_index(self._client.get(index_key(self._prefix)))

    def contents(self, name: str, layout: CatalogLayout) -> Contents:
        """What a generation holds so far."""
        with self._calls():
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
        return Contents(rows, skipped, chunks, stored, files, dict(sorted(unknown.items())))

    def load(
        self,
        name: str,
        paths: Sequence[Path],
        preset: Preset,
        *,
        epoch: float | None = None,
        order: int | None = None,
        radius: float | None = None,
        chunk_rows: int = CHUNK_ROWS,
        anew: bool = False,
        on_progress: Callable[[LoadProgress], None] = lambda progress: None,
    ) -> LoadResult:
        """Load tables; goes on where an earlier load of the catalogue was stopped.

        A catalogue is there for alerts once all its files are. Files that it does not have yet are added to a
        complete one; with ``anew`` all are loaded anew beside it and then take its place, if all could be read.
        A file that cannot be read does not end the load: the others go in, and it is among the result's failures.

        ``epoch`` (Julian year) goes for all sources, whatever the table or the preset says; ``radius`` is in arcsec;
        ``order`` of the cells is chosen from the density of the sources where it is None. Raises InputFileError
        where no file can be read, ConfigurationError where the catalogue was begun in another way, and
        DependencyUnavailableError where Redis is unavailable or full: then the same call goes on later.
        """
        files = _named_files(paths)
        self._clean(name)
        entry = self._entry(name) or Entry(name)
        layout = entry.loading if entry.loading is not None or anew else entry.current
        before = {} if layout is None else self.contents(name, layout).files
        wanted = [file for file in files if file not in before or not before[file].done]
        # One that is in already says whether these options are those it was loaded with.
        witness = [file for file in files if file not in wanted][:1]
        tables, failures = _open_tables({file: files[file] for file in (*witness, *wanted)}, preset)
        if not tables:
            raise InputFileError("; ".join(failures[:_SHOWN]) + ("; ..." if len(failures) > _SHOWN else ""))
        if layout is not None:
            of = {file: tables[file] for file in witness if file in tables} or tables
            columns = _columns(of, layout.fixed_epoch, layout.columns)
            if problem := self._obstacle(name, layout, columns, files, epoch, order, radius):
                if not anew:
                    raise ConfigurationError(f"{problem}; --replace loads all anew")
                self._discard_loading(name)
                layout = None
                tables, failures = _open_tables(files, preset)  # those of them that were done, too
        if layout is None:
            layout = self._begin(name, tables, preset, epoch, order, radius)
            wanted = list(files)
        done = {file: path.stat().st_size for file, path in files.items() if file not in wanted}
        todo = {file: table for file, table in tables.items() if file in wanted}
        complete = not wanted and entry.current == layout
        if not complete:
            failures += self._load_files(name, layout, chunk_rows, todo, done, on_progress)
        contents = self.contents(name, layout)
        in_use = contents.rows > 0 and (entry.current in (None, layout) or not failures)
        if in_use and not complete:
            self._publish(name, layout)
        elif not contents.rows and entry.current != layout:
            self._discard_loading(name)
        return LoadResult(layout, contents, complete and not failures, in_use, tuple(failures))

    def match(self, ra: float, dec: float, mjd: float) -> tuple[Catalogued, list[Match]]:
        """What the catalogues say of one position, ICRS degrees at a time in MJD: together, and each."""
        reader = CatalogReader(self._prefix)
        at = (np.array([ra]), np.array([dec]))
        with self._calls():
            reader.prime(self._client.get(reader.meta_key))
            request, values = reader.read(*at, self._client.mget)
        (found,) = reader.match(request, values, *at, np.array([mjd]))
        return found, reader.matches(request, values, *at, np.array([mjd]))

    def drop(self, name: str) -> bool:
        """Delete a catalogue; returns whether there was one."""
        entry = self._entry(name)
        if entry is None:
            return False
        # Cells first: a Redis that is full takes a change of the index only then. Stopped in between, drop again.
        generations = [layout.generation for layout in (entry.current, entry.loading) if layout is not None]
        for generation in (*generations, *entry.stale):
            self._delete_generation(name, generation)
        self._change(lambda entries: [e for e in entries if e.name != name])
        return True

    def _load_files(
        self,
        name: str,
        layout: CatalogLayout,
        chunk_rows: int,
        tables: Mapping[str, CatalogTable],
        before: Mapping[str, int],
        on_progress: Callable[[LoadProgress], None],
    ) -> list[str]:
        """Load tables, beside files that are done, of so many bytes; returns which failed, and why."""
        contents = self.contents(name, layout)
        left_over = [
            file
            for file, progress in contents.files.items()
            if not progress.done and file not in tables and file not in before
        ]
        if left_over:
            raise InputFileError(f"catalogue {name}: {', '.join(left_over)} was begun and is not among the files given")
        sizes = {file: table.path.stat().st_size for file, table in tables.items()}
        done = sum(before.values())
        total = done + sum(sizes.values())
        rows, chunks = 0, contents.chunks
        failures = []
        for file, table in tables.items():
            progress = contents.files.get(file) or _identity(table.path)
            usable = progress.rows
            unknown: Counts = {}
            try:
                _require_columns(table, layout)
                for chunk in table.chunks(progress.rows, chunk_rows):
                    rows += chunk.rows_read - progress.rows
                    after = replace(progress, rows=chunk.rows_read)
                    self._append(name, layout, chunks, file, progress, after, chunk)
                    progress, chunks = after, chunks + 1
                    usable += len(chunk.ra)
                    _add(unknown, chunk.unknown)
                    on_progress(LoadProgress(rows, done + chunk.bytes_read, total))
            except InputFileError as error:
                loaded = f"; its first {progress.rows:,} rows are in" if progress.rows else ""
                failures.append(f"{error}{loaded}")
            else:
                self._append(name, layout, chunks, file, progress, replace(progress, done=True), None)
                chunks += 1
                if progress.rows and not usable:
                    why = f": {describe_unknown(unknown)}" if unknown else ""
                    failures.append(f"{table.path}: none of its {progress.rows:,} rows is usable{why}")
            done += sizes[file]
            on_progress(LoadProgress(rows, done, total))
        return failures

    def _append(
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
        with self._calls(
            f"after row {before.rows:,} of {file}; what is loaded stays, and the same command goes on from there"
        ):
            done = self._client.eval(
                _APPEND, 1, record, chunks, f"file:{file}", json.dumps(asdict(after)), *counts, cells, *new, *unknown
            )
        if not done:
            raise ConfigurationError(_OTHERS.format(name))

    def _begin(
        self,
        name: str,
        tables: Mapping[str, CatalogTable],
        preset: Preset,
        epoch: float | None,
        order: int | None,
        radius: float | None,
    ) -> CatalogLayout:
        """Note a new generation in the index."""
        radius = preset.radius if radius is None else radius
        highest = max_order(radius)
        if order is None:
            order = min(choose_order(list(tables.values())), highest)
        elif not 0 <= order <= highest:
            raise ConfigurationError(f"order {order}: it can be 0 to {highest} for a radius of {radius:g} arcsec")
        fixed = epoch is not None
        columns = _columns(tables, fixed)
        with self._calls():
            generation = self._client.incr(counter_key(self._prefix))
        layout = CatalogLayout(generation, order, columns, preset.epoch if epoch is None else epoch, radius, fixed)

        def change(entries: list[Entry]) -> list[Entry]:
            if name not in (e.name for e in entries):
                entries.append(Entry(name))
            for e in entries:
                if e.name == name:
                    e.loading = layout
            return entries

        self._change(change)
        return layout

    def _obstacle(
        self,
        name: str,
        layout: CatalogLayout,
        columns: tuple[str, ...],
        files: Mapping[str, Path],
        epoch: float | None,
        order: int | None,
        radius: float | None,
    ) -> str | None:
        """Why a generation that was begun cannot go on with these options and files."""
        options = (
            (order, layout.order),
            (radius, layout.radius),
            (epoch, layout.epoch if layout.fixed_epoch else None),
        )
        if layout.columns != columns or any(wanted not in (None, had) for wanted, had in options):
            return (
                f"catalogue {name}, from a table that gives {', '.join(columns)}, was begun with "
                f"{', '.join(layout.columns)}; epoch {layout.epoch:g}"
                f"{' for all' if layout.fixed_epoch else ''}, order {layout.order}, radius {layout.radius:g} arcsec"
            )
        for file, before in self.contents(name, layout).files.items():
            if file in files:
                now = _identity(files[file])
                if (now.size, now.mtime_ns) != (before.size, before.mtime_ns):
                    return f"{files[file]} has changed since it was loaded"
        return None

    def _publish(self, name: str, layout: CatalogLayout) -> None:
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

        self._change(change)
        self._clean(name)

    def _discard_loading(self, name: str) -> None:
        def change(entries: list[Entry]) -> list[Entry]:
            for entry in entries:
                if entry.name == name and entry.loading is not None:
                    entry.stale += (entry.loading.generation,)
                    entry.loading = None
            return entries

        self._change(change)
        self._clean(name)

    def _clean(self, name: str) -> None:
        """Delete what generations that nothing refers to have left."""
        entry = self._entry(name)
        if entry is None or not entry.stale:
            return
        for generation in entry.stale:
            self._delete_generation(name, generation)

        def change(entries: list[Entry]) -> list[Entry]:
            for other in entries:
                if other.name == name:
                    other.stale = tuple(g for g in other.stale if g not in entry.stale)
            return [e for e in entries if e.current is not None or e.loading is not None or e.stale]

        self._change(change)

    def _delete_generation(self, name: str, generation: int) -> None:
        with self._calls():
            start = cell_prefix(self._prefix, name, generation)
            pattern = "".join(f"\\{c}" if c in "\\*?[]^" else c for c in start) + "*"
            keys: list[bytes] = []
            for key in self._client.scan_iter(pattern, count=_SCAN):
                keys.append(key)
                if len(keys) == _SCAN:
                    self._client.unlink(*keys)
                    keys = []
            self._client.unlink(*keys, progress_key(self._prefix, name, generation))

    def _change(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        """Change the index, whatever others change at the same moment."""
        key = index_key(self._prefix)

        def transaction(pipeline: Any) -> None:
            entries = change(decode_index(pipeline.get(key)))
            pipeline.multi()
            if entries:
                pipeline.set(key, encode_index(entries))
            else:
                pipeline.delete(key)

        with self._calls():
            self._client.transaction(transaction, key)

    def _entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries() if entry.name == name), None)

    @contextmanager
    def _calls(self, where: str = "") -> Iterator[None]:
        """Errors of Redis as ours; ``where`` says how far the work got."""
        try:
            with redis_errors(where):
                yield
        except redis.RedisError as error:
            raise DependencyUnavailableError(f"Redis {where}: {error}") from error


def _stored_columns(table: CatalogTable, fixed_epoch: bool) -> tuple[str, ...]:
    """The columns of a table that are stored; each row's epoch only where no proper motion makes it one for all."""
    if table.known:
        return table.columns
    columns = tuple(name for name in METADATA_FEATURES if name in table.columns)
    moves = "pmra" in columns and "pmdec" in columns
    return (*columns, EPOCH) if EPOCH in table.columns and not fixed_epoch and not moves else columns


def _columns(
    tables: Mapping[str, CatalogTable], fixed_epoch: bool, begun: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The columns that most of the tables give; those with which a catalogue was ``begun`` where one has them."""
    counts = Counter(_stored_columns(table, fixed_epoch) for table in tables.values())
    return begun if begun is not None and begun in counts else counts.most_common(1)[0][0]


def _require_columns(table: CatalogTable, layout: CatalogLayout) -> None:
    """Raises InputFileError where a table gives other columns than the catalogue has."""
    columns = _stored_columns(table, layout.fixed_epoch)
    if columns != layout.columns:
        raise InputFileError(
            f"{table.path}: gives {', '.join(columns)}, but the catalogue has {', '.join(layout.columns)}"
        )


def _open_tables(files: Mapping[str, Path], preset: Preset) -> tuple[dict[str, CatalogTable], list[str]]:
    """The tables that can be opened, and why the others cannot."""
    tables, failures = {}, []
    for file, path in files.items():
        try:
            tables[file] = CatalogTable(path, preset)
        except InputFileError as error:
            failures.append(str(error))
    return tables, failures


def _add(counts: Counts, more: Counts) -> None:
    for column, reasons in more.items():
        for reason, count in reasons.items():
            of_column = counts.setdefault(column, {})
            of_column[reason] = of_column.get(reason, 0) + count


def describe_unknown(unknown: Counts) -> str:
    """How many values and rows are left out, by column and reason, in one line."""
    return "; ".join(
        f"{column}: {', '.join(f'{count:,} {reason}' for reason, count in sorted(reasons.items()))}"
        for column, reasons in unknown.items()
    )


def _named_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by folder and name, which say which file it is even where the folder is mounted elsewhere."""
    files: dict[str, Path] = {}
    for path in expand(paths):
        file = "/".join(path.resolve().parts[-2:])
        if file in files:
            raise InputFileError(f"two files are called {file}: {files[file]} and {path}")
        files[file] = path
    if not files:
        raise InputFileError("no files given")
    return files


def _identity(path: Path) -> FileProgress:
    """A file of which nothing is read yet."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InputFileError(f"{path}: {error}") from error
    return FileProgress(stat.st_size, stat.st_mtime_ns, 0, done=False)
