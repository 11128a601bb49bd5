"""Progress on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from typing import Final

from broker.cli import text

_SAY_EVERY: Final = 60.0
"""Seconds between lines where stderr is no terminal."""


class Bar:
    """How far a command is; it shows nothing where ``shown`` is false."""

    def __init__(self, unit: str = "done", *, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._unit, self._shown, self._terminal = unit, shown, console.is_terminal
        self._bar = Progress(
            TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, disable=not (shown and self._terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(
        self, done: int, total: int | None = None, what: str = "", more: str = "", counted: int | None = None
    ) -> None:
        """``done`` of ``total`` (None where only reading tells); the rate is that of ``counted``, else of ``done``."""
        rate = (done if counted is None else counted) / max(time.monotonic() - self._start, 1e-9)
        said = f"{what}{', ' if what else ''}{rate:.0f}/s{more}"
        self._bar.update(self._task, total=total, completed=done, description=said)
        if not (self._shown and self._terminal) and time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            text.echo(f"{done:,}{'' if total is None else f' of {total:,}'} {self._unit}: {said}", err=True)
