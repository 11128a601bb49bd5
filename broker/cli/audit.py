"""``trifid audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import options, text
from broker.cli.web import require_extra

if TYPE_CHECKING:
    from broker.records import TimeSystem


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@options.files("--lightcurves", "tables", "Light curves of the stars, as `trifid classify` reads them.")
@options.files(
    "--spectra", "spectra_files", "Spectra of the stars, as `trifid spectra show` reads them, matched by position."
)
@options.match_radius(2.0)
@options.table_columns
@click.option(
    "--top", type=click.IntRange(min=1), default=30, show_default=True, help="Labels on the terminal and in the report."
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="All labels: .csv, .parquet, .json or .jsonl."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="One HTML file of the most doubtful, with light curves in time and phase. Needs the extra web.",
)
@options.times("What the times of the light curves are, where their column's name does not tell.")
@options.json_lines
@options.config
def audit(
    table: Path,
    tables: tuple[Path, ...],
    spectra_files: tuple[Path, ...],
    radius: float,
    columns: tuple[str, ...],
    top: int,
    output: Path | None,
    report: Path | None,
    time_system: TimeSystem | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """List the most doubtful labels of a table of variable stars, without any server.

    TABLE has names, positions and classes: VSX, the GCVS, or a list of one's own, with types as VSX and the GCVS write
    them or Trifid's classes. Its stars are found among the light curves and spectra by name, else by position. What
    is audited, how, and how well that works: docs/discovery.md.
    """
    from itertools import chain

    from broker.audit import output as audited
    from broker.audit.claims import Claims
    from broker.audit.output import to_json
    from broker.audit.run import audit as run
    from broker.audit.run import spectra_alone
    from broker.build import local_pipeline
    from broker.config import load_settings
    from broker.files import require_file
    from broker.lightcurves.files import read_light_curves
    from broker.replaced import Replaced
    from broker.spectra.places import Spectra

    if not tables and not spectra_files:
        raise click.UsageError("give the stars' light curves with --lightcurves FILE, or spectra with --spectra FILE")
    for file in (table, *tables, *spectra_files):
        require_file(file)
    if output is not None:
        options.refuse_output(output, [table, *tables, *spectra_files])
        audited.check_ending(output)
    if report is not None:
        require_extra()
        options.refuse_output(report, [table, *tables, *spectra_files])
    settings = load_settings(config)
    claims = Claims(table, radius, columns)
    text.say(f"{table.name}: {claims.count:,} stars with a position")
    curves = chain.from_iterable(read_light_curves(file, text.say, time_system) for file in tables)
    spectra = Spectra.of_files(spectra_files, radius, text.say)
    found = run(
        local_pipeline(settings), spectra_alone(spectra, curves), claims, settings.pipeline.batch_size,
        spectra if spectra.all else None,
    )  # fmt: skip
    if output is not None:
        audited.write(output, found.rows)
    if report is not None:
        from broker.web.audit_report import page

        with Replaced(report) as partial:
            partial.write_text(page(found, table.name, top), "utf-8")
    if not as_json:
        text.echo(audited.HEADER)
    for rank, row in enumerate(found.rows[:top], 1):
        if as_json:
            click.echo(to_json(row.record(rank)))
        else:
            text.echo(text.printable(audited.line(row, rank)))
    for reason, count in sorted(found.left_out.items(), key=lambda item: -item[1]):
        text.say(f"{count} not audited: {reason}")
    wrong = sum(row.likely_wrong for row in found.rows)
    counts = f"{len(found.rows)} audited + {found.left_out.total()} not audited"
    text.say(f"{found.total} stars = {counts}; {wrong} likely wrong")
