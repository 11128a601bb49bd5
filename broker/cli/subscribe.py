"""``trifid subscribe``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from broker.cli import options


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@options.config
@click.option("--bootstrap-servers", help="Kafka's address, host:port; that of the settings by default.")
@click.option("--group", help="Name of your consumer group: a later call with the same name goes on from here.")
@click.option("--from-beginning", is_flag=True, help="Begin with the oldest annotation that Kafka still has.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many annotations.")
@click.option("--idle", type=float, metavar="SECONDS", help="End when nothing has come for so long.")
@options.json_lines
def subscribe(
    topics: tuple[str, ...],
    config: Path | None,
    bootstrap_servers: str | None,
    group: str | None,
    from_beginning: bool,
    limit: int | None,
    idle: float | None,
    as_json: bool,
) -> None:
    """Print annotations as they are published.

    TOPIC is for instance trifid.ztf.rrab for RR Lyrae stars in ZTF, trifid.lsst.anomaly for unusual objects
    in LSST, or trifid.ztf.all for everything; '^trifid.*.m' takes all topics that the expression matches.
    """
    from broker.cli import text
    from broker.client import Subscription
    from broker.config import load_settings
    from broker.publish.annotation import published_record, to_json

    kafka = load_settings(config).kafka
    subscription = Subscription(
        topics,
        bootstrap_servers or kafka.bootstrap_servers,
        group_id=group,
        start="earliest" if from_beginning else "latest",
        idle_timeout=idle,
        options={k: v for k, v in kafka.client_options().items() if k != "bootstrap.servers"},
    )
    with subscription:
        if not as_json:
            click.echo(text.HEADER)
        for annotation in islice(subscription, limit):
            if as_json:
                click.echo(to_json(published_record(annotation)))
            else:
                click.echo(text.line(annotation))
