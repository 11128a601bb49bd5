"""The tables that a catalogue is loaded from: which file each is, the columns they share, what was left out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.catalog.generations import FileProgress
from broker.catalog.layout import EPOCH, CatalogLayout
from broker.catalog.presets import Preset
from broker.catalog.tables import CatalogTable, expand
from broker.errors import InputFileError
from broker.records import METADATA_FEATURES


def _stored_columns(table: CatalogTable, fixed_epoch: bool) -> tuple[str, ...]:
    """The columns of a table that are stored; each row's epoch only where no proper motion makes it one for all."""
    if table.known:
        return table.columns
    columns = tuple(name for name in METADATA_FEATURES if name in table.columns)
    moves = "pmra" in columns and "pmdec" in columns
    return (*columns, EPOCH) if EPOCH in table.columns and not fixed_epoch and not moves else columns


def common_columns(
    tables: Mapping[str, CatalogTable], fixed_epoch: bool, begun: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The columns that most of the tables give; those with which a catalogue was ``begun`` where one has them."""
    counts = Counter(_stored_columns(table, fixed_epoch) for table in tables.values())
    return begun if begun is not None and begun in counts else counts.most_common(1)[0][0]


def require_columns(table: CatalogTable, layout: CatalogLayout) -> None:
    """Raises InputFileError where a table gives other columns than the catalogue has."""
    columns = _stored_columns(table, layout.fixed_epoch)
    if columns != layout.columns:
        raise InputFileError(
            f"{table.path}: gives {', '.join(columns)}, but the catalogue has {', '.join(layout.columns)}"
        )


def open_tables(files: Mapping[str, Path], preset: Preset) -> tuple[dict[str, CatalogTable], list[str]]:
    """The tables that can be opened, and why the others cannot."""
    tables, failures = {}, []
    for file, path in files.items():
        try:
            tables[file] = CatalogTable(path, preset)
        except InputFileError as error:
            failures.append(str(error))
    return tables, failures


def named_files(paths: Sequence[Path]) -> dict[str, Path]:
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


def unread(path: Path) -> FileProgress:
    """A file of which nothing is read yet."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InputFileError(f"{path}: {error}") from error
    return FileProgress(stat.st_size, stat.st_mtime_ns, 0, done=False)
