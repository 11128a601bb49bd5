"""``trifid state``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import options, text
from broker.cli.state_rebuild import rebuild

if TYPE_CHECKING:
    from broker.redis_client import RedisConnection
    from broker.state.admin import ObjectContents, Repair, StateAdmin
    from broker.state.keys import ObjectName

_KINDS = ("detection", "forced", "limit")


@click.group()
def state() -> None:
    """The state of each object in Redis.

    OBJECT is survey:id, as ztf:ZTF18abcdefg, or an id alone.
    """


state.add_command(rebuild)


def _connected(url: str) -> RedisConnection:
    """A connection to another Redis; raises ConfigurationError where the URL cannot be one."""
    from pydantic import ValidationError

    from broker.config import RedisSettings
    from broker.errors import ConfigurationError
    from broker.redis_client import RedisConnection

    try:
        return RedisConnection(RedisSettings.model_validate({"url": url}).address())
    except ValidationError as error:
        raise ConfigurationError(f"--from: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


@state.command()
@click.option(
    "--from", "source", metavar="URL", help="Copy the state of another Redis, which stays as it is, as into a cluster."
)
@options.config
def migrate(source: str | None, config: Path | None) -> None:
    """Give all state of earlier releases the keys and the form of this one, while the service runs or not.

    Workers do the same with each object that they get an alert of, and read the others where they are; but for a
    cluster it has to be done first. Stopped anywhere, the same command goes on. The exit code is 1 where something is
    left. Workers of earlier releases are to be stopped before: what they write meanwhile is taken along only by
    running this again.
    """
    from rich.console import Console
    from rich.progress import Progress

    from broker.build import build_store
    from broker.config import load_settings
    from broker.state.migrate import Migration

    with (
        closing(build_store(load_settings(config))) as store,
        closing(store.connection if source is None else _connected(source)) as other,
        Progress(console=Console(stderr=True)) as bar,
    ):
        migration = Migration(store, source=None if source is None else other)
        task = bar.add_task("objects", total=sum(1 for _ in migration.todo()))
        for done in migration.run():
            bar.advance(task, done)
    counts = migration.counts
    text.echo(f"{counts.moved} objects and {counts.spectra} spectra migrated")
    for keys, what in (
        (counts.damaged, "cannot be read, and are set aside (from another Redis: left there)"),
        (counts.newer, "are of a later release, and stay as they are"),
        (counts.busy, "were written all the time: stop workers of earlier releases, and run this again"),
    ):
        if keys:
            text.echo(f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}", err=True)
    if not counts.complete:
        raise SystemExit(1)


@state.command()
@click.argument("object_", metavar="OBJECT")
@click.option("--points", is_flag=True, help="List all points, too.")
@options.config
def show(object_: str, points: bool, config: Path | None) -> None:
    """Show the state of an object, and which of its points are impossible."""
    from broker.build import build_state_admin
    from broker.config import load_settings
    from broker.state.admin import Selection
    from broker.times import mjd_now

    settings = load_settings(config)
    with closing(build_state_admin(settings)) as admin:
        for name in _find(admin, object_):
            stored = admin.read(name)
            _describe(stored)
            if stored.problem is None and stored.latest is not None:
                repair = admin.repair(name, mjd_now() + settings.pipeline.future_days, Selection(), dry=True)
                text.echo(f"  cannot be:  {_changes(repair) or 'nothing'}")
            if points:
                _list_points(stored)


@state.command()
@click.argument("objects", metavar="OBJECT...", nargs=-1, required=True)
@options.config
def forget(objects: tuple[str, ...], config: Path | None) -> None:
    """Delete all that is stored under an object's name: light curve, latest alert, spectrum, place.

    Its next alert begins it anew, with the history that the packet holds. Spectra stored by position stay.
    """
    from broker.build import build_state_admin
    from broker.config import load_settings

    with closing(build_state_admin(load_settings(config))) as admin:
        for given in objects:
            for name in _find(admin, given):
                keys = admin.forget(name)
                text.echo(f"{':'.join(name)}: forgotten ({', '.join(keys)})")


@state.command()
@click.argument("objects", metavar="[OBJECT]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All objects.")
@click.option(
    "--between", type=(float, float), metavar="MJD MJD", help="Remove the points of this time as well, MJD (UTC)."
)
@click.option("--kind", type=click.Choice(_KINDS), help="Remove the points of this kind as well; with --between, both.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@options.config
def repair(
    objects: tuple[str, ...],
    everything: bool,
    between: tuple[float, float] | None,
    kind: str | None,
    dry_run: bool,
    config: Path | None,
) -> None:
    """Remove impossible points: from before the survey or from the future, of impossible flux, error or band.

    Where the latest alert is of such a time, the next alert takes its place. An object without any point left is
    forgotten. Safe while the service runs. The exit code is 1 where an object could not be read.
    """
    from broker.build import build_state_admin
    from broker.config import load_settings
    from broker.state.admin import Selection
    from broker.state.encoding import StateError
    from broker.times import mjd_now

    if bool(objects) == everything:
        raise click.UsageError("give objects, or --all")
    settings = load_settings(config)
    selection = Selection(between, None if kind is None else _KINDS.index(kind))
    latest = mjd_now() + settings.pipeline.future_days
    looked_at = changed = removed = unreadable = 0
    with closing(build_state_admin(settings)) as admin:
        names = admin.every() if everything else (name for given in objects for name in _find(admin, given))
        for name in names:
            looked_at += 1
            try:
                done = admin.repair(name, latest, selection, dry=dry_run)
            except StateError as error:
                text.echo(f"{':'.join(name)}: cannot be read: {error}", err=True)
                unreadable += 1
                continue
            if done.changes:
                changed += 1
                removed += done.points - done.left
                text.echo(f"{':'.join(name)}: {'would remove ' if dry_run else ''}{_changes(done)}; {_left(done)}")
    text.echo(
        f"{looked_at} objects looked at, {changed} {'to be ' if dry_run else ''}repaired, {removed} points "
        f"{'to be ' if dry_run else ''}removed, {unreadable} not readable"
    )
    if unreadable:
        raise SystemExit(1)


def _find(admin: StateAdmin, given: str) -> list[ObjectName]:
    names = admin.find(given)
    if not names:
        raise click.ClickException(f"nothing is stored of {given!r} (give survey:id, as ztf:ZTF18abcdefg)")
    return names


def _changes(repair: Repair) -> str:
    parts = [f"{count} points ({reason})" for reason, count in sorted(repair.removed.items())]
    if repair.latest_was is not None:
        parts.append(f"the time of the latest alert, MJD {repair.latest_was:.5f}")
    return ", ".join(parts)


def _left(repair: Repair) -> str:
    if not repair.left:
        return "no point is left, the object is forgotten"
    return f"{repair.left} of {repair.points} points left, MJD {repair.first:.5f} to {repair.last:.5f}"


def _describe(stored: ObjectContents) -> None:
    import numpy as np

    from broker.records import BANDS

    text.echo(f"{stored.survey}:{stored.object_id}")
    latest, curve = stored.latest, stored.light_curve
    if stored.problem is not None:
        text.echo(f"  light curve: {stored.size} bytes that cannot be read: {stored.problem}")
    elif latest is not None:
        text.echo(
            f"  latest:     alert {latest.alert_id}, MJD {latest.mjd:.5f}, {latest.band or 'band unknown'}, "
            f"ra {latest.ra:.6f}, dec {latest.dec:.6f}"
            + (", near a known body of the solar system" if latest.solar_system else "")
        )
        span = f", MJD {curve.mjd[0]:.5f} to {curve.mjd[-1]:.5f}" if len(curve) else ""
        text.echo(f"  points:     {len(curve)}{span}")
        for code in np.unique(curve.band).tolist():
            kinds = np.bincount(curve.kind[curve.band == code], minlength=len(_KINDS)).tolist()
            band = BANDS[code] if code < len(BANDS) else f"band {code}"
            text.echo(f"    {band:10}{', '.join(f'{n} {k}' for k, n in zip(_KINDS, kinds, strict=False) if n)}")
        text.echo(f"  stored:     layout {stored.version}, {stored.size} bytes")
        at = "none: it counts as a moving body"
        if (place := stored.place) is not None:
            at = f"ra {place.ra:.6f}, dec {place.dec:.6f}, MJD {place.mjd:.5f}"
            if place.pmra or place.pmdec:
                at += f", proper motion {place.pmra:g}, {place.pmdec:g} mas a year"
        text.echo(f"  place:      {at}")
    if (search := stored.kept_search) is not None and search.candidates:
        (frequency, r_squared), *_ = search.candidates
        text.echo(
            f"  period:     {1 / frequency:.8g} d (R^2 {r_squared:.3f}), searched in {search.points} points, "
            f"MJD {search.first:.5f} to {search.last:.5f}"
        )
    text.echo(f"  by name:    spectrum {'yes' if stored.has_spectrum else 'no'}")
    if stored.set_aside:
        text.echo("  set aside:  an earlier value that could not be read, under :lc:damaged")


def _list_points(stored: ObjectContents) -> None:
    from broker.records import BANDS

    curve = stored.light_curve
    text.echo("  mjd           band       kind       flux/nJy      error         reference")
    columns = (curve.mjd, curve.band, curve.kind, curve.flux, curve.flux_error, curve.reference_flux)
    for mjd, band, kind, flux, error, reference in zip(*(column.tolist() for column in columns), strict=True):
        name = BANDS[band] if band < len(BANDS) else str(band)
        what = _KINDS[kind] if kind < len(_KINDS) else str(kind)
        text.echo(f"  {mjd:<14.6f}{name:<11}{what:<11}{flux:<14.6g}{error:<14.6g}{reference:.6g}")
