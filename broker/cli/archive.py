"""``trifid classify --archive``: a progress bar, and what is said at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.archives.workers import prepare
from broker.cli import text
from broker.cli.bar import Bar

if TYPE_CHECKING:
    from broker.archives.run import Progress
    from broker.config import Settings
    from broker.records import TimeSystem

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
    columns: Mapping[str, str],
) -> bool:
    """Classify an archive and say what became of it; returns whether all partitions are done."""
    if scheduler is None:
        prepare()
    try:
        from broker.archives import run
    except ModuleNotFoundError as error:
        raise click.ClickException(f"archives need LSDB and Dask: pip install 'trifid[archive]' ({error})") from error

    with Bar("partitions") as bar:

        def report(progress: Progress) -> None:
            failed = f", {len(progress.failed)} failed" if progress.failed else ""
            bar.report(
                progress.done + len(progress.failed), progress.partitions, f"{progress.objects:,} objects", failed,
                progress.now,
            )  # fmt: skip

        progress = run.classify_archive(
            name,
            output,
            settings,
            workers=workers or len(os.sched_getaffinity(0)),
            scheduler=scheduler,
            time_system=time_system,
            known=known,
            columns=columns,
            report=report,
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
