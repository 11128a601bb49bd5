"""``trifid state``."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli import options, text


@click.group()
def state() -> None:
    """What is remembered of each object in Redis."""


@state.command()
@options.config
def migrate(config: Path | None) -> None:
    """Write all objects of earlier releases in the present form, while the service runs or not.

    Nothing has to wait for it: an object is brought up to date by its next alert, too. Until then it is not
    found by its position from other surveys.
    """
    from contextlib import closing

    from rich.console import Console
    from rich.progress import track

    from broker.build import build_store
    from broker.config import load_settings

    with closing(build_store(load_settings(config))) as store:
        objects = migrated = 0
        for changed in track(store.migrate(), "objects", console=Console(stderr=True), show_speed=True):
            objects += 1
            migrated += changed
    text.echo(f"{migrated} of {objects} objects migrated")
