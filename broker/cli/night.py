"""``trifid night``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import options, text
from broker.cli.web import open_index, require_extra

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.web.index import Index
    from broker.web.night import Bounds


@click.command()
@click.argument("day", default="tonight", metavar="[DATE]")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="night-<DATE>.html by default."
)
@click.option("--new", "most_new", type=click.IntRange(0, 1000), default=10, show_default=True, help="Of each class.")
@click.option("--anomalies", type=click.IntRange(0, 200), default=12, show_default=True, help="With light curves.")
@click.option(
    "--from-kafka",
    is_flag=True,
    help="Read the night's annotations from Kafka instead of the index of `trifid web`; all objects are then new.",
)
@click.option("--dead-letters/--no-dead-letters", default=True, show_default=True, help="Count them in Kafka.")
@options.config
def night(
    day: str,
    output: Path | None,
    most_new: int,
    anomalies: int,
    from_kafka: bool,
    dead_letters: bool,
    config: Path | None,
) -> None:
    """Write what a night brought as one HTML file.

    DATE is that of the evening, such as 2026-11-28: from noon UTC to noon. Counts and classes come from the index of
    `trifid web`, light curves and spectra from the service's Redis; what does not answer is named in the report
    (docs/discovery.md). Needs the extra web: pip install 'trifid[web]'.
    """
    require_extra()
    from broker.build import build_store
    from broker.cli import logs
    from broker.config import load_settings
    from broker.replaced import Replaced
    from broker.web.night import add_light_curves, bounds_of, collect, page

    try:
        bounds = bounds_of(day)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="DATE") from None
    settings = load_settings(config)
    logs.hide(settings.secrets())
    with ExitStack() as stack:
        index = _of_kafka(settings, bounds, stack) if from_kafka else open_index(settings)
        stack.callback(index.close)
        found = collect(index, bounds, most_new, anomalies)
        if dead_letters:
            found.dead_letters, found.dead_letters_problem = _dead_letters(settings, bounds)
        store = build_store(settings, read_only=True)
        stack.callback(store.close)
        problem = add_light_curves(found, store)
        made = page(found, most_new, problem)
    path = output or Path(f"night-{bounds.day}.html")
    with Replaced(path) as partial:
        partial.write_text(made, "utf-8")
    if problem is not None:
        text.say(problem)
    if found.dead_letters is None and dead_letters:
        text.say(f"dead letters: {found.dead_letters_problem}")
    if not found.annotations:
        text.say(
            f"no annotation of the night of {bounds.day} is {'in the topics' if from_kafka else 'in web.database'}"
            + ("" if from_kafka else ": `trifid web` fills it, with the same settings; --from-kafka reads the topics")
        )
    text.echo(
        f"{path}: {found.annotations} annotations = {found.classified} classified + {found.not_classified} "
        f"NotClassified, of {found.objects} objects",
        err=True,
    )


def _of_kafka(settings: Settings, bounds: Bounds, stack: ExitStack) -> Index:
    """An index in a temporary folder of what Kafka has of the night; raises DependencyUnavailableError."""
    import tempfile

    from broker.client import Subscription
    from broker.times import datetime_of
    from broker.topic_names import pattern_of
    from broker.web.index import Index

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trifid-night-")))
    index = Index(f"sqlite:///{folder / 'night.sqlite'}")
    client = settings.kafka.client_options()
    servers = str(client.pop("bootstrap.servers"))
    topics = pattern_of(settings.publish.topic_prefix, "all")
    with Subscription(
        topics, servers, start=datetime_of(bounds.start), idle_timeout=5.0, options=client
    ) as subscription:
        # Partitions are not read in the order of time: only when as many are read as there were at the start is the
        # night complete. Those that come meanwhile would never end.
        left: int | None = None
        for batch in subscription.batches(500):
            left = (sum(subscription.lag().values()) if left is None else left - len(batch)) if batch else left
            index.add(one for one in batch if bounds.start <= one.publish_mjd < bounds.end)
            if left is not None and left <= 0:
                break
    return index


def _dead_letters(settings: Settings, bounds: Bounds) -> tuple[dict[str, int] | None, str]:
    """Those of the night by reason, or why they are not known."""
    from contextlib import closing

    from broker.cli.deadletter import dead_letters
    from broker.errors import TrifidError
    from broker.streaming.deadletter_replay import LetterFilter
    from broker.times import datetime_of
    from broker.web.night import most_common

    low, high = (datetime_of(mjd).timestamp() * 1000 for mjd in (bounds.start, bounds.end))
    try:
        with closing(dead_letters(settings)) as letters:
            of_night = (one for one in letters.first(LetterFilter()) if low <= one.timestamp_ms < high)
            return most_common(one.reason.partition("\n")[0][:120] for one in of_night), ""
    except TrifidError as error:
        return None, str(error)
