"""Loading catalogues into Redis, so that it can be stopped at any moment and go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from broker.catalog.cells import choose_order
from broker.catalog.files import (
    common_columns,
    named_files,
    open_tables,
    require_columns,
    unread,
)
from broker.catalog.generations import Contents, Generations
from broker.catalog.layout import CatalogLayout, Entry, max_order
from broker.catalog.match import CatalogReader, Match
from broker.catalog.plausible import Counts, add_counts, describe_unknown
from broker.catalog.presets import Preset
from broker.catalog.tables import CatalogTable
from broker.errors import ConfigurationError, InputFileError
from broker.records import Catalogued

NAME: Final = r"[A-Za-z0-9_.-]+"
"""Pattern of catalogue names, which are part of keys."""
CHUNK_ROWS: Final = 20_000
"""Rows of one script, for which Redis does nothing else and the service waits: some 10 ms where the table is sorted
by place, 85 to 170 ms where it is not and each row is for another cell."""
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load got."""

    rows: int
    """Rows read in this run."""
    bytes_done: int
    """Bytes of the files that are read, those of earlier runs included."""
    bytes_total: int


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
        self._generations = Generations(url, prefix)
        self._prefix = prefix

    def close(self) -> None:
        """Close the connections."""
        self._generations.close()

    def entries(self) -> list[Entry]:
        """All catalogues, in the order in which they fill an alert's values."""
        return self._generations.entries()

    def contents(self, name: str, layout: CatalogLayout) -> Contents:
        """What a generation holds so far."""
        return self._generations.contents(name, layout)

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
        files = named_files(paths)
        self._generations.clean(name)
        entry = self._generations.entry(name) or Entry(name)
        layout = entry.loading if entry.loading is not None or anew else entry.current
        before = {} if layout is None else self._generations.contents(name, layout).files
        wanted = [file for file in files if file not in before or not before[file].done]
        # One that is in already says whether these options are those it was loaded with.
        witness = [file for file in files if file not in wanted][:1]
        tables, failures = open_tables({file: files[file] for file in (*witness, *wanted)}, preset)
        if not tables:
            raise InputFileError("; ".join(failures[:_SHOWN]) + ("; ..." if len(failures) > _SHOWN else ""))
        if layout is not None:
            of = {file: tables[file] for file in witness if file in tables} or tables
            columns = common_columns(of, layout.fixed_epoch, layout.columns)
            if problem := self._obstacle(name, layout, columns, files, epoch, order, radius):
                if not anew:
                    raise ConfigurationError(f"{problem}; --replace loads all anew")
                self._generations.discard_loading(name)
                layout = None
                tables, failures = open_tables(files, preset)  # those of them that were done, too
        if layout is None:
            layout = self._begin(name, tables, preset, epoch, order, radius)
            wanted = list(files)
        done = {file: path.stat().st_size for file, path in files.items() if file not in wanted}
        todo = {file: table for file, table in tables.items() if file in wanted}
        complete = not wanted and entry.current == layout
        if not complete:
            failures += self._load_files(name, layout, chunk_rows, todo, done, on_progress)
        contents = self._generations.contents(name, layout)
        in_use = contents.rows > 0 and (entry.current in (None, layout) or not failures)
        if in_use and not complete:
            self._generations.publish(name, layout)
        elif not contents.rows and entry.current != layout:
            self._generations.discard_loading(name)
        return LoadResult(layout, contents, complete and not failures, in_use, tuple(failures))

    def match(self, ra: float, dec: float, mjd: float) -> tuple[Catalogued, list[Match]]:
        """What the catalogues say of one position, ICRS degrees at a time in MJD: together, and each."""
        reader = CatalogReader(self._prefix)
        at = (np.array([ra]), np.array([dec]))
        reader.prime(self._generations.get(reader.meta_key))
        request, values = reader.read(*at, self._generations.get_many)
        (found,) = reader.match(request, values, *at, np.array([mjd]))
        return found, reader.matches(request, values, *at, np.array([mjd]))

    def drop(self, name: str) -> bool:
        """Delete a catalogue; returns whether there was one."""
        entry = self._generations.entry(name)
        if entry is None:
            return False
        # Cells first: a Redis that is full takes a change of the index only then. Stopped in between, drop again.
        generations = [layout.generation for layout in (entry.current, entry.loading) if layout is not None]
        for generation in (*generations, *entry.stale):
            self._generations.delete(name, generation)
        self._generations.change(lambda entries: [e for e in entries if e.name != name])
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
        contents = self._generations.contents(name, layout)
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
            progress = contents.files.get(file) or unread(table.path)
            usable = progress.rows
            unknown: Counts = {}
            try:
                require_columns(table, layout)
                for chunk in table.chunks(progress.rows, chunk_rows):
                    rows += chunk.rows_read - progress.rows
                    after = replace(progress, rows=chunk.rows_read)
                    self._generations.append(name, layout, chunks, file, progress, after, chunk)
                    progress, chunks = after, chunks + 1
                    usable += len(chunk.ra)
                    add_counts(unknown, chunk.unknown)
                    on_progress(LoadProgress(rows, done + chunk.bytes_read, total))
            except InputFileError as error:
                loaded = f"; its first {progress.rows:,} rows are in" if progress.rows else ""
                failures.append(f"{error}{loaded}")
            else:
                self._generations.append(name, layout, chunks, file, progress, replace(progress, done=True), None)
                chunks += 1
                if progress.rows and not usable:
                    why = f": {describe_unknown(unknown)}" if unknown else ""
                    failures.append(f"{table.path}: none of its {progress.rows:,} rows is usable{why}")
            done += sizes[file]
            on_progress(LoadProgress(rows, done, total))
        return failures

    def _begin(
        self,
        name: str,
        tables: Mapping[str, CatalogTable],
        preset: Preset,
        epoch: float | None,
        order: int | None,
        radius: float | None,
    ) -> CatalogLayout:
        """Note a new generation in the index, laid out for these tables."""
        radius = preset.radius if radius is None else radius
        highest = max_order(radius)
        if order is None:
            order = min(choose_order(list(tables.values())), highest)
        elif not 0 <= order <= highest:
            raise ConfigurationError(f"order {order}: it can be 0 to {highest} for a radius of {radius:g} arcsec")
        fixed = epoch is not None
        epoch = preset.epoch if epoch is None else epoch
        columns = common_columns(tables, fixed)
        return self._generations.begin(name, order, columns, epoch, radius, fixed_epoch=fixed)

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
        if self._generations.contents(name, layout).writing:
            return (
                f"catalogue {name} is being loaded into the cluster by another process, or that was stopped in a chunk"
            )
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
        for file, before in self._generations.contents(name, layout).files.items():
            if file in files:
                now = unread(files[file])
                if (now.size, now.mtime_ns) != (before.size, before.mtime_ns):
                    return f"{files[file]} has changed since it was loaded"
        return None
