"""``trifid classify --archive``: a progress bar, and what is said at the end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli import text

if TYPE_CHECKING:
    from broker.archives.run import Progress
    from broker.config import Settings
    from broker.records import TimeSystem

_SAY_EVERY: Final = 60.0
"""Seconds between lines where stderr is no terminal."""
_MOST_FAILED: Final = 20
"""Partitions that failed which are named; the ledger has all."""


def classify_archive(
    name: str,
    output: Path,
    settings: Settings,
    workers: int | None,
    scheduler: str | None,
    time_system: TimeSystem | None,
    known: tuple[tuple[str, Path], ...],
) -> bool:
    """Classify an archive and say what became of it; returns whether all partitions are done."""
    try:
        from broker.archives import run
    except ModuleNotFoundError as error:
        raise click.ClickException(f"archives need LSDB and Dask: pip install 'trifid[archive]' ({error})") from error

    with _Bar() as bar:
        progress = run.classify_archive(
            name,
            output,
            settings,
            workers=workers or len(os.sched_getaffinity(0)),
            scheduler=scheduler,
            time_system=time_system,
            known=known,
            report=bar.report,
        )
    for key, reason in list(progress.failed.items())[:_MOST_FAILED]:
        text.echo(f"{key}: {reason}", err=True)
    if len(progress.failed) > _MOST_FAILED:
        text.echo(f"{len(progress.failed) - _MOST_FAILED} more partitions failed", err=True)
    classes = ", ".join(f"{name} {count:,}" for name, count in progress.classes.most_common())
    text.echo(f"{progress.objects:,} objects{f': {classes}' if classes else ''}")
    text.echo(
        f"{progress.done} of {progress.partitions} partitions done ({progress.before} before this run), "
        f"{len(progress.failed)} failed: {output}"
    )
    return not progress.failed


class _Bar:
    """A bar on a terminal, elsewhere a line a minute; of partitions, since only reading them tells their objects."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("partitions"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("")
        self._shown = console.is_terminal
        self._start = self._said = time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(self, progress: Progress) -> None:
        """Show how far the run is."""
        rate = progress.now / max(time.monotonic() - self._start, 1e-9)
        failed = f", {len(progress.failed)} failed" if progress.failed else ""
        said = f"{progress.objects:,} objects, {rate:.0f}/s{failed}"
        self._bar.update(
            self._task, total=progress.partitions, completed=progress.done + len(progress.failed), description=said
        )
        if not self._shown and time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            text.echo(f"{progress.done} of {progress.partitions} partitions: {said}", err=True)
