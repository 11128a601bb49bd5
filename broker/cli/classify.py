"""``trifid classify``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli import options, text
from broker.cli.archive import classify_archive
from broker.cli.bar import Bar

if TYPE_CHECKING:
    from broker.catalog.memory import Loaded, MemoryCatalogs
    from broker.config import Settings
    from broker.pipeline import Pipeline
    from broker.publish.files import AnnotationSink
    from broker.records import Annotation, TimeSystem
    from broker.sources import Remark

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


def _named(given: Path) -> tuple[str, Path]:
    """The name of a catalogue and its file."""
    name, equals, file = str(given).partition("=")
    return (name, Path(file)) if equals and not given.exists() else (given.name.partition(".")[0], given)


def load_sources(catalogs: MemoryCatalogs, given: Sequence[Path]) -> None:
    """Read catalogues of values; raises UsageError for a preset that is none, and InputFileError."""
    from broker.catalog.presets import PLAIN, PRESETS
    from broker.errors import InputFileError

    for one in given:
        preset, equals, rest = str(one).partition("=")
        by_preset = bool(equals) and not one.exists()
        if by_preset and (preset not in PRESETS or PRESETS[preset].known):
            names = ", ".join(name for name, held in PRESETS.items() if not held.known)
            raise click.UsageError(f"--catalog {one}: give [PRESET=]FILE, with a preset of {names}")
        file, columns = (Path(rest), PRESETS[preset]) if by_preset else (one, PLAIN)
        try:
            loaded = catalogs.load(f"{preset if by_preset else file.name.partition('.')[0]}", file, columns)
            how = "position"
        except InputFileError as error:
            if "no column for ra" not in str(error):
                raise
            try:
                loaded, how = catalogs.load_named(file, columns), "name"
            except InputFileError:
                raise error from None
        _say_loaded(f"{file.name}: {loaded.sources:,} sources, by {how}", loaded)


def _say_loaded(said: str, loaded: Loaded) -> None:
    """What was read of a catalogue, and how much of it was left out."""
    text.echo(f"{said}; {loaded}" if str(loaded) else said, err=True)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@options.files(
    "--lightcurves",
    "tables",
    "Table of light curves, Parquet or text (CSV and other separators), with columns for name, ra, dec, time (MJD or "
    "JD), magnitude and its error, and optionally band, as archives name them (docs/lightcurves.md): lists in one row "
    "an object, or one row a point.",
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
@click.option(
    "--band",
    metavar="NAME",
    help="Band of tables of light curves without a column for it, such as gaia:G (docs/lightcurves.md); V by default.",
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
@options.times(
    "What the times of the tables are. By default the column's name tells: hjd and hmjd are heliocentric, bjd, btjd "
    "and the like barycentric, all others UTC at the observatory, corrected to the solar system's barycentre."
)
@options.files(
    "--known",
    "known",
    "Catalogue of known variable stars, such as vsx.dat: each line names the star at the place, its type, and whether "
    "the model disagrees (docs/catalogs.md).",
    metavar="[NAME=]FILE",
)
@options.files(
    "--spectra",
    "spectra_files",
    "Spectra of the objects, as `trifid spectra show` reads them: by name (object_id, spectrum_id, or the file's) or "
    "position; each by itself where neither alerts nor light curves are given.",
)
@click.option(
    "--radius",
    type=options.Number(min=0.01, max=600),
    metavar="ARCSEC",
    help="Within which a spectrum is an object's; state.spectrum_radius_arcsec by default.",
)
@options.files(
    "--catalog",
    "sources",
    "Catalogue values of the objects, such as colours and parallaxes, by position, or by name where the table has no "
    "positions. PRESET says whose columns it has: gaia, 2mass or wise; Trifid's own names without it "
    "(docs/catalogs.md).",
    metavar="[PRESET=]FILE",
)
@options.json_lines
@options.config
def classify(
    paths: tuple[Path, ...],
    tables: tuple[Path, ...],
    time_system: TimeSystem | None,
    known: tuple[Path, ...],
    spectra_files: tuple[Path, ...],
    radius: float | None,
    sources: tuple[Path, ...],
    archive: str | None,
    output: Path | None,
    workers: int | None,
    scheduler: str | None,
    columns: tuple[str, ...],
    band: str | None,
    limit: int | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Classify alert packets, light curves or spectra from files, without any server.

    PATH is a packet of ZTF or LSST, a folder, a tar file, an Avro file or a Parquet table of packets, each
    compressed or not; - is the standard input. Alerts of one object are put together, in the order in which they
    come. Each alert, each object of a table, or each spectrum where there is nothing else, gives one line. What cannot
    be read is named with the reason, and the rest is classified; the exit code is then 1. All of it is by the version
    of the model that was served at the start, whatever is promoted meanwhile.
    """
    from contextlib import ExitStack

    from broker.build import local_pipeline
    from broker.config import load_settings
    from broker.offline import classify_light_curves, classify_spectra
    from broker.publish.files import annotation_file
    from broker.spectra.places import Spectra

    if not paths and not tables and not spectra_files and archive is None:
        raise click.UsageError("give files with alerts, --lightcurves FILE, --spectra FILE or --archive FOLDER")
    roles = _roles(columns)
    if roles and not tables and archive is None:
        raise click.UsageError("--column is of --lightcurves or --archive")
    if band is not None and not tables:
        raise click.UsageError("--band is of --lightcurves")
    settings = load_settings(config)
    if archive is not None:
        if paths or tables or as_json or limit is not None or output is None:
            raise click.UsageError("--archive goes with --output FOLDER, and with no other files, --json or --limit")
        if workers is not None and scheduler is not None:
            raise click.UsageError("--workers are processes of this machine: leave them out with --scheduler")
        if spectra_files or sources:
            raise click.UsageError("--spectra and --catalog go with --lightcurves or files of alerts")
        stars = tuple(map(_named, known))
        if not classify_archive(archive, output, settings, workers, scheduler, time_system, stars, roles):
            raise SystemExit(1)
        return
    for option, value in (("--workers", workers), ("--scheduler", scheduler)):
        if value is not None:
            raise click.UsageError(f"{option} goes with --archive FOLDER")
    if radius is not None and not spectra_files:
        raise click.UsageError("--radius is of --spectra")
    if output is not None:
        if as_json:
            raise click.UsageError("--json is for the terminal: --output FILE.jsonl writes the same records")
        of_catalogs = [file for _, file in map(_named, (*known, *sources))]
        options.refuse_output(output, [*paths, *tables, *spectra_files, *of_catalogs])
    catalogs = _load_catalogs(known, sources)
    spectra = None
    if spectra_files:
        radius = settings.state.spectrum_radius_arcsec if radius is None else radius
        spectra = Spectra.of_files(spectra_files, radius, text.say, placed=False)
        text.say(f"{len(spectra.all):,} spectra")
    pipeline = local_pipeline(settings, catalogs, spectra=() if spectra is None else spectra.all)
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(shown=output is not None))
        sink = None
        if output is not None:
            sink = stack.enter_context(annotation_file(output, settings.publish.broker_name))
        elif not as_json:
            text.echo(text.HEADER)
        results = _Results(settings, limit, sink, bar, as_json=as_json, several=bool(spectra_files or sources))
        classify_table = partial(
            classify_light_curves, pipeline, batch_size=settings.pipeline.batch_size, say=text.say,
            time_system=time_system, catalogs=catalogs, columns=roles, spectra=spectra, band=band,
        )  # fmt: skip
        results.of_tables(tables, classify_table, alone=len(tables) + len(paths) == 1)
        results.of_packets(paths, pipeline)
        if spectra is not None and not tables and not paths:
            results.show(classify_spectra(pipeline, spectra.all, settings.pipeline.batch_size, catalogs))
    results.summarise()
    if results.unreadable:
        raise SystemExit(1)


def _load_catalogs(known: Sequence[Path], sources: Sequence[Path]) -> MemoryCatalogs:
    from broker.catalog.memory import MemoryCatalogs
    from broker.catalog.presets import KNOWN

    catalogs = MemoryCatalogs()
    for name, file in map(_named, known):
        loaded = catalogs.load(name, file, KNOWN)
        _say_loaded(f"{name}: {loaded.sources:,} known stars", loaded)
    load_sources(catalogs, sources)
    return catalogs


class _Results:
    """Where annotations go, to a file or the terminal, and what is counted of them."""

    def __init__(
        self,
        settings: Settings,
        limit: int | None,
        sink: AnnotationSink | None,
        bar: Bar,
        *,
        as_json: bool,
        several: bool,
    ) -> None:
        """``sink`` is None for the terminal; ``several`` says that each line names the modalities that were used."""
        self._broker_name, self._size = settings.publish.broker_name, settings.pipeline.batch_size
        self._limit, self._sink, self._bar, self._as_json, self._several = limit, sink, bar, as_json, several
        self._done = 0
        self._modalities: Counter[str] = Counter()
        self._left_out: Counter[tuple[str, str]] = Counter()
        self.unreadable = 0

    def of_tables(
        self, tables: Sequence[Path], classify_table: Callable[[Path], Iterator[Annotation]], *, alone: bool
    ) -> None:
        """Classify tables of light curves.

        Raises InputFileError for a table that cannot be read where it is ``alone``: there is nothing to go on with.
        """
        from broker.errors import InputFileError
        from broker.files import require_file

        for table in tables:
            if self._done == self._limit:
                return
            try:
                require_file(table)
                self.show(classify_table(table))
            except InputFileError as error:
                if alone:
                    raise
                self._lose(str(error))

    def of_packets(self, paths: Sequence[Path], pipeline: Pipeline) -> None:
        """Classify files of alert packets."""
        from broker.offline import classify_packets

        if self._done == self._limit:
            return
        for result in classify_packets(pipeline, paths, self._size, self._remark):
            self.show(result.annotations)
            self._left_out += result.points_left_out
            for letter in result.dead_letters:
                name = letter.message.origin.topic if letter.message.origin else ""
                self._lose(f"{name}: {letter.reason}")
            if self._done == self._limit:
                return

    def summarise(self) -> None:
        """Print what was left out, what was used, and how many there were."""
        for (survey, reason), points in sorted(self._left_out.items()):
            text.echo(f"{points} points of {survey} left out: {reason} (docs/points.md)", err=True)
        if self._several:
            for modalities, count in self._modalities.most_common():
                text.echo(f"{count} by {modalities}", err=True)
        text.echo(f"{self._done} classified or NotClassified, {self.unreadable} not readable", err=True)

    def show(self, annotations: Iterable[Annotation]) -> None:
        """Write or print annotations, up to the limit."""
        annotations = islice(annotations, None if self._limit is None else self._limit - self._done)
        while some := list(islice(annotations, self._size)):
            self._done += len(some)
            self._modalities.update(text.modalities(annotation) for annotation in some if annotation.classified)
            if self._sink is not None:
                self._sink.write(some)
            else:
                for annotation in some:
                    self._print(annotation)
            self._bar.report(self._done)

    def _print(self, annotation: Annotation) -> None:
        from broker.publish.annotation import to_json, to_record
        from broker.times import mjd_now

        if self._as_json:
            click.echo(to_json(to_record(annotation, self._broker_name, mjd_now())))
        else:
            text.echo(text.line(annotation) + (f"  [{text.modalities(annotation)}]" if self._several else ""))

    def _remark(self, remark: Remark) -> None:
        if remark.lost:
            self._lose(str(remark))
        else:
            text.say(str(remark))

    def _lose(self, message: str) -> None:
        self.unreadable += 1
        text.say(message)
