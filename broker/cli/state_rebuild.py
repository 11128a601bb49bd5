"""``trifid state rebuild``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.rebuild import Batch, Rebuilt
    from broker.sources import Packet, Remark
    from broker.state.progress import Progress
    from broker.state.redis import RedisStore

_SCHEME: Final = "kafka"
_SMALL: Final = 1_000_000
"""Bytes: a smaller file is sooner read again than remembered."""
_SAVE_S: Final = 5.0
"""How often it is written down how far the run came."""
_TELL_S: Final = 30.0
"""How often it is said where nobody watches a terminal."""


@dataclass(frozen=True, slots=True)
class _Topic:
    """``kafka://host:port/topic``."""

    name: str
    servers: str
    """Empty for those of the settings."""

    def __str__(self) -> str:
        return self.name


class _Source(click.ParamType["Path | _Topic"]):
    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | _Topic:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if not value.startswith(f"{_SCHEME}:"):
            return click.Path(exists=True, path_type=Path).convert(value, param, ctx)
        parts = urlsplit(value)
        topic = parts.path.removeprefix("/")
        if not value.startswith(f"{_SCHEME}://") or not topic or "/" in topic or parts.query or parts.fragment:
            self.fail(f"{value}: give kafka://host:port/topic, or kafka:///topic for the Kafka of the settings")
        if "@" in parts.netloc:
            self.fail("no user and password in the address: they are settings (kafka.sasl_username, sasl_password)")
        return _Topic(topic, parts.netloc)


@click.command()
@click.option(
    "--from", "sources", metavar="PATH|kafka:///TOPIC", type=_Source(), multiple=True, required=True,
    help="A packet, a folder, an archive or a table of stored alerts, as `trifid replay` reads, or a topic, with "
    "kafka://host:port/topic of another Kafka than that of the settings; again for more.",
)  # fmt: skip
@click.option("--since", callback=options.moment, metavar="TIME", help="Of topics: messages from this time on, MJD or "
              "ISO 8601 (UTC).")  # fmt: skip
@click.option("--until", callback=options.moment, metavar="TIME", help="Of topics: messages before this time; up to "
              "now by default.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), help="That decode and merge side by side; one a core by "
              "default.")  # fmt: skip
@click.option("--again", is_flag=True, help="From the beginning, also where a run was interrupted within a day.")
@options.config
def rebuild(
    sources: tuple[Path | _Topic, ...],
    since: datetime | None,
    until: datetime | None,
    processes: int | None,
    again: bool,
    config: Path | None,
) -> None:
    """Make the state of all objects again from stored alerts, after Redis has lost it.

    Nothing is classified or published, and no consumer group is touched. Workers may run meanwhile: an alert that is
    merged twice changes nothing. Interrupted, the same command goes on where it stopped, for a day: in a topic at the
    message, in a folder at the archive. Catalogues are to be loaded again with `trifid catalog load`. What cannot be
    read is named with the reason, and the exit code is then 1.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from broker.build import build_store
    from broker.config import load_settings
    from broker.errors import DependencyUnavailableError
    from broker.sources import Remark

    settings = load_settings(config)
    if (since or until) and not any(isinstance(source, _Topic) for source in sources):
        raise click.UsageError("--since and --until are of topics: no source is one")
    lost = messages = alerts = spectra = 0

    def report(remark: Remark) -> None:
        nonlocal lost
        lost += remark.lost
        text.say(str(remark))

    processes = processes or len(os.sched_getaffinity(0))
    console = Console(stderr=True)
    began = told = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with closing(build_store(settings)) as store, bar:
        store.check()
        generation = store.generation
        for source in sources:
            if isinstance(source, _Topic):
                read = _topic(settings, source, since, until, processes)
            else:
                read = _files(settings, source, processes, report)
            progress, results, total = read(store, again)
            task = bar.add_task(str(source), total=total)
            saved = time.monotonic()
            reached: dict[str, int] = {}
            missed = 0
            for batch, result in results:
                messages += result.messages
                missed += result.missed
                alerts += result.alerts
                spectra += result.spectra
                for name, reason in result.refused:
                    report(Remark(name, reason, lost=True))
                bar.advance(task, result.messages)
                reached |= batch.reached
                now = time.monotonic()
                if reached and now - saved > _SAVE_S:
                    progress.save(reached)
                    saved = now
                if not console.is_terminal and now - told > _TELL_S:
                    told = now
                    text.echo(
                        f"{source}: {alerts} alerts so far, {alerts / (now - began):.0f}/s"
                        + (f", {bar.tasks[-1].percentage:.0f} %" if total else ""),
                        err=True,
                    )
            if missed:
                report(Remark(str(source), f"{missed} messages were deleted by Kafka before they were read", lost=True))
            store.check()
            if store.generation != generation:
                raise DependencyUnavailableError("Redis has lost what it held meanwhile: run it again")
            progress.forget()
    text.echo(
        f"{alerts} alerts and {spectra} spectra of {messages} packets in the state, "
        f"{lost} not readable; {alerts / max(time.monotonic() - began, 1e-9):.0f} alerts/s"
    )
    if lost:
        raise SystemExit(1)


_Results = Iterator["tuple[Batch, Rebuilt]"]
_Read = Callable[["RedisStore", bool], "tuple[Progress, _Results, int | None]"]


def _topic(settings: Settings, topic: _Topic, since: datetime | None, until: datetime | None, processes: int) -> _Read:
    """What reads a topic and merges it, given the store and whether to begin anew."""
    from broker.rebuild import rebuild_topic
    from broker.state.progress import Progress
    from broker.streaming.stored_topic import StoredTopic
    from broker.streaming.topics import TopicAdmin

    kafka = settings.kafka
    if topic.servers:
        kafka = kafka.model_copy(update={"bootstrap_servers": topic.servers})

    def read(store: RedisStore, again: bool) -> tuple[Progress, _Results, int | None]:
        topics = TopicAdmin(kafka)
        topics.connect()
        # With its id: of a topic that was recreated meanwhile nothing has been read.
        number = topics.ids([topic.name])[topic.name] or ""
        progress = Progress(store, f"{kafka.bootstrap_servers}/{topic.name}/{number}/{since}/{until}")
        done = {} if again else {int(partition): offset for partition, offset in progress.load().items()}
        stored = StoredTopic(kafka, topic.name, since, until, done)
        if done:
            text.echo(f"{topic}: goes on where a run was interrupted (--again begins anew)", err=True)
        return progress, rebuild_topic(stored, settings, processes), stored.left

    return read


def _files(settings: Settings, path: Path, processes: int, report: Callable[[Remark], None]) -> _Read:
    """What reads a file or a folder; as ``_topic``."""
    from broker.rebuild import BATCH, Batch
    from broker.rebuild import rebuild as merge
    from broker.sources import Remark, files_of, in_batches, iter_packets
    from broker.state.progress import Progress

    def read(store: RedisStore, again: bool) -> tuple[Progress, _Results, int | None]:
        progress = Progress(store, f"file:{path.absolute()}")
        done = {} if again else progress.load()

        def packets(waiting: dict[str, int]) -> Iterator[Packet]:
            """All packets; ``waiting`` gets the files that are read to their end."""
            for name, file in files_of(path):
                if isinstance(file, Remark):
                    report(file)
                    continue
                size = _size(file)
                if done.get(name) == size:
                    text.echo(f"{text.printable(name)}: read by an earlier run (--again reads it anew)", err=True)
                    continue
                yield from iter_packets([file], report)
                if size > _SMALL:
                    waiting[name] = size

        def batches() -> Iterator[Batch]:
            reached = dict(done)
            waiting: dict[str, int] = {}
            for batch in in_batches(packets(waiting), BATCH):
                # A file that was finished within this batch has its last packets in it.
                reached |= waiting
                yield Batch(batch, dict(reached))

        return progress, merge(batches(), settings, processes), None

    return read


def _size(path: Path) -> int:
    """Bytes; -1 of what cannot be read, which is told when it is opened."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
