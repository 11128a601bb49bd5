"""``trifid feedback``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.client.feedback import FeedbackAnswer, FeedbackResult


@click.command()
@click.argument("what", metavar="ID|undo|list")
@click.argument("answer", metavar="[ANSWER|ID]", required=False)
@click.option("--note", default="", metavar="TEXT", help="Why; kept with the answer.")
@click.option("--by", metavar="NAME", help="With list: only the answers of this token's owner.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="With list: so many answers.")
@click.option("--server", metavar="URL", help="`trifid web`; by default the one that the settings describe.")
@click.option(
    "--token", envvar="TRIFID_TOKEN", metavar="TOKEN", help="With scope feedback; or the variable TRIFID_TOKEN."
)
@options.json_lines
@options.config
def feedback(
    what: str,
    answer: str | None,
    note: str,
    by: str | None,
    limit: int,
    server: str | None,
    token: str | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Answer about an object, so that anomaly scores learn what is interesting.

    \b
      trifid feedback ztf:ZTF18abcdefg interesting --note "double-peaked"
      trifid feedback ztf:ZTF18abcdefg boring
      trifid feedback ztf:ZTF18abcdefg class=RRAB
      trifid feedback undo ztf:ZTF18abcdefg
      trifid feedback list [ztf:ZTF18abcdefg]

    Answers are kept by `trifid web`, which has to run, under the token's name, and are learned from at once. The
    latest of yours on an object counts; undo withdraws it, and it stays in the list (docs/feedback.md).
    """
    import json

    from broker.client.feedback import feedback_answers, give_feedback, undo_feedback

    url = server or _server(config)
    if what == "list":
        for one in feedback_answers(url, answer, by=by, limit=limit, token=token):
            if as_json:
                click.echo(json.dumps(asdict(one)))
            else:
                text.echo(text.printable(_line(one)))
        return
    if answer is None:
        raise click.UsageError(
            "say of which object" if what == "undo" else "say what it is: interesting, boring or class=RRAB"
        )
    if what == "undo":
        given = undo_feedback(url, answer, token=token)
    else:
        given = give_feedback(url, what, answer, note, token=token)
    if as_json:
        click.echo(json.dumps(asdict(given)))
        return
    for line in _said(given, undone=what == "undo"):
        text.echo(text.printable(line))


def _server(config: Path | None) -> str:
    from broker.config import load_settings

    web = load_settings(config).web
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(web.address, web.address)
    return f"http://{address}:{web.port}"


def _line(one: FeedbackAnswer) -> str:
    from broker.times import datetime_of

    words = [f"{datetime_of(one.mjd):%Y-%m-%d %H:%M}", f"{one.survey}:{one.object_id}", one.answer, f"by {one.by}"]
    if one.score_after is not None:
        words.append(f"score {one.score_before:.4f} -> {one.score_after:.4f}")
    if one.withdrawn_mjd is not None:
        words.append(f"withdrawn {datetime_of(one.withdrawn_mjd):%Y-%m-%d %H:%M}")
    return "  ".join([*words, *([one.note] if one.note else [])])


def _said(given: FeedbackResult, *, undone: bool) -> list[str]:
    one = given.answer
    lines = [f"{one.survey}:{one.object_id} {one.answer}: {'withdrawn' if undone else 'kept'}, by {one.by}"]
    if given.why_not is not None:
        lines.append(f"nothing is learned from it: {given.why_not}")
    if one.score_after is not None:
        lines.append(
            f"anomaly score {one.score_before:.4f} -> {one.score_after:.4f}, rank {one.rank_before} -> {one.rank_after}"
        )
    lines.append(f"top 50: {len(given.entered)} entered, {len(given.left)} left")
    if given.workers is not None:
        lines.append(f"the workers do not have it yet, it is tried again every few seconds: {given.workers}")
    return lines
