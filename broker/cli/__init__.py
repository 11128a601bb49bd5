"""The command ``trifid``; one module a command."""

from __future__ import annotations

import errno
import logging
import sys
from typing import Any

import click

from broker import __version__
from broker.cli import logs, text
from broker.cli.audit import audit
from broker.cli.catalog import catalog
from broker.cli.classify import classify
from broker.cli.deadletter import deadletter
from broker.cli.demo import demo
from broker.cli.discover import discover
from broker.cli.drift import drift
from broker.cli.feedback import feedback
from broker.cli.models import models
from broker.cli.night import night
from broker.cli.notify import notify
from broker.cli.reference import reference
from broker.cli.replay import replay
from broker.cli.run import run
from broker.cli.similar import similar
from broker.cli.spectra import spectra
from broker.cli.state import state
from broker.cli.subscribe import subscribe
from broker.cli.web import web
from broker.errors import ConfigurationError, InputFileError, TrifidError


class _Failure(click.ClickException):
    """An error as one line on stderr."""


class _UsageFailure(_Failure):
    """One that the caller has to fix: settings or files."""

    exit_code = 2


class _Group(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        logs.log_to_stderr()
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            if not logs.structured():
                raise
            logs.say(error.format_message(), level=logging.ERROR, exit_code=error.exit_code)
            raise click.exceptions.Exit(error.exit_code) from error
        except Exception:
            if not logs.structured():
                raise
            logs.say("a fault of Trifid", level=logging.CRITICAL, exc_info=sys.exc_info(), exit_code=1)
            raise click.exceptions.Exit(1) from None

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = text.lines(error.message)  # names of files and values may hold anything
            raise
        except Exception as error:
            told = _failure(error)
            if told is error:
                raise
            raise told from error


def _failure(error: Exception) -> Exception:
    """The error as the user is told it; itself where it is a fault of Trifid, whose traceback tells more."""
    if isinstance(error, TrifidError):
        kind = _UsageFailure if isinstance(error, ConfigurationError | InputFileError) else _Failure
        return kind(text.lines(str(error)))
    if isinstance(error, MemoryError):
        return _Failure("not enough memory")
    if isinstance(error, OSError) and error.errno != errno.EPIPE:  # click deals with a reader that has gone
        return _Failure(text.lines(str(error)))
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").partition(".")[0]) not in ("broker", ""):
        return _UsageFailure(f"{name} is not installed: pip install 'trifid[service]'")
    # What a library raises where no dependency was asked for is not imported for this.
    if (kafka := sys.modules.get("confluent_kafka")) and isinstance(error, kafka.KafkaException):
        return _Failure(text.lines(f"Kafka: {error.args[0]}; see kafka.bootstrap_servers and docs/security.md"))
    if (redis := sys.modules.get("redis")) and isinstance(error, redis.RedisError):
        from broker.redis_errors import redis_errors

        try:
            with redis_errors():
                raise error
        except TrifidError as ours:
            return _failure(ours)
        except redis.RedisError:
            return _Failure(text.lines(f"Redis: {error}; see redis.url"))
    return error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trifid", package_name="trifid")
def main() -> None:
    """Classify variable stars in the alert streams of sky surveys.

    Trifid reads alerts of ZTF and LSST, keeps each object's light curve, spectrum and catalogue values,
    and says which of ten classes of variable star it may be, with calibrated probabilities, how unusual it
    is, and which known stars resemble it most.

    Try `trifid demo` first: it needs no data and no servers.
    """


_COMMANDS = (
    audit, catalog, classify, deadletter, demo, discover, drift, feedback, models, night, notify, reference, replay,
    run, similar, spectra, state, subscribe, web,
)  # fmt: skip
for _command in _COMMANDS:
    main.add_command(_command)
