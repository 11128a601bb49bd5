"""``trifid reference``."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli import options, text


@click.group()
def reference() -> None:
    """The set of known objects that alerts are compared with."""


@reference.command()
@options.config
def load(config: Path | None) -> None:
    """Put the reference set of the model repository into Redis, replacing an earlier one.

    `trifid run` does this by itself where Redis has none.
    """
    from broker.build import load_reference_set
    from broker.config import load_settings

    settings = load_settings(config)
    reference_set = load_reference_set(settings)
    reference_set.to_redis(settings.redis.address())
    text.echo(f"reference set {reference_set.version}: {len(reference_set)} objects")
