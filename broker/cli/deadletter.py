"""``trifid deadletter``."""

from __future__ import annotations

import json
import re
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.streaming.deadletter_replay import DeadLetters, Letter

_LATEST: Final = 20


def _pattern(ctx: click.Context, parameter: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"no regular expression: {error}") from error


_reason = click.option("--reason", metavar="REGEX", callback=_pattern, help="Only where the reason has this in it.")
_survey = click.option(
    "--survey", type=options.TEXT, help="Only of this survey; 'unknown' for what could not be decoded."
)


@click.group()
def deadletter() -> None:
    """What could not be handled: look at it, and send it through again."""


@deadletter.command()
@options.config
@_reason
@_survey
@click.option("--from-beginning", is_flag=True, help="The oldest ones first, not the latest.")
@click.option(
    "--limit", type=click.IntRange(min=1), help=f"So many of them; {_LATEST} by default, all with --from-beginning."
)
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write the payloads to this folder."
)
@options.json_lines
def show(
    config: Path | None,
    reason: re.Pattern[str] | None,
    survey: str | None,
    from_beginning: bool,
    limit: int | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Print dead letters: when, where from, how large and why; with --json the traceback as well."""
    from broker.config import load_settings
    from broker.streaming.deadletter_replay import LetterFilter

    wanted = LetterFilter(reason, survey)
    with closing(dead_letters(load_settings(config))) as letters:
        found = islice(letters.first(wanted), limit) if from_beginning else letters.latest(wanted, limit or _LATEST)
        count = 0
        for count, letter in enumerate(found, 1):  # noqa: B007 the last count is that of all
            if as_json:
                click.echo(json.dumps(_record(letter)))
            else:
                text.echo(_line(letter))
            if save is not None:
                _save(letter, save)
        if not count:
            chosen = (
                "none of the dead letters is meant by --reason and --survey" if reason or survey else "no dead letters"
            )
            text.echo(f"{letters.topic}: {chosen}", err=True)


@deadletter.command()
@options.config
@_reason
@_survey
@click.option("--limit", type=click.IntRange(min=1), help="Send at most so many.")
@click.option(
    "--to-topic", type=options.TEXT, metavar="TOPIC", help="Send to this topic; to where each came from by default."
)
def replay(
    config: Path | None,
    reason: re.Pattern[str] | None,
    survey: str | None,
    limit: int | None,
    to_topic: str | None,
) -> None:
    """Send dead letters back to the topic that each came from.

    Each is sent once, however often this is called or interrupted: what was sent is recorded in Kafka, under the
    group <kafka.group_id>-deadletter-replay. A letter whose payload was cut is fetched from its source where that
    still has it. The messages have the header 'replayed'.
    """
    from broker.config import load_settings
    from broker.streaming.deadletter_replay import LetterFilter

    with closing(dead_letters(load_settings(config))) as letters:
        counts = letters.replay(LetterFilter(reason, survey), limit, to_topic)
    text.echo(counts)


def dead_letters(settings: Settings) -> DeadLetters:
    """The service's dead letters; raises DependencyUnavailableError, and ConfigurationError without their topic."""
    from broker.publish.topics import OutputTopics
    from broker.streaming.deadletter_replay import DeadLetters

    topics = OutputTopics(settings.publish.topic_prefix, settings.anomaly.threshold)
    return DeadLetters(settings.kafka, topics.dead_letter)


def _record(letter: Letter) -> dict[str, Any]:
    source = letter.source
    return {
        "time": _iso(letter.timestamp_ms),
        "reason": letter.reason,
        "survey": letter.survey,
        "alertId": letter.headers.get("alert-id"),
        "alertIdStr": letter.headers.get("alert-id"),  # as annotations have it
        "source": None if source is None else dict(zip(("topic", "partition", "offset"), source, strict=True)),
        "bytes": len(letter.payload),
        "cutFromBytes": letter.cut_from,
        "traceback": letter.headers.get("traceback"),
        "partition": letter.partition,
        "offset": letter.offset,
    }


def _line(letter: Letter) -> str:
    source = "?" if letter.source is None else "{}[{}]@{}".format(*letter.source)
    size = f"{len(letter.payload)} B" + ("" if letter.cut_from is None else f" of {letter.cut_from}")
    return text.printable(f"{_iso(letter.timestamp_ms)}  {letter.survey}  {source}  {size}  {letter.reason}")


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _save(letter: Letter, folder: Path) -> None:
    """Under the letter's own position: the source's name comes from outside."""
    from broker.errors import InputFileError

    name = f"{letter.partition}-{letter.offset}" + (".cut" if letter.cut_from is not None else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(letter.payload)
    except OSError as error:
        raise InputFileError(f"{folder}: {error}") from error
