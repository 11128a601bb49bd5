"""``trifid drift``."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import click

from broker.cli import options, text


@click.group(invoke_without_command=True)
@click.option(
    "--hours", type=click.IntRange(1, 71), help="The window: so many hours and the one that goes on; as the settings."
)
@options.json_lines
@options.config
@click.pass_context
def drift(context: click.Context, hours: int | None, as_json: bool, config: Path | None) -> None:
    """Say whether the stream is still what it was: latest hours against the baseline, by survey and band.

    Compared are the mix of classes, scores, embeddings, brightness, colour and errors, from the counts that all workers
    of the model in use keep in Redis. A distance counts as drift where it is neither chance nor small. `trifid drift
    baseline` makes the baseline. docs/drift.md says what each quantity is and what to do.
    """
    if context.invoked_subcommand is not None:
        context.obj = config
        return
    from broker.build import build_drift_store
    from broker.config import load_settings
    from broker.drift.compare import compare

    settings = load_settings(config)
    store = build_drift_store(settings)
    with closing(store.connection):
        window = store.window(time.time(), hours or settings.drift.window_hours)
        baseline = store.baseline()
    found = compare(window, baseline.blocks) if baseline is not None else []
    if as_json:
        for each in found:
            row = {name: getattr(each, name) for name in (*each.__slots__, "detected")}
            click.echo(json.dumps(row))
        if baseline is None:
            text.echo("no baseline: make one with `trifid drift baseline`", err=True)
        return
    text.echo(f"model and reference set: {store.space}")
    for (survey, band), vector in sorted(window.items()):
        text.echo(f"{survey} {band}: {int(vector[0])} alerts in the window")
    if baseline is None:
        text.echo("no baseline: make one with `trifid drift baseline`, when the stream is in order")
        return
    text.echo(f"baseline: {baseline.spans}, {baseline.alerts} alerts, made {_moment(baseline.made)}")
    if not found:
        text.echo("too few alerts in the window, or none of a survey and band that the baseline has")
        return
    text.echo(f"{'survey':<9} {'band':<8} {'quantity':<12} {'alerts':>8} {'distance':>9} {'significance':>12}")
    for each in found:
        text.echo(
            f"{each.survey:<9} {each.band:<8} {each.quantity:<12} {each.alerts:>8} {each.distance:>9.3f} "
            f"{each.significance:>12.1f}  {'DRIFT ' if each.detected else ''}{each.remark}"
        )


@drift.command()
@click.option(
    "--days", type=click.IntRange(1, 59), default=7, show_default=True, help="The last so many days, today's included."
)
@options.config
@click.pass_obj
def baseline(above: Path | None, days: int, config: Path | None) -> None:
    """Make the last days the baseline that the stream is compared with, replacing an earlier one.

    It belongs to the model and the reference set in use: after a change of either there is none, until this is run
    again. Of at least three days with alerts each day is a block of its own, and how much days differ is what is
    allowed for; where there are fewer, hours are, of which the night's course is all that is known.
    """
    from broker.build import build_drift_store
    from broker.config import load_settings

    store = build_drift_store(load_settings(config or above))
    with closing(store.connection):
        made = store.make_baseline(time.time(), days)
    text.echo(f"baseline of {made.space}: {made.spans}, {made.alerts} alerts")


def _moment(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix))
