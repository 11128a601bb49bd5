"""``trifid replay``."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli import options, text


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option(
    "--topic", type=options.TEXT, required=True, help="Topic to write to, such as alerts.ztf; created where missing."
)
@click.option("--rate", type=options.POSITIVE, help="Alerts a second; as fast as it goes by default.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many alerts.")
@options.bootstrap_servers
@options.config
def replay(
    paths: tuple[Path, ...],
    topic: str,
    rate: float | None,
    limit: int | None,
    bootstrap_servers: str | None,
    config: Path | None,
) -> None:
    """Send stored alert packets to Kafka, as the survey did.

    PATH is a packet, a folder, a tar file, an Avro file or a Parquet table of packets, each compressed or not;
    - is the standard input. Each packet becomes one message, byte for byte. What cannot be read or is too large for
    Kafka is named with the reason, and the rest is sent; the exit code is then 1.
    """
    from itertools import islice

    from rich.console import Console
    from rich.progress import track

    from broker.config import load_settings
    from broker.sources import Remark, iter_packets
    from broker.streaming.replay import Replay

    kafka = load_settings(config).kafka
    if bootstrap_servers:
        kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
    lost = 0

    def report(remark: Remark) -> None:
        nonlocal lost
        lost += remark.lost
        text.say(str(remark))

    packets = islice(iter_packets(paths, report), limit)
    with Replay(kafka, topic, rate, lambda name, reason: report(Remark(name, reason, lost=True))) as sender:
        for packet in track(packets, "alerts", console=Console(stderr=True), show_speed=True, total=limit):
            sender.send(packet.payload, packet.name)
    text.echo(f"{sender.sent} messages sent to {topic}" + (f", {lost} not readable or too large" if lost else ""))
    if lost:
        raise SystemExit(1)
