"""``trifid classify``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

import click

from broker.cli import options

_REPORT_EVERY: Final = 1000


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True), metavar="[PATH]...")
@click.option(
    "--lightcurves",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Table of light curves, Parquet or CSV, with the columns name, ra, dec (degrees), mjd or hjd, mag or "
    "vmag, mag_err or vmag_err, and optionally band (V where absent): lists in one row an object, or one row "
    "a point.",
)
@options.json_lines
@options.config
def classify(paths: tuple[Path, ...], lightcurves: Path | None, as_json: bool, config: Path | None) -> None:
    """Classify alert packets or light curves from files, without any server.

    PATH is a packet of ZTF or LSST, a folder, a tar file or an Avro file of packets. Alerts of one object are
    put together, in the order in which they come. Each alert, or each object of the table, gives one line. The
    exit code is 1 where a packet could not be read.
    """
    from collections import Counter

    from broker.build import build_engine, load_reference_set
    from broker.cli import text
    from broker.config import load_settings
    from broker.offline import classify_light_curves, classify_packets
    from broker.pipeline import Pipeline
    from broker.publish.annotation import mjd_now, to_json, to_record
    from broker.records import Annotation
    from broker.state.memory import MemoryStore
    from broker.surveys import Decoder

    if not paths and lightcurves is None:
        raise click.UsageError("give files with alerts, or --lightcurves FILE")
    settings = load_settings(config)
    size = settings.pipeline.batch_size
    done, unreadable, start = 0, 0, time.monotonic()
    left_out: Counter[tuple[str, str]] = Counter()

    def show(annotations: Iterable[Annotation]) -> None:
        nonlocal done
        for annotation in annotations:
            if as_json:
                click.echo(to_json(to_record(annotation, settings.publish.broker_name, mjd_now())))
            else:
                click.echo(text.line(annotation))
            done += 1
            if done % _REPORT_EVERY == 0:
                click.echo(f"{done} done, {done / (time.monotonic() - start):.0f} a second", err=True)

    # The models run here, whatever engine the service has.
    inference = settings.inference.model_copy(update={"engine": "onnx"})
    with closing(build_engine(inference, settings.triton)) as engine:
        pipeline = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, load_reference_set(settings))
        if not as_json:
            click.echo(text.HEADER)
        if lightcurves is not None:
            show(classify_light_curves(pipeline, lightcurves, size))
        for result in classify_packets(pipeline, paths, size):
            show(result.annotations)
            unreadable += len(result.dead_letters)
            left_out += result.points_left_out
            for letter in result.dead_letters:
                name = letter.message.origin.topic if letter.message.origin else ""
                click.echo(f"{name}: {letter.reason}", err=True)
    for (survey, reason), points in sorted(left_out.items()):
        click.echo(f"{points} points of {survey} left out: {reason} (docs/points.md)", err=True)
    click.echo(f"{done} classified or NotClassified, {unreadable} not readable", err=True)
    if unreadable:
        raise SystemExit(1)
