"""``trifid catalog``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from broker.cli import options, text

_PRESETS = ("gaia", "2mass", "wise", "vsx", "gcvs")
_KNOWN = ("vsx", "gcvs")
"""Presets of known variable stars, which the name of the catalogue chooses, too."""
_SHOWN_FAILURES = 100


def _name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    import re

    from broker.catalog.store import NAME

    if not re.fullmatch(NAME, value):
        raise click.BadParameter(f"{value!r}: letters, digits, dots, dashes and underscores only")
    return value


@click.group()
def catalog() -> None:
    """Catalogues of sources, such as Gaia, whose values alerts get by their position, and of known variable stars."""


@catalog.command()
@click.argument("name", callback=_name)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="PATH...")
@click.option(
    "--preset",
    type=click.Choice(_PRESETS),
    help="Whose column names to look for; Trifid's own by default. vsx and gcvs are known variable stars, which are "
    "published with an alert and no input of the model; they are taken for catalogues of these names.",
)
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Where a value is, such as k_mag=Ksmag; repeat."
)
@click.option("--epoch", type=options.Number(1900, 2100), help="Julian year of all positions.")
@click.option("--order", type=click.IntRange(0, 20), help="HEALPix order of the cells; by the density by default.")
@click.option(
    "--radius", type=options.Number(min=0, min_open=True, max=60), help="Arcsec within which a source is the alert's."
)
@click.option("--chunk-rows", type=click.IntRange(1, 500_000), help="Rows written at once.")
@click.option("--replace", is_flag=True, help="Load all anew beside what is there, then switch over.")
@options.config
def load(
    name: str,
    paths: tuple[Path, ...],
    preset: str | None,
    columns: tuple[str, ...],
    epoch: float | None,
    order: int | None,
    radius: float | None,
    chunk_rows: int | None,
    replace: bool,
    config: Path | None,
) -> None:
    """Put tables into Redis as catalogue NAME, such as gaia, or vsx for known variable stars.

    PATH is a Parquet, CSV, FITS or VOTable file, a table of the CDS with its ReadMe beside it, or a folder of them.
    Stopped at any moment, the same command goes on where it was. Files that a complete catalogue does not have yet are
    added. The exit code is 1 where a file could not be read or no row is usable, and 2 where none could be read.
    """
    from contextlib import closing
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from broker.catalog.presets import PLAIN, PRESETS
    from broker.catalog.store import CHUNK_ROWS, CatalogStore, LoadProgress
    from broker.config import load_settings

    if preset is None and name in _KNOWN:
        preset = name
    chosen = (PRESETS[preset] if preset else PLAIN).with_columns(columns)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%  {task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with closing(CatalogStore(load_settings(config).redis.address())) as store, bar:
        task = bar.add_task(f"{name}: looking at the positions", total=None, rows=0, rate=0.0)
        start: list[tuple[float, int]] = []

        def show(progress: LoadProgress) -> None:
            if not start:
                # What was loaded before says nothing about the time that is left.
                start.append((monotonic(), progress.rows))
                bar.reset(task, description=name, total=progress.bytes_total, completed=progress.bytes_done)
            seconds, rows = monotonic() - start[0][0], progress.rows - start[0][1]
            bar.update(task, completed=progress.bytes_done, rows=progress.rows, rate=rows / seconds if seconds else 0.0)

        result = store.load(
            name,
            paths,
            chosen,
            epoch=epoch,
            order=order,
            radius=radius,
            chunk_rows=chunk_rows or CHUNK_ROWS,
            anew=replace,
            on_progress=show,
        )
    for failure in result.failures[:_SHOWN_FAILURES]:
        text.echo(failure, err=True)
    if len(result.failures) > _SHOWN_FAILURES:
        text.echo(f"... and {len(result.failures) - _SHOWN_FAILURES} more", err=True)
    if result.already_complete:
        text.echo(f"catalogue {name} is complete: all these files were loaded before (--replace loads them anew)")
    if result.contents.rows:
        text.echo(f"catalogue {name}: {_describe(result.layout, result.contents)}")
    _echo_unknown(result.contents)
    if not result.contents.rows:
        raise click.ClickException(f"catalogue {name}: not loaded, no row of its tables is usable")
    if not result.in_use:
        raise click.ClickException(
            f"catalogue {name}: not replaced, the one before stays in use, since {len(result.failures)} of the files "
            "failed: fix them or leave them out, and give the command again"
        )
    if result.failures:
        raise click.ClickException(f"catalogue {name}: {len(result.failures)} files failed, the others are in use")


@catalog.command("list")
@options.config
def list_catalogs(config: Path | None) -> None:
    """Say which catalogues there are, in the order in which they fill an alert's values."""
    from contextlib import closing

    from broker.catalog.store import CatalogStore
    from broker.config import load_settings

    with closing(CatalogStore(load_settings(config).redis.address())) as store:
        entries = store.entries()
        for entry in entries:
            if entry.current is not None:
                contents = store.contents(entry.name, entry.current)
                text.echo(f"{entry.name}: {_describe(entry.current, contents)}")
                _echo_unknown(contents)
            if entry.loading is not None:
                contents = store.contents(entry.name, entry.loading)
                text.echo(f"{entry.name}: not complete, not used: {_describe(entry.loading, contents)}")
    if not entries:
        text.echo("no catalogues: see `trifid catalog load --help`")


@catalog.command()
@click.argument("name")
@options.config
def drop(name: str, config: Path | None) -> None:
    """Delete catalogue NAME."""
    from contextlib import closing

    from broker.catalog.store import CatalogStore
    from broker.config import load_settings
    from broker.errors import InputFileError

    with closing(CatalogStore(load_settings(config).redis.address())) as store:
        if not store.drop(name):
            known = ", ".join(entry.name for entry in store.entries()) or "none"
            raise InputFileError(f"there is no catalogue {name}; there are: {known}")
    text.echo(f"catalogue {name} is dropped")


@catalog.command(context_settings={"ignore_unknown_options": True})
@click.argument("ra", callback=options.ra)
@click.argument("dec", callback=options.dec)
@click.option(
    "--mjd", type=options.Number(), default=math.nan, help="When the position was measured; Gaia's epoch by default."
)
@options.json_lines
@options.config
def match(ra: float, dec: float, mjd: float, as_json: bool, config: Path | None) -> None:
    """Print what the catalogues say of the source at a position, as an alert there would get it.

    RA and DEC are ICRS, in degrees or sexagesimal: 269.4521 +4.6933, 17:57:48.5 +04:41:36, 17h57m48.5s 4d41m36s.
    """
    import json
    from contextlib import closing

    from broker.catalog.store import CatalogStore
    from broker.config import load_settings
    from broker.records import SOURCE_FEATURES

    with closing(CatalogStore(load_settings(config).redis.address())) as store:
        found, matches = store.match(ra, dec, mjd)
        names = [entry.name for entry in store.entries() if entry.current is not None]
    numbers = found.metadata.values.tolist() if found.metadata is not None else []
    values = {name: value for name, value in zip(SOURCE_FEATURES, numbers, strict=False) if value == value}
    if as_json:
        sources = [
            {"catalog": m.catalog, "separation_arcsec": round(m.separation, 4), "values": m.values}
            | ({} if m.known is None else _known(m.known))
            for m in matches
        ]
        click.echo(json.dumps({"ra": ra, "dec": dec, "catalogs": names, "matches": sources, "values": values}))
        return
    if not matches:
        text.echo(f"no source at {ra:.6f} {dec:+.6f} in {', '.join(names) or 'any catalogue: there are none'}")
        return
    for source in matches:
        star = "" if source.known is None else f": {text.known_star(source.known).partition(': ')[2]}"
        name = "" if source.known is None or source.known.name is None else f" {source.known.name}"
        text.echo(f"{source.catalog}:{name} {source.separation:.3f} arcsec from {ra:.6f} {dec:+.6f}{star}")
    for name, value in values.items():
        first = next(m.catalog for m in matches if name in m.values)
        text.echo(f"{name:20} {value:<12.6g} {first}")


def _known(star: Any) -> dict[str, Any]:
    """A known variable star, in the annotation's words."""
    return {"name": star.name, "type": star.type, "class": star.class_name, "period": star.period}


def _echo_unknown(contents: Any) -> None:
    """Values that were left out, a line a column."""
    from broker.catalog.plausible import describe_unknown

    for column, reasons in contents.unknown.items():
        text.echo(f"  unknown {describe_unknown({column: reasons})}")


def _describe(layout: Any, contents: Any) -> str:
    times = contents.stored / max(contents.rows, 1)
    files = f"{len(contents.files)} file{'' if len(contents.files) == 1 else 's'}"
    return (
        f"{contents.rows:,} sources from {files} ({contents.skipped:,} rows without position or values left out), "
        f"{layout.row_bytes} bytes each, stored {times:.3f} times; order {layout.order}, epoch {layout.epoch:g}, "
        f"radius {layout.radius:g} arcsec; {', '.join(layout.columns)}"
    )
