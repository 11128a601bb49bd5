"""``trifid subscribe``."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.client import ForeignMessage
    from broker.config import Settings

_NAMED: Final = 10
"""Foreign messages of a topic that are named one by one; of more, every tenth, hundredth and so on."""


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@options.config
@options.bootstrap_servers
@click.option(
    "--group",
    type=options.TEXT,
    help="Name of your consumer group: a later call with the same name goes on after the last line of this one.",
)
@click.option(
    "--from-beginning",
    is_flag=True,
    help="Begin with the oldest annotation that Kafka still has; does not move a group that has a position.",
)
@click.option("--limit", type=click.IntRange(min=1), help="End after so many annotations.")
@click.option("--idle", type=options.POSITIVE, metavar="SECONDS", help="End when nothing has come for so long.")
@click.option(
    "--timeout",
    type=options.POSITIVE,
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="How long to wait for Kafka and the topics at the beginning. Later outages are waited for.",
)
@options.json_lines
def subscribe(
    topics: tuple[str, ...],
    config: Path | None,
    bootstrap_servers: str | None,
    group: str | None,
    from_beginning: bool,
    limit: int | None,
    idle: float | None,
    timeout: float,
    as_json: bool,
) -> None:
    r"""Print annotations as they are published.

    TOPIC is for instance trifid.ztf.rrab for RR Lyrae stars in ZTF, trifid.lsst.anomaly for unusual objects
    in LSST, or trifid.ztf.all for everything. One that begins with ^ is a regular expression: '^trifid\.[a-z]+\.m$'
    takes the Mira stars of all surveys. Dead letters are left out.

    With --group, each line that was printed is read, whatever ended the command; only one killed outright prints the
    lines of its last second again. Messages that are no annotations are named on stderr and passed over.

    Exit codes: 0 after --limit or --idle; 1 where Kafka does not answer; 2 where a topic does not exist or holds no
    annotations.
    """
    from broker.client import Subscription
    from broker.config import load_settings
    from broker.errors import ConfigurationError
    from broker.publish.annotation import published_record, to_json

    settings = load_settings(config)
    _refuse_inputs(topics, settings)
    kafka = settings.kafka
    foreign = _Foreign()
    subscription = Subscription(
        topics,
        bootstrap_servers or kafka.bootstrap_servers,
        group_id=group,
        start="earliest" if from_beginning else "latest",
        idle_timeout=idle,
        timeout=timeout,
        on_foreign=foreign,
        options={k: v for k, v in kafka.client_options().items() if k != "bootstrap.servers"},
    )
    printed = 0
    with _Signals() as signals, subscription:
        if not as_json:
            text.echo(text.HEADER)
        for annotation in islice(subscription, limit):
            with signals.shield():
                if as_json:
                    click.echo(to_json(published_record(annotation)))
                else:
                    text.echo(text.line(annotation))
                subscription.acknowledge()
            printed += 1
    if foreign.counts:
        text.echo(foreign.summary(), err=True)
        if not printed:
            raise ConfigurationError(
                f"no annotations in {', '.join(foreign.counts)}: those of all alerts are in "
                f"{settings.publish.topic_prefix}.<survey>.all"
            )


def _refuse_inputs(topics: Sequence[str], settings: Settings) -> None:
    """Whoever names a topic of alerts or spectra means another one."""
    from broker.errors import ConfigurationError

    kafka = settings.kafka
    for topic in topics:
        if topic in kafka.input_topics or topic == kafka.spectra_topic:
            raise ConfigurationError(
                f"{topic} is an input of the service and holds no annotations: those of all alerts are in "
                f"{settings.publish.topic_prefix}.<survey>.all"
            )


class _Signals:
    """Ends the command upon SIGINT and SIGTERM, but not between printing a line and counting it as read."""

    def __init__(self) -> None:
        self._shielded, self._pending = False, 0

    def __enter__(self) -> Self:
        # A shell has what it starts in the background ignore SIGINT: that stays so.
        self._before = {
            number: signal.signal(number, self._end)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """What a first signal waits for; a second one does not."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._pending:
            self._raise(self._pending)

    def _end(self, number: int, frame: object) -> None:
        if not self._shielded or self._pending:
            self._raise(number)
        self._pending = number

    def _raise(self, number: int) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


class _Foreign:
    """Names messages that are no annotations, not all where there are many."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        """By topic."""

    def __call__(self, message: ForeignMessage) -> None:
        count = self.counts[message.topic] = self.counts.get(message.topic, 0) + 1
        if count <= _NAMED or count == 10 ** (len(str(count)) - 1):
            more = f" ({count} so far)" if count > _NAMED else ""
            text.echo(text.printable(f"skipped {message}{more}"), err=True)

    def summary(self) -> str:
        """How many there were."""
        counts = ", ".join(f"{count} of {topic}" for topic, count in self.counts.items())
        return f"messages skipped that are no annotations: {counts}"
