"""``trifid classify``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from broker.cli import options, text
from broker.cli.archive import classify_archive

_REPORT_EVERY: Final = 1000


def _named(given: Path) -> tuple[str, Path]:
    """The name of a catalogue and its file."""
    name, equals, file = str(given).partition("=")
    return (name, Path(file)) if equals and not given.exists() else (given.name.partition(".")[0], given)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@click.option(
    "--lightcurves",
    "tables",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Table of light curves, Parquet or text (CSV and other separators), with columns for name, ra, dec, time (MJD "
    "or JD), magnitude and its error, and optionally band, as archives name them (docs/lightcurves.md): lists in one "
    "row an object, or one row a point. May be given several times.",
)
@click.option(
    "--archive",
    metavar="FOLDER|URL",
    help="Whole archive of light curves: a HATS catalogue with nested light curves, or a folder of Parquet files. "
    "Needs --output and pip install trifid[archive]; the same command goes on where a run stopped (docs/archives.md).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --archive: where the results go, as HATS or Parquet, a file a partition.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="With --archive: worker processes on this machine, each with its share of the memory; one a core by default.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="With --archive: a Dask scheduler, such as tcp://host:8786, instead of workers on this machine. Its workers "
    "need trifid[archive] and the same files.",
)
@click.option(
    "--times",
    type=click.Choice(["utc", "heliocentric", "barycentric"]),
    help="What the times of the tables are. By default the column's name tells: hjd and hmjd are heliocentric, bjd, "
    "btjd and the like barycentric, all others UTC at the observatory, corrected to the solar system's barycentre.",
)
@click.option(
    "--known",
    "known",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="[NAME=]FILE",
    help="Catalogue of known variable stars, such as vsx.dat: each line names the star at the place, its type, and "
    "whether the model disagrees (docs/catalogs.md). May be given several times.",
)
@options.json_lines
@options.config
def classify(
    paths: tuple[Path, ...],
    tables: tuple[Path, ...],
    times: str | None,
    known: tuple[Path, ...],
    archive: str | None,
    output: Path | None,
    workers: int | None,
    scheduler: str | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Classify alert packets or light curves from files, without any server.

    PATH is a packet of ZTF or LSST, a folder, a tar file, an Avro file or a Parquet table of packets, each
    compressed or not; - is the standard input. Alerts of one object are put together, in the order in which they
    come. Each alert, or each object of a table, gives one line. What cannot be read is named with the reason, and
    the rest is classified; the exit code is then 1.
    """
    from collections import Counter

    from broker.build import local_pipeline
    from broker.catalog.memory import MemoryCatalogs
    from broker.catalog.presets import KNOWN
    from broker.config import load_settings
    from broker.errors import InputFileError
    from broker.files import require_file
    from broker.offline import classify_light_curves, classify_packets
    from broker.publish.annotation import to_json, to_record
    from broker.records import Annotation, TimeSystem
    from broker.sources import Remark
    from broker.times import mjd_now

    if not paths and not tables and archive is None:
        raise click.UsageError("give files with alerts, --lightcurves FILE or --archive FOLDER")
    time_system = None if times is None else TimeSystem[times.upper()]
    settings = load_settings(config)
    if archive is not None:
        if paths or tables or as_json or output is None:
            raise click.UsageError("--archive goes with --output FOLDER, and with no other files and no --json")
        if workers is not None and scheduler is not None:
            raise click.UsageError("--workers are processes of this machine: leave them out with --scheduler")
        if not classify_archive(archive, output, settings, workers, scheduler, time_system, tuple(map(_named, known))):
            raise SystemExit(1)
        return
    for option, value in (("--output", output), ("--workers", workers), ("--scheduler", scheduler)):
        if value is not None:
            raise click.UsageError(f"{option} goes with --archive FOLDER")
    catalogs = MemoryCatalogs()
    for name, file in map(_named, known):
        text.echo(f"{name}: {catalogs.load(name, file, KNOWN):,} known stars", err=True)
    size = settings.pipeline.batch_size
    done, unreadable, start = 0, 0, time.monotonic()
    left_out: Counter[tuple[str, str]] = Counter()

    def show(annotations: Iterable[Annotation]) -> None:
        nonlocal done
        for annotation in annotations:
            if as_json:
                click.echo(to_json(to_record(annotation, settings.publish.broker_name, mjd_now())))
            else:
                text.echo(text.line(annotation))
            done += 1
            if done % _REPORT_EVERY == 0:
                text.echo(f"{done} done, {done / (time.monotonic() - start):.0f} a second", err=True)

    def say(message: str) -> None:
        text.echo(text.printable(message), err=True)

    def lose(message: str) -> None:
        nonlocal unreadable
        unreadable += 1
        say(message)

    def report(remark: Remark) -> None:
        if remark.lost:
            lose(str(remark))
        else:
            say(str(remark))

    pipeline = local_pipeline(settings, catalogs)
    if not as_json:
        text.echo(text.HEADER)
    for table in tables:
        try:
            require_file(table)
            show(classify_light_curves(pipeline, table, size, say, time_system, catalogs))
        except InputFileError as error:
            if len(tables) + len(paths) == 1:  # there is nothing to go on with: exit code 2, as elsewhere
                raise
            lose(str(error))
    for result in classify_packets(pipeline, paths, size, report):
        show(result.annotations)
        left_out += result.points_left_out
        for letter in result.dead_letters:
            name = letter.message.origin.topic if letter.message.origin else ""
            lose(f"{name}: {letter.reason}")
    for (survey, reason), points in sorted(left_out.items()):
        text.echo(f"{points} points of {survey} left out: {reason} (docs/points.md)", err=True)
    text.echo(f"{done} classified or NotClassified, {unreadable} not readable", err=True)
    if unreadable:
        raise SystemExit(1)
