"""What commands log, as lines on stderr: text for people, or a JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import click

from broker.cli import text
from broker.log_fields import current_fields

log = logging.getLogger("broker")

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
    ``extra`` (``topic``, ``partition``, ``offset``, ``alert_id``, ...) and ``traceback``.

    A record that does not name a message itself has the fields of the batch being handled (``broker.log_fields``).
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        given = {name: value for name, value in vars(record).items() if name not in _OWN and name not in entry}
        entry |= given if "offset" in given else {**current_fields(), **given}
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


def structured() -> bool:
    """Whether this process logs JSON objects, beside which nothing else shall be on its standard error or output."""
    return isinstance(_HANDLER.formatter, JsonLines) and _HANDLER in logging.getLogger().handlers


def say(message: object, *, err: bool = True, level: int = logging.INFO, **fields: object) -> None:
    """Tell whoever started a service something, whatever the levels of the log.

    As text it goes to stderr, or to stdout without ``err``; where the log is structured it is a record with ``fields``.
    """
    if not structured():
        text.echo(message, err=err)
        return
    record = {"name": log.name, "levelno": level, "levelname": logging.getLevelName(level), "msg": str(message)}
    _HANDLER.handle(logging.makeLogRecord({**record, **fields}))


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
        is_eager=True,
        callback=_begin,
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


def _begin(context: click.Context, option: click.Parameter, form: Format) -> Format:
    """Callback of the format: what is wrong with values of other options is told in it, too."""
    log_to_stderr(form=form)
    return form


def log_service(log_levels: dict[str, str], log_format: Format) -> None:
    """Log as a service does, as ``options`` say, until the command's context is closed.

    Warnings of libraries, and what ends a thread or happens in a finalizer, which Python would print, are logged too.
    """
    log_to_stderr(log_levels.pop("", "INFO"), TEXT_STYLE, log_format, log_levels)
    click.get_current_context().with_resource(_all_logged())


@contextmanager
def _all_logged() -> Iterator[None]:
    def of_thread(told: threading.ExceptHookArgs) -> None:
        name = "?" if told.thread is None else told.thread.name
        log.critical("thread %s ended", name, exc_info=_exc_info(told.exc_value))

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        log.error("%s: %r", told.err_msg or "exception ignored in", told.object, exc_info=_exc_info(told.exc_value))

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = of_thread, unraisable
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = before


def _exc_info(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)
