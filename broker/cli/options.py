"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from broker.records import TimeSystem

_Command = TypeVar("_Command", bound=Callable[..., Any])
Decorator = Callable[[_Command], _Command]


def ra(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of a right ascension: degrees from a number or, in hours, from a sexagesimal text."""
    return _angle(value, 0.0, 360.0, "17:57:48.5 or 17h57m48.5s", hours=True)


def dec(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of a declination: degrees from a number or a sexagesimal text."""
    return _angle(value, -90.0, 90.0, "+04:41:36 or 4d41m36s", hours=False)


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Callback of a time: an MJD, or ISO 8601; UTC where it names no zone."""
    from broker.times import datetime_of, moment_of

    if value is None:
        return None
    try:
        return datetime_of(moment_of(value))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is neither an MJD nor such as 2026-11-28T03:00") from None


def _time_system(context: click.Context, parameter: click.Parameter, value: str | None) -> TimeSystem | None:
    from broker.records import TimeSystem

    return None if value is None else TimeSystem[value.upper()]


def _angle(value: str | None, low: float, high: float, form: str, *, hours: bool) -> float | None:
    from broker.sky import angle

    if value is None:
        return None
    degrees = angle(value, hours=hours)
    if degrees is None or not low <= degrees <= high:
        raise click.BadParameter(f"{value!r}: degrees of {low:g} to {high:g}, or such as {form}")
    return degrees


config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (TOML); the file that TRIFID_CONFIG names by default. Variables such as "
    "TRIFID_KAFKA__BOOTSTRAP_SERVERS win over it.",
)
json_lines = click.option("--json", "as_json", is_flag=True, help="One JSON record a line, for programs.")


class _Text(click.ParamType[str]):
    """A text that is not empty."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail("is empty", param, ctx)
        return value


class Number(click.FloatRange):
    """A finite number, between bounds where they are given: ``float`` takes nan, which passes any bounds, and inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of a text; a default is left as it is."""
        number = float(super().convert(value, param, ctx))
        if isinstance(value, str) and not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


def files(flag: str, name: str, about: str, *, metavar: str = "FILE", required: bool = False) -> Decorator[Any]:
    """An option that names a file, or several when it is given again."""
    return click.option(
        flag,
        name,
        type=click.Path(path_type=Path),
        multiple=True,
        required=required,
        metavar=metavar,
        help=f"{about} May be given several times.",
    )


def match_radius(default: float) -> Decorator[Any]:
    """Within which a star of a table and one of its light curves, spectra or values are the same."""
    return click.option("--radius", type=Number(min=0.1, max=60), default=default, show_default=True, help="Arcsec.")


def times(about: str) -> Decorator[Any]:
    """What the times of light curves are, as ``TimeSystem``; None where the name of their column tells."""
    kinds = click.Choice(["utc", "heliocentric", "barycentric"])
    return click.option("--times", "time_system", type=kinds, callback=_time_system, help=about)


def refuse_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError where results would replace what is read, or could not be written in the end."""
    if output.is_dir():
        raise click.UsageError(f"--output {output}: a folder, give the name of a file")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise click.UsageError(f"--output {output}: is read as well, and would be replaced")


table_columns: Final = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Which column of TABLE is what, where its name does not tell: ra, dec, name, type, period.",
)
TEXT: Final = _Text()
POSITIVE: Final = Number(min=0, min_open=True)
SHARE: Final = Number(min=0, max=1)

bootstrap_servers = click.option(
    "--bootstrap-servers", type=TEXT, help="Kafka's address, host:port; that of the settings by default."
)
