"""What commands log, as lines on stderr: text for people, or a JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import click

from broker.cli import text

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
TEXT_STYLE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
Format = Literal["text", "json"]
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as ``extra``."""
_HIDDEN: Final = "***"


class _Stderr(logging.Handler):
    """Writes to what stderr is at the time, without what a terminal would obey, and without secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: tuple[str, ...] = ()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            for secret in self.secrets:
                line = line.replace(secret, _HIDDEN)
            print(text.lines(line), file=sys.stderr)
        except Exception:  # as logging's own handlers: a failure to log ends nothing
            self.handleError(record)


class JsonLines(logging.Formatter):
    """A record as a JSON object: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, what was given as
    ``extra`` (``topic``, ``partition``, ``offset``, ``alert_id``, ...) and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _OWN and name not in entry}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=True)


_HANDLER = _Stderr()


def log_to_stderr(
    level: int | str = logging.WARNING,
    style: str = "%(message)s",
    form: Format = "text",
    modules: Mapping[str, str] = {},
) -> None:
    """Log from ``level`` on, unless the process that called has handlers of its own.

    ``modules`` have levels of their own, by name: that of ``broker.streaming`` holds for all modules in it.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_HANDLER)
    if _HANDLER in root.handlers:
        _HANDLER.setFormatter(JsonLines() if form == "json" else logging.Formatter(style))
        root.setLevel(level)
        for name, own in modules.items():
            logging.getLogger(name).setLevel(own)


def hide(secrets: Iterable[str]) -> None:
    """Have none of these in what is logged, whoever logs it: the last resort, as nobody should.

    Neither as they are nor as JSON has them. Those that are too short to be found for sure are left: a letter in every
    word would be hidden.
    """
    found = {form for secret in secrets if len(secret) >= 4 for form in (secret, json.dumps(secret)[1:-1])}
    _HANDLER.secrets = tuple(sorted(found, key=len, reverse=True))


def levels(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Callback of an option: levels by module, of ``INFO``, or ``broker.streaming=DEBUG`` for all that is in it.

    The level of all is that of the module "".
    """
    found = {}
    for value in given:
        module, _, level = value.rpartition("=")
        if level.upper() not in LEVELS:
            raise click.BadParameter(f"{level!r} is none of {', '.join(LEVELS)}", context, option)
        found[module.strip()] = level.upper()
    return found


def options(command: _Command) -> _Command:
    """Options ``log_levels`` and ``log_format`` of a service, for ``log_service``."""
    command = click.option(
        "--log-format",
        default="text",
        show_default=True,
        envvar="TRIFID_LOG_FORMAT",
        show_envvar=True,
        type=click.Choice(["text", "json"]),
        help="Lines for people, or a JSON object a line.",
    )(command)
    return click.option(
        "--log-level",
        "log_levels",
        multiple=True,
        envvar="TRIFID_LOG_LEVEL",
        metavar="[MODULE=]LEVEL",
        callback=levels,
        help="DEBUG, INFO (the default), WARNING or ERROR; again as MODULE=LEVEL for a module, as in "
        "broker.streaming=DEBUG. In the environment separated by blanks.",
    )(command)


def log_service(log_levels: dict[str, str], log_format: Format) -> None:
    """Log as a service does, as ``options`` say."""
    log_to_stderr(log_levels.pop("", "INFO"), TEXT_STYLE, log_format, log_levels)
