"""``trifid spectra``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.records import ObservedSpectrum
    from broker.spectra.files import Overrides

_STORED_AT_ONCE: Final = 100
_SHOWN_REASONS: Final = 100


def _describing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what a file does not say of its spectra."""
    for option in reversed(
        (
            click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH..."),
            click.option("--survey", help="Survey of the object they are of, ztf or lsst; with --object-id."),
            click.option("--object-id", help="The object's name there; where not given the position tells."),
            click.option("--ra", callback=options.ra, help="Right ascension, ICRS, degrees or 17:57:48.5; with --dec."),
            click.option("--dec", callback=options.dec, help="Declination, ICRS, degrees or +04:41:36."),
            click.option("--redshift", type=options.Number(), help="Radial velocity / c; that of the file by default."),
            click.option("--air/--vacuum", default=None, help="In what the wavelengths are; vacuum by default."),
            click.option("--wavelength-unit", help="Such as nm; that of the file, else Angstrom, by default."),
            click.option("--flux-unit", help="Such as Jy; that of the file, else any per wavelength, by default."),
            click.option("--observed-frame", is_flag=True, help="Leave the radial velocity in."),
        )
    ):
        command = option(command)
    return command


@click.group()
def spectra() -> None:
    """Spectra from files: LAMOST and SDSS FITS, and tables in many formats.

    What an option says wins over what the file says.
    """


@spectra.command()
@_describing
@options.config
def load(paths: tuple[Path, ...], config: Path | None, **described: Any) -> None:
    """Put spectra into the store, for the objects that they are of.

    PATH is a file or a folder. Each object's next alert is classified with its spectrum. The exit code is 1 where
    a file could not be read, 2 where none could.
    """
    from contextlib import closing

    from broker.build import build_store
    from broker.config import load_settings

    overrides, rest_frame = _overrides(described)
    waiting: list[ObservedSpectrum] = []
    with closing(build_store(load_settings(config))) as store:

        def put(spectrum: ObservedSpectrum) -> None:
            waiting.append(spectrum)
            if len(waiting) >= _STORED_AT_ONCE:
                store.put_observed(waiting)
                waiting.clear()

        done, failures = _each(paths, overrides, rest_frame, put)
        if waiting:
            store.put_observed(waiting)
    _finish(f"{done} spectra stored", done, failures)


@spectra.command()
@_describing
@click.option("--topic", default="spectra", show_default=True, help="Topic to write to; created where missing.")
@options.bootstrap_servers
@options.config
def send(
    paths: tuple[Path, ...], topic: str, bootstrap_servers: str | None, config: Path | None, **described: Any
) -> None:
    """Send spectra to Kafka, where the broker takes them up as they come.

    The objects that they are of are classified again at once. One that --object-id or the file names has to be within
    800 arcsec of the spectrum's position for that; one farther away is classified with it upon its next alert, and a
    worker's log says so.

    PATH is a file or a folder. Exit codes are those of `trifid spectra load`.
    """
    from broker.config import load_settings
    from broker.spectra.message import write
    from broker.streaming.replay import Replay

    overrides, rest_frame = _overrides(described)
    kafka = load_settings(config).kafka
    if bootstrap_servers:
        kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
    with Replay(kafka, topic) as sender:
        done, failures = _each(paths, overrides, rest_frame, lambda spectrum: sender.send(write(spectrum)))
    _finish(f"{done} spectra sent to {topic}", done, failures)


@spectra.command()
@_describing
@options.json_lines
def show(paths: tuple[Path, ...], as_json: bool, **described: Any) -> None:
    """Print what is understood of files, and store nothing.

    One line a spectrum; exit codes are those of `trifid spectra load`.
    """
    import json

    from broker.errors import InputFileError
    from broker.spectra.files import read_raw
    from broker.spectra.normalise import UnusableSpectrumError, summary, to_observed

    overrides, rest_frame = _overrides(described)
    done = 0
    failures: list[str] = []
    if not as_json:
        text.echo(
            f"{'id':<32} {'ra':>10} {'dec':>10} {'mjd':>9}  {'Angstrom':<12} {'pixels':>6} {'good':>6} {'S/N':>6}"
            "  read as; frame"
        )
    for path in _files(paths, failures):
        try:
            for raw in read_raw(path, overrides):
                try:
                    spectrum = to_observed(raw, rest_frame=rest_frame, placed=False)
                except UnusableSpectrumError as error:
                    failures.append(f"{path}: {raw.spectrum_id[:80]}: {error}")
                    continue
                done += 1
                line = summary(raw, spectrum, rest_frame=rest_frame)
                if as_json:
                    click.echo(json.dumps({"file": str(path), **line}))
                else:
                    text.echo(_line(line))
        except InputFileError as error:
            failures.append(str(error))
    _finish(f"{done} spectra understood", done, failures)


def _line(line: dict[str, Any]) -> str:
    """What was understood of a spectrum, for people."""
    ra, dec = ("unknown" if line[name] is None else f"{line[name]:.5f}" for name in ("ra", "dec"))
    mjd = "" if line["mjd"] is None else f"{line['mjd']:.2f}"
    span = f"{line['wavelength_min']:.0f}-{line['wavelength_max']:.0f}"
    return (
        f"{line['spectrum_id']:<32} {ra:>10} {dec:>10} {mjd:>9}  {span:<12} "
        f"{line['pixels']:>6} {line['good_pixels']:>6} {line['signal_to_noise']:>6.1f}  "
        f"{line['format']}, {line['medium']}; {line['frame']}"
    )


def _overrides(described: dict[str, Any]) -> tuple[Overrides, bool]:
    from broker.spectra.files import Overrides

    for one, other in (("survey", "object_id"), ("ra", "dec")):
        if (described[one] is None) != (described[other] is None):
            raise click.UsageError(f"--{one} and --{other.replace('_', '-')}: give both or neither")
    rest_frame = not described.pop("observed_frame")
    return Overrides(**described), rest_frame


def _files(paths: tuple[Path, ...], failures: list[str]) -> Iterator[Path]:
    """All files, those of folders in the order of their names; what does not exist or is no file is a failure."""
    from broker.errors import InputFileError
    from broker.files import require_file

    for path in paths:
        try:
            if path.is_dir():
                yield from sorted(p for p in path.rglob("*") if p.is_file())
                continue
            require_file(path)
        except InputFileError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
        else:
            yield path


def _each(
    paths: tuple[Path, ...], overrides: Overrides, rest_frame: bool, put: Callable[[ObservedSpectrum], None]
) -> tuple[int, list[str]]:
    """Give every usable spectrum to ``put``; how many there were, and why the others are not."""
    from rich.console import Console
    from rich.progress import track

    from broker.errors import InputFileError
    from broker.spectra.files import read_spectra

    done = 0
    failures: list[str] = []
    files = list(_files(paths, failures))
    for path in track(files, "files", console=Console(stderr=True)):
        try:
            for spectrum in read_spectra(path, overrides, rest_frame=rest_frame):
                put(spectrum)
                done += 1
        except InputFileError as error:
            failures.append(str(error))
    return done, failures


def _finish(line: str, done: int, failures: list[str]) -> None:
    """The counts, and the exit code."""
    for failure in failures[:_SHOWN_REASONS]:
        text.echo(failure, err=True)
    if len(failures) > _SHOWN_REASONS:
        text.echo(f"... and {len(failures) - _SHOWN_REASONS} more", err=True)
    text.echo(f"{line}, {len(failures)} failed" if failures else line, err=True)
    if failures:
        raise SystemExit(1 if done else 2)
