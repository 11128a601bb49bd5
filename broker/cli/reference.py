"""``trifid reference``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.reference.gather import AnswerOf

_OWN: Final = "own"
"""How the model's own set is called."""


@click.group()
def reference() -> None:
    """The set of known objects that alerts are compared with."""


@reference.command()
@options.config
def load(config: Path | None) -> None:
    """Put the reference set of the model repository into Redis as its model's, replacing an earlier one.

    `trifid run` does this by itself where Redis has none of this model, or another than the manifest names. Sets of
    other models stay: workers of two model versions can run side by side.
    """
    from broker.build import put_reference_set
    from broker.config import load_settings

    reference_set = put_reference_set(load_settings(config))
    text.echo(f"reference set {reference_set.version} of {reference_set.model}: {len(reference_set)} embeddings")


@reference.command()
@options.config
def show(config: Path | None) -> None:
    """Say what the reference set of the model repository holds: embeddings and calibration of each stratum."""
    from broker.anomaly.strata import every_stratum, stratum_name
    from broker.build import load_reference_set
    from broker.config import load_settings

    reference_set = load_reference_set(load_settings(config))
    text.echo(f"reference set {reference_set.version} of {reference_set.model}: {len(reference_set)} embeddings")
    for number in every_stratum():
        stratum = reference_set.strata.get(number)
        if stratum is None:
            text.echo(f"{stratum_name(number)}: nothing, no score")
            continue
        line = f"{stratum.name}: {len(stratum.embeddings)} embeddings, {len(stratum.calibration)} calibration distances"
        if stratum.problem is not None:
            line += ", no score"
        else:
            line += f", score 0.99 from distance {stratum.calibration[int(0.99 * len(stratum.calibration))]:.3f}"
        text.echo(line)


@reference.command()
@click.option(
    "--objects", "most", type=click.IntRange(200, 50_000), default=2000, show_default=True,
    help="Of the stream at most, a sample of those with enough detections; 300 kB of memory each.",
)  # fmt: skip
@click.option("--detections", "least", type=click.IntRange(5), default=50, show_default=True,
              help="That an object needs.")  # fmt: skip
@click.option("--probability", type=options.Number(0.5, 1.0), default=0.9, show_default=True,
              help="From which the model counts as sure of an object, which may then join the set.")  # fmt: skip
@click.option("--answers/--no-answers", default=True, show_default=True,
              help="Whether what people answered about objects counts (web.database of the settings).")  # fmt: skip
@click.option("--promote", "at_once", is_flag=True, help="Have workers use it at once.")
@options.config
def build(most: int, least: int, probability: float, answers: bool, at_once: bool, config: Path | None) -> None:
    """Make a reference set of the served model from its own one and what the stream has shown, and keep it in Redis.

    Objects of which the model is sure, and those that people gave a class, join the embeddings; others calibrate the
    scores, at the length that they have and as they were when shorter. The model's own set stays, and scores what the
    stream has too little of. Nothing changes for workers until `trifid reference promote`. Runs the model in this
    process, some minutes on one core (docs/anomaly.md).
    """
    from broker.build import build_store, local_pipeline, own_reference_set, reference_versions
    from broker.config import load_settings
    from broker.reference.check import check
    from broker.reference.gather import gather
    from broker.reference.rebuild import rebuilt
    from broker.state.sample import latest_alerts

    settings = load_settings(config)
    own, identity = own_reference_set(settings)
    said = _answers(settings) if answers else {}
    with (
        closing(build_store(settings, read_only=True)) as store,
        closing(reference_versions(settings, identity)) as versions,
    ):
        pipeline = local_pipeline(settings)
        gathered = gather(
            latest_alerts(store.connection), store, pipeline, least=least, most=most, probability=probability,
            answers=said, progress=lambda n: text.echo(f"{n} objects looked at", err=True),
        )  # fmt: skip
        for what, count in sorted(gathered.counts.items()):
            text.echo(f"{what}: {count}")
        before, after, objects = check(own, gathered.seen)
        text.echo(
            f"known objects with a combined score of 0.9 or more, of {objects} in neither set nor calibration: "
            f"{before:.3f} by the model's own set, {after:.3f} by one from the stream (0.1 would be even)"
        )
        made = rebuilt(own, gathered.seen)
        kept = versions.keep(made, gathered.counts["known"], (before, after))
        text.echo(f"reference set {kept.version}: {kept.embeddings} embeddings, {kept.strata} strata from the stream")
        if at_once:
            versions.promote(kept.version)
            text.echo("workers use it within seconds; `trifid reference rollback` takes it back")
        else:
            text.echo(f"kept; `trifid reference promote {kept.version}` has workers use it")


def _answers(settings: Settings) -> AnswerOf:
    """What people answered about objects; nothing, and why, where there is no database of answers."""
    from broker.cli.web import open_index
    from broker.errors import ConfigurationError

    database = settings.web.database.get_secret_value()
    if database.startswith("sqlite:///") and not Path(database.removeprefix("sqlite:///")).exists():
        return {}
    try:
        index = open_index(settings)
    except ConfigurationError as error:
        text.echo(f"no answers are taken: {error}", err=True)
        return {}
    from broker.web import feedback

    with closing(index):
        return feedback.of_objects(index.engine)


@reference.command("list")
@options.config
@options.json_lines
def list_versions(config: Path | None, as_json: bool) -> None:
    """Show the reference sets of the served model: its own, those made from the stream, and which is in use."""
    import json
    from dataclasses import asdict

    from broker.build import reference_versions
    from broker.config import load_settings

    with closing(reference_versions(load_settings(config))) as versions:
        made, used = versions.made(), versions.promoted().version
    if as_json:
        for one in made:
            click.echo(json.dumps({**asdict(one), "in_use": one.version == used}))
        return
    text.echo(f"{_OWN}: the model's{', in use' if used is None else ''}")
    for one in made:
        state = ", in use" if one.version == used else ""
        text.echo(
            f"{one.version}{state}: made {one.made} of {one.objects} objects, {one.embeddings} embeddings, "
            f"{one.strata} strata from the stream; known objects of 0.9 or more {one.high_before:.3f} -> "
            f"{one.high_after:.3f}"
        )


@reference.command()
@click.argument("version", type=options.TEXT)
@options.config
def promote(version: str, config: Path | None) -> None:
    """Have workers use a set that `build` has made, or with "own" the model's; they take it without a restart."""
    from broker.build import own_reference_set, reference_versions
    from broker.config import load_settings

    settings = load_settings(config)
    own, identity = own_reference_set(settings)
    with closing(reference_versions(settings, identity)) as versions:
        if version != _OWN:
            versions.load(version, own)
        versions.promote(None if version == _OWN else version)
    text.echo(f"{version} is in use within seconds; `trifid reference rollback` takes it back")


@reference.command()
@options.config
def rollback(config: Path | None) -> None:
    """Have workers use again the set that they used before; they take it without a restart."""
    from broker.build import reference_versions
    from broker.config import load_settings

    with closing(reference_versions(load_settings(config))) as versions:
        version = versions.rollback()
    text.echo(f"{version or _OWN} is in use again within seconds")
