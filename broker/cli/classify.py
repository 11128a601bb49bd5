"""``trifid classify``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from broker.cli import options, text
from broker.cli.archive import classify_archive
from broker.cli.bar import Bar

_ROLES: Final = {"mag": "magnitude", "magerr": "error", "mag_err": "error"}
"""Short names of roles of columns."""
ROLES: Final = ("name", "ra", "dec", "time", "magnitude", "flux", "error", "band")
"""What a column may be, as ``Columns.of`` has it."""


def _roles(columns: tuple[str, ...]) -> dict[str, str]:
    """Names of columns by role, from texts such as ``mag=Vmag``."""
    roles: dict[str, str] = {}
    for text_ in columns:
        role, equals, name = text_.partition("=")
        role = _ROLES.get(role.strip().lower(), role.strip().lower())
        if not equals or not name or role not in ROLES:
            raise click.UsageError(f"--column {text_}: give ROLE=NAME, with a role of {', '.join(ROLES)}")
        if role in roles:
            raise click.UsageError(f"--column {text_}: {roles[role]} is that already")
        roles[role] = name
    return roles


def refuse_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError where results would replace what is read, or could not be written in the end."""
    if output.is_dir():
        raise click.UsageError(f"--output {output}: a folder, give the name of a file")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise click.UsageError(f"--output {output}: is read as well, and would be replaced")


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
    metavar="FILE|FOLDER",
    help="Write the results to a file instead of the terminal: .csv, .parquet, .json or .jsonl (a record a line). With "
    "--archive a folder: HATS or Parquet, a file a partition.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    help="Which column of the light curves is what, where its name does not tell: name, ra, dec, time, mag or flux, "
    "error, band. Such as --column mag=Vmag_c. May be given several times.",
)
@click.option("--limit", type=click.IntRange(1, sys.maxsize), help="Stop after so many alerts or objects.")
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
    columns: tuple[str, ...],
    limit: int | None,
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
    from contextlib import ExitStack
    from itertools import islice

    from broker.build import local_pipeline
    from broker.catalog.memory import MemoryCatalogs
    from broker.catalog.presets import KNOWN
    from broker.config import load_settings
    from broker.errors import InputFileError
    from broker.files import require_file
    from broker.offline import classify_light_curves, classify_packets
    from broker.publish.annotation import to_json, to_record
    from broker.publish.files import AnnotationSink, annotation_file
    from broker.records import Annotation, TimeSystem
    from broker.sources import Remark
    from broker.times import mjd_now

    if not paths and not tables and archive is None:
        raise click.UsageError("give files with alerts, --lightcurves FILE or --archive FOLDER")
    time_system = None if times is None else TimeSystem[times.upper()]
    roles = _roles(columns)
    if roles and not tables and archive is None:
        raise click.UsageError("--column is of --lightcurves or --archive")
    settings = load_settings(config)
    if archive is not None:
        if paths or tables or as_json or limit is not None or output is None:
            raise click.UsageError("--archive goes with --output FOLDER, and with no other files, --json or --limit")
        if workers is not None and scheduler is not None:
            raise click.UsageError("--workers are processes of this machine: leave them out with --scheduler")
        stars = tuple(map(_named, known))
        if not classify_archive(archive, output, settings, workers, scheduler, time_system, stars, roles):
            raise SystemExit(1)
        return
    for option, value in (("--workers", workers), ("--scheduler", scheduler)):
        if value is not None:
            raise click.UsageError(f"{option} goes with --archive FOLDER")
    if output is not None and as_json:
        raise click.UsageError("--json is for the terminal: --output FILE.jsonl writes the same records")
    if output is not None:
        refuse_output(output, [*paths, *tables, *(file for _, file in map(_named, known))])
    catalogs = MemoryCatalogs()
    for name, file in map(_named, known):
        text.echo(f"{name}: {catalogs.load(name, file, KNOWN):,} known stars", err=True)
    size = settings.pipeline.batch_size
    done, unreadable = 0, 0
    left_out: Counter[tuple[str, str]] = Counter()
    sink: AnnotationSink | None = None

    def show(annotations: Iterable[Annotation]) -> None:
        nonlocal done
        annotations = islice(annotations, None if limit is None else limit - done)
        while some := list(islice(annotations, size)):
            done += len(some)
            if sink is not None:
                sink.write(some)
            elif as_json:
                for annotation in some:
                    click.echo(to_json(to_record(annotation, settings.publish.broker_name, mjd_now())))
            else:
                for annotation in some:
                    text.echo(text.line(annotation))
            bar.report(done)

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
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(shown=output is not None))
        if output is not None:
            sink = stack.enter_context(annotation_file(output, settings.publish.broker_name))
        elif not as_json:
            text.echo(text.HEADER)
        for table in tables:
            if done == limit:
                break
            try:
                require_file(table)
                show(classify_light_curves(pipeline, table, size, say, time_system, catalogs, roles))
            except InputFileError as error:
                if len(tables) + len(paths) == 1:  # there is nothing to go on with: exit code 2, as elsewhere
                    raise
                lose(str(error))
        for result in classify_packets(pipeline, paths if done != limit else [], size, report):
            show(result.annotations)
            left_out += result.points_left_out
            for letter in result.dead_letters:
                name = letter.message.origin.topic if letter.message.origin else ""
                lose(f"{name}: {letter.reason}")
            if done == limit:
                break
    for (survey, reason), points in sorted(left_out.items()):
        text.echo(f"{points} points of {survey} left out: {reason} (docs/points.md)", err=True)
    text.echo(f"{done} classified or NotClassified, {unreadable} not readable", err=True)
    if unreadable:
        raise SystemExit(1)
