"""The command ``trifid``; one module a command."""

from __future__ import annotations

from typing import Any

import click

from broker import __version__
from broker.cli.catalog import catalog
from broker.cli.classify import classify
from broker.cli.deadletter import deadletter
from broker.cli.demo import demo
from broker.cli.reference import reference
from broker.cli.replay import replay
from broker.cli.run import run
from broker.cli.spectra import spectra
from broker.cli.state import state
from broker.cli.subscribe import subscribe
from broker.errors import ConfigurationError, InputFileError, TrifidError


class _Failure(click.ClickException):
    """An error raised on purpose, as one line on stderr."""


class _UsageFailure(_Failure):
    """One that the caller has to mend: settings or files."""

    exit_code = 2


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrifidError as error:
            kind = _UsageFailure if isinstance(error, ConfigurationError | InputFileError) else _Failure
            raise kind(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trifid", package_name="trifid")
def main() -> None:
    """Classify variable stars in the alert streams of sky surveys.

    Trifid reads alerts of ZTF and LSST, remembers each object's light curve, spectrum and catalogue values,
    and says which of ten classes of variable star it may be, with calibrated probabilities, how unusual it
    is, and which known stars resemble it most.

    Try `trifid demo` first: it needs no data and no servers.
    """


for _command in (catalog, classify, deadletter, demo, reference, replay, run, spectra, state, subscribe):
    main.add_command(_command)
