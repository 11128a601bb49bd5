"""``trifid subscribe``."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

import click

from broker.cli import options, text
from broker.taxonomy import OUTPUT_NAMES, PARENTS
from broker.topic_names import pattern_of, topic_of

if TYPE_CHECKING:
    from broker.client import ForeignMessage, PublishedAnnotation, Subscription
    from broker.client.positions import Start
    from broker.config import Settings

_PART: Final = 500
"""Annotations that are written to a file at once."""
_NAMED: Final = 10
"""Foreign messages of a topic that are named one by one; of more, every tenth, hundredth and so on."""


class _Name(click.ParamType[str]):
    """One of some names, however it is spelled: ``RR Lyrae`` and ``rr_lyrae`` are RRLyrae."""

    name = "name"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself; fails with all of them."""
        plain = re.sub(r"[^a-z0-9]", "", value.lower())
        found = next((name for name in self._names if name.lower() == plain), None)
        return found or self.fail(f"{value!r} is none of {', '.join(self._names)}", param, ctx)


@click.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option(
    "--class",
    "classes",
    type=_Name(OUTPUT_NAMES),
    multiple=True,
    metavar="NAME",
    help="Those with this most probable class: RRAB, M, Other and so on. May be given several times.",
)
@click.option(
    "--parent",
    "parents",
    type=_Name(tuple(PARENTS)),
    multiple=True,
    metavar="NAME",
    help=f"Those with this most probable parent, whatever the class: {', '.join(PARENTS)}. May be given several times.",
)
@click.option(
    "--survey",
    "surveys",
    type=options.TEXT,
    multiple=True,
    help="Survey of --class and --parent, such as ztf; all of them without it. May be given several times.",
)
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
@click.option(
    "--since",
    callback=options.moment,
    metavar="TIME",
    help="Begin with what was published from then on, MJD or ISO 8601 (UTC); moves no group that has a position.",
)
@click.option(
    "--reset",
    is_flag=True,
    help="Have --group begin at --from-beginning, --since or, without both, the end, wherever it was. Not while others "
    "of the group are reading.",
)
@click.option("--min-probability", type=options.SHARE, help="Of --class or --parent, else of the most probable class.")
@click.option("--min-anomaly", type=options.SHARE, help="Lowest anomaly score.")
@click.option("--min-points", type=click.IntRange(min=0), help="Fewest photometric points.")
@click.option("--known/--unknown", default=None, help="Whether a catalogue of known variable stars has the object.")
@click.option("--ra", callback=options.ra, help="Of a cone, ICRS: degrees, or hours such as 17:57:48.5.")
@click.option("--dec", callback=options.dec, help="ICRS: degrees, or such as +04:41:36.")
@click.option("--radius", type=options.POSITIVE, metavar="ARCSEC", help="Of the cone.")
@click.option(
    "--moc",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Within a region: a MOC in ASCII, JSON or FITS (this takes astropy and pyarrow).",
)
@click.option("--where", "condition", metavar="EXPRESSION", help="Such as 'period < 0.3 and detections > 50'.")
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
@click.option(
    "--schema-registry",
    type=options.TEXT,
    metavar="URL",
    help="Schema registry of messages that only name their schema; the settings' annotation_registry.url without.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write .csv, .parquet, .json or .jsonl, not lines; the file is there when the command ends, by Ctrl-C too.",
)
@click.option("--lag", is_flag=True, help="Print how far --group is behind in each partition, and read nothing.")
@options.json_lines
def subscribe(
    topics: tuple[str, ...],
    classes: tuple[str, ...],
    parents: tuple[str, ...],
    surveys: tuple[str, ...],
    config: Path | None,
    bootstrap_servers: str | None,
    group: str | None,
    from_beginning: bool,
    since: datetime | None,
    reset: bool,
    min_probability: float | None,
    min_anomaly: float | None,
    min_points: int | None,
    known: bool | None,
    ra: float | None,
    dec: float | None,
    radius: float | None,
    moc: Path | None,
    condition: str | None,
    limit: int | None,
    idle: float | None,
    timeout: float,
    schema_registry: str | None,
    output: Path | None,
    lag: bool,
    as_json: bool,
) -> None:
    r"""Print annotations as they are published.

    TOPIC is for instance trifid.ztf.rrab for RR Lyrae stars in ZTF, trifid.lsst.anomaly for unusual objects
    in LSST, or trifid.ztf.all for everything. One that begins with ^ is a regular expression: '^trifid\.[a-z]+\.m$'
    takes the Mira stars of all surveys. Dead letters are left out. --class and --parent stand for their topics:
    --parent RRLyrae --survey ztf is trifid.ztf.rrlyrae. An annotation that is in several of the topics is printed once.

    --where takes an expression over the fields of annotations (docs/watchlists.md), beside the other options.

    With --group, each line that was printed is read, whatever ended the command; only one killed outright prints the
    lines of its last second again. Messages that are no annotations are named on stderr and passed over.

    Exit codes: 0 after --limit or --idle; 1 where Kafka does not answer; 2 where a topic does not exist or holds no
    annotations.
    """
    signals = click.get_current_context().with_resource(_Signals())
    from broker.client import Cone, Expression, Filter, Region, Subscription, move_group
    from broker.client.schemas import schemas_of
    from broker.config import load_settings
    from broker.errors import ConfigurationError
    from broker.publish.annotation import published_record, to_json
    from broker.publish.registered import annotation_registry

    if since is not None and from_beginning:
        raise click.UsageError("give --since or --from-beginning")
    if len({ra is None, dec is None, radius is None}) > 1:
        raise click.UsageError("a cone is --ra, --dec and --radius")
    if reset and (group is None or lag):
        raise click.UsageError("--reset goes with --group, and without --lag")
    settings = load_settings(config)
    given = bool(topics)
    kinds = (*classes, *parents)
    if surveys and not kinds:
        raise click.UsageError("--survey goes with --class or --parent")
    prefix = settings.publish.topic_prefix
    topics += tuple(
        name for kind in kinds for name in ([topic_of(prefix, s, kind) for s in surveys] or [pattern_of(prefix, kind)])
    )
    if not topics:
        raise click.UsageError("give a topic, --class or --parent")
    _refuse_inputs(topics, settings)
    kafka = settings.kafka
    if lag:
        if group is None:
            raise click.UsageError("--lag is that of a --group")
        _print_lag(topics, bootstrap_servers or kafka.bootstrap_servers, group, settings, as_json)
        return
    if output is not None and as_json:
        raise click.UsageError("give --output or --json")
    if output is not None and group is not None and output.exists():
        raise click.UsageError(
            f"{output} is there: with --group it would be replaced by what is newer only; give another file, or move it"
        )
    wanted = Filter(
        # Of one class or parent its own probability counts; an annotation of several topics has passed one of them.
        parent=parents[0] if len(parents) == 1 and not classes and not given else None,
        min_probability=min_probability,
        min_anomaly_score=min_anomaly,
        min_detections=min_points,
        known=known,
        cone=None if ra is None or dec is None or radius is None else Cone(ra, dec, radius),
        region=None if moc is None else Region.of_file(moc),
    )
    expressions = [] if condition is None else [Expression(condition)]
    foreign = _Foreign()
    registry = annotation_registry(settings.annotation_registry, schema_registry)
    servers = bootstrap_servers or kafka.bootstrap_servers
    start: Start = since or ("earliest" if from_beginning else "latest")
    client = {k: v for k, v in kafka.client_options().items() if k != "bootstrap.servers"}
    subscription = Subscription(
        topics,
        servers,
        group_id=group,
        start=start,
        where=[wanted, *expressions],
        idle_timeout=idle,
        timeout=timeout,
        on_foreign=foreign,
        hold=output is not None,
        schema_registry=None if registry is None else schemas_of(registry),
        options=client,
    )
    if reset and group is not None:
        move_group(topics, servers, group, start, client)
    printed = 0
    with subscription:
        if output is not None:
            printed = _save(subscription, output, limit, signals)
            limit = 0
        elif not as_json:
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


def _save(subscription: Subscription, path: Path, limit: int | None, signals: _Signals) -> int:
    """Write annotations to a file, which is there before any of them counts as read; how many they were."""
    from broker.publish.files import annotation_file

    count = 0
    ended: BaseException | None = None
    handed = subscription.handed()
    with annotation_file(path, "") as sink:
        part: list[PublishedAnnotation] = []
        try:
            for annotation in islice(subscription, limit):
                with signals.shield():
                    part.append(annotation)
                    handed = subscription.handed()
                    if len(part) == _PART:
                        sink.write(part)
                        count, part = count + len(part), []
        except SystemExit as end:  # by a signal, which is how a stream without --limit or --idle is left
            ended = end
        sink.write(part)
        count += len(part)
    subscription.acknowledge(None if ended is None else handed)
    text.echo(f"{count} annotations written to {path}", err=True)
    if ended is not None:
        raise ended
    return count


def _print_lag(topics: Sequence[str], servers: str, group: str, settings: Settings, as_json: bool) -> None:
    from broker.client.lag import group_lag

    client = {k: v for k, v in settings.kafka.client_options().items() if k != "bootstrap.servers"}
    found = group_lag(topics, servers, group, client)
    if as_json:
        for one in found:
            click.echo(json.dumps(asdict(one)))
        return
    text.echo(f"{'topic':<40} {'partition':>9} {'position':>12} {'end':>12} {'lag':>12}")
    for one in found:
        position = "none" if one.position is None else one.position
        text.echo(f"{one.topic:<40} {one.partition:>9} {position:>12} {one.end:>12} {one.messages:>12}")
    text.echo(f"{'all':<40} {'':>9} {'':>12} {'':>12} {sum(one.messages for one in found):>12}")


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
            text.say(f"skipped {message}{more}")

    def summary(self) -> str:
        """How many there were."""
        counts = ", ".join(f"{count} of {topic}" for topic, count in self.counts.items())
        return f"messages skipped that are no annotations: {counts}"
