"""``trifid demo``."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import text
from broker.cli.web import require_extra

if TYPE_CHECKING:
    from rich.console import RenderableType

    from broker.demo import DemoProgress


def _real_alerts() -> Path | None:
    """The folder of real alerts beside the checkout, where there is one."""
    shared = Path(os.environ.get("TRIFID_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    folder = shared / "alerts"
    return folder if folder.is_dir() else None


@click.command()
@click.option("--objects", type=click.IntRange(min=1), default=100, show_default=True, help="Simulated objects.")
@click.option(
    "--alerts-per-object", type=click.IntRange(min=1), default=60, show_default=True, help="Visits to each of them."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the simulation.")
@click.option(
    "--alerts",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=_real_alerts,
    help="Folder of real alert packets to show before; ../shared/alerts where that exists.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, help="Serve Prometheus metrics there.")
@click.option("--web", is_flag=True, help="Serve the web page of what is read, until Ctrl-C (needs the extra web).")
@click.option("--web-port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of the page.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Go on until Ctrl-C; FILE, with the settings of the demo's servers, is there as long as they are: "
    "`trifid subscribe --config FILE` and other commands work beside it.",
)
def demo(
    objects: int,
    alerts_per_object: int,
    seed: int,
    alerts: Path | None,
    metrics_port: int,
    web: bool,
    web_port: int,
    keep: Path | None,
) -> None:
    """Show the whole broker at work on this machine, without any server or data.

    Starts an embedded Kafka (librdkafka's mock), a real Redis and the service with ONNX Runtime; replays
    simulated alerts in ZTF's schema, and real ones where there are any; shows what a subscriber reads. At the
    end the accounting is printed.
    """
    from rich.console import Console
    from rich.live import Live

    from broker.demo import Audience, demo_packets, run_demo

    if keep is not None:
        # As a service is ended; a shell has what it starts in the background ignore Ctrl-C's signal.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    audience: Audience | None = None
    if web:
        require_extra()
        from broker.web.demo import WebAudience

        audience = WebAudience(web_port, lambda told: text.echo(told, err=True))
    console = Console()
    packets = demo_packets(alerts, objects, alerts_per_object, seed)
    if keep is not None:
        text.echo(_beside(keep, has_index=web), err=True)
    try:
        with Live(console=console, auto_refresh=False) as live:
            progress = run_demo(packets, lambda p: live.update(_table(p), refresh=True), metrics_port, audience, keep)
    except KeyboardInterrupt:
        if keep is None and not web:
            raise
        text.echo("ended before the servers were there", err=True)
        return
    console.print()
    text.echo(f"{progress.seen} annotations in {progress.seconds:.1f} s: {progress.rate:.0f} alerts a second")
    accounting = progress.accounting
    text.echo(accounting)
    # Of a demo that goes on until Ctrl-C the last alerts need not have been read again.
    all_seen = keep is not None or web or progress.seen == accounting.classified + accounting.not_classified
    if not accounting.reconciled or not all_seen:
        raise SystemExit(1)


def _beside(keep: Path, *, has_index: bool) -> str:
    """What can be done beside a demo that goes on."""
    from broker.demo import INPUT_TOPIC

    night = "trifid night" if has_index else "trifid night --from-kafka"
    lines = [
        "in another terminal, until Ctrl-C ends the demo and all that it holds:",
        f"  export TRIFID_CONFIG={shlex.quote(str(keep.absolute()))}",
        "  trifid subscribe --parent RRLyrae --from-beginning      annotations, from Kafka",
        f"  {night:<55} the night as one file of HTML",
        f"  {f'trifid replay FILE --topic {INPUT_TOPIC}':<55} more alerts, through the demo",
        "  trifid state show OBJECT                                what Redis has of an object",
        "The index of annotations is web.database in that file."
        if has_index
        else "There is no index of annotations (--web has one): they are in Kafka, the objects in Redis.",
    ]
    return "\n".join(lines)


def _table(progress: DemoProgress) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    classes = Table(title="classified alerts", title_justify="left")
    for name in ("class", "alerts", "mean probability", "anomalies"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for name, tally in sorted(progress.classes.items(), key=lambda item: -item[1].alerts):
        classes.add_row(name, str(tally.alerts), f"{tally.probability / tally.alerts:.2f}", str(tally.anomalies))
    strange = Table(title="farthest from all known objects", title_justify="left")
    for name in ("object", "class", "distance", "percentile", "most alike"):
        strange.add_column(name)
    for a in progress.strangest:
        nearest = f"{a.neighbours[0].object_id} ({a.neighbours[0].class_name})" if a.neighbours else ""
        cells = (a.object_id, a.best_class, f"{a.anomaly_distance:.3f}", f"{a.anomaly_score:.3f}", nearest)
        strange.add_row(*(Text(text.printable(cell)) for cell in cells))  # brackets in a name are no markup
    surveys = ", ".join(f"{count} {survey}" for survey, count in progress.surveys.most_common())
    status = f"sent {progress.sent}, read {progress.seen} ({surveys}), {progress.rate:.0f} a second"
    return Group(classes, strange, status)
