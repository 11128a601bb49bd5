from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import pytest
from click.testing import CliRunner

from broker.batch import BatchResult, DeadLetter, IncomingMessage, Origin
from broker.cli import logs, main
from broker.config import Settings
from broker.config.settings import _secrets
from broker.embedded.ports import free_port
from broker.log_fields import log_fields
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming.handling import about, handle
from broker.streaming.work_thread import WorkThread


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.CaptureFixture[str]]:
    """Logging as a command sets it up, and as it was before in the end."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.addHandler(logs._HANDLER)
    yield capsys
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.hide(())
    logging.getLogger("broker.streaming").setLevel(logging.NOTSET)


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_object_a_line_with_its_fields(logged: pytest.CaptureFixture[str]) -> None:
    logs.log_to_stderr("INFO", form="json")
    where = {"topic": "alerts.ztf", "partition": 3, "offset": 17, "alert_id": 2**60}
    logging.getLogger("broker.somewhere").warning("of %s\n\x1b[2J", "Ü", extra=where)
    try:
        raise ValueError("too far\nnorth")
    except ValueError:
        logging.getLogger("broker").exception("failed")
    first, second = entries(logged.readouterr().err)
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {"level": "WARNING", "logger": "broker.somewhere", "message": "of Ü\n\x1b[2J", **where}
    assert second["traceback"].startswith("Traceback")
    assert second["traceback"].endswith("ValueError: too far\nnorth")


def test_modules_have_levels_of_their_own(logged: pytest.CaptureFixture[str]) -> None:
    logs.log_to_stderr("WARNING", "%(name)s %(message)s", modules={"broker.streaming": "DEBUG"})
    for name in ("broker.streaming.service", "broker.state"):
        logging.getLogger(name).debug("said")
    assert logged.readouterr().err == "broker.streaming.service said\n"


def test_levels_are_given_one_by_one_or_in_a_variable() -> None:
    context, option = click.Context(main), click.Option(["--log-level"])
    given = logs.levels(context, option, ("debug", "broker.streaming=error", "WARNING"))
    assert given == {"": "WARNING", "broker.streaming": "ERROR"}
    result = CliRunner().invoke(main, ["run"], env={"TRIFID_LOG_LEVEL": "INFO broker.state=LOUD"})
    assert result.exit_code == 2
    assert "'LOUD' is none of DEBUG, INFO, WARNING, ERROR" in result.output


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_that_somebody_logs_is_hidden(logged: pytest.CaptureFixture[str], form: Any) -> None:
    logs.log_to_stderr("INFO", form=form)
    secret = 'hush"7f\\3a\x1b'
    logs.hide([secret, "hush", "a"])
    try:
        raise ValueError(f"refused: {secret}")
    except ValueError:
        logging.getLogger("broker").exception("login %s", secret, extra={"url": f"redis://:{secret}@h"})
    printed = logged.readouterr().err
    assert "7f" not in printed
    assert "login ***" in printed


KEYS: Final = ("aHVzaC1hLWtleS1vZi0zMi1ieXRlcy1pbi10b3RhbC4=", "aHVzaC1hLXNlY29uZC1rZXktb2YtMzItYnl0ZXMtaGU=")
"""Of ``web.secret_key``, 32 bytes each."""


def secret_variables() -> list[str]:
    """All but that of the keys, which cannot have any text."""
    names = [f"TRIFID_{section}__{key}".upper() for section, key in _secrets(Settings)]
    names.remove("TRIFID_WEB__SECRET_KEY")
    return names


MAIL: Final = {
    "TRIFID_NOTIFY__SMTP_HOST": "127.0.0.1",
    "TRIFID_NOTIFY__SMTP_USER": "trifid",
    "TRIFID_NOTIFY__MAIL_FROM": "trifid@example.org",
}
"""What a password of the mail server needs beside it."""


def test_every_secret_is_known_to_what_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = secret_variables()
    assert len(variables) >= 6
    for number, name in enumerate(variables):  # some have to be URLs, and any may be one
        monkeypatch.setenv(name, f"redis://trifid:hush%2F{number}@h:6379/0")
    for name, value in {"TRIFID_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", **MAIL}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRIFID_WEB__SECRET_KEY", " ".join(KEYS))
    known = set(Settings().secrets())
    assert {*KEYS, " ".join(KEYS)} <= known
    for number, name in enumerate(variables):
        assert {f"hush%2F{number}", f"hush/{number}"} <= known, name
        assert f"redis://trifid:hush%2F{number}@h:6379/0" in known or name == "TRIFID_REDIS__URL"


def test_a_worker_logs_no_secret_of_any_setting_while_nothing_lets_it_in(tmp_path: Path) -> None:
    """Every secret set, every server unavailable, everything logged: as JSON lines."""
    secrets = {name: f"redis://trifid:hush-{number}@127.0.0.1:1/0" for number, name in enumerate(secret_variables())}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TRIFID_")},
        **secrets,
        "TRIFID_WEB__SECRET_KEY": " ".join(KEYS),
        **MAIL,
        "TRIFID_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "TRIFID_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "TRIFID_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "TRIFID_KAFKA__SASL_USERNAME": "trifid",
        "TRIFID_KAFKA__WORKER_ID": "east",
        "TRIFID_METRICS__PORT": "0",
        "TRIFID_LOG_FORMAT": "json",
        "TRIFID_LOG_LEVEL": "DEBUG numba=WARNING",
    }
    command = [sys.executable, "-m", "broker.cli", "run"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stderr is not None
        lines = []
        for line in worker.stderr:
            lines.append(line)
            if '"waiting ' in line:
                break
        worker.terminate()
        rest, errors = worker.communicate(timeout=300)
    said = "".join(lines) + rest + errors
    assert not any(secret in said for secret in ("hush", *KEYS))
    start = next(entry for entry in entries("".join(lines)) if "version" in entry)
    assert start["input_topics"] == ["alerts.ztf", "alerts.lsst", "spectra"]
    assert (start["worker_id"], start["group_id"], start["engine"]) == ("east", "trifid", "onnx")
    assert entries(errors or "{}")


def test_dead_letters_are_logged_by_reason_with_where_the_first_came_from(caplog: pytest.LogCaptureFixture) -> None:
    def message(offset: int) -> IncomingMessage:
        return IncomingMessage(b"x", 60000.0, Origin("alerts.ztf", 2, offset, 0))

    letters = [DeadLetter(message(5 + n), "ztf", "no flux", alert_id=700 + n) for n in range(3)]
    letters += [DeadLetter(message(20 + n), "unknown", f"reason {n}") for n in range(9)]
    publisher = Publisher(OutputTopics("trifid", 0.99, ("ztf",)), "Trifid", 1000)
    with caplog.at_level(logging.WARNING, "broker"):
        handle(lambda some: BatchResult(len(some), dead_letters=letters), publisher, [message(4)])
    first, *others = caplog.records
    assert first.getMessage() == "3 dead letters, the first from alerts.ztf[2] offset 5: no flux"
    fields = ("topic", "partition", "offset", "alert_id", "survey", "dead_letters")
    assert [vars(first)[name] for name in fields] == ["alerts.ztf", 2, 5, 700, "ztf", 3]
    assert len(others) == 4  # the five most frequent reasons


FAULTS: Final = """
import sys, threading, warnings
import click
from broker.cli import logs, main

class Held:
    def __del__(self):
        raise ValueError("in a finalizer")

def fails():
    raise ValueError("in a thread")

@main.command("fails")
@logs.options
def command(log_levels, log_format):
    logs.log_service(log_levels, log_format)
    warnings.warn("of a library", stacklevel=1)
    thread = threading.Thread(target=fails, name="one")
    thread.start()
    thread.join()
    Held()
    logs.say("for whoever started it", err=False, group_id="g")
    raise ValueError("of the command")

main(["fails", *sys.argv[1:]])
"""


def test_whatever_python_would_print_is_a_record() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, "--log-format", "json"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (1, "")
    warned, thread, finalizer, told, fault = entries(done.stderr)
    assert (warned["logger"], "of a library" in warned["message"]) == ("py.warnings", True)
    assert (thread["message"], thread["level"]) == ("thread one ended", "CRITICAL")
    assert thread["traceback"].endswith("ValueError: in a thread")
    assert finalizer["traceback"].endswith("ValueError: in a finalizer")
    assert (told["message"], told["group_id"]) == ("for whoever started it", "g")
    assert fault["traceback"].endswith("ValueError: of the command")
    text = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=300)
    assert (text.returncode, text.stdout) == (1, "for whoever started it\n")


def test_what_is_logged_while_a_batch_is_in_hand_says_which(logged: pytest.CaptureFixture[str]) -> None:
    logs.log_to_stderr("INFO", form="json")
    messages = [IncomingMessage(b"", 61000.0, Origin("alerts.ztf", 2, offset, 0)) for offset in (17, 18)]
    log = logging.getLogger("broker.state")
    work = WorkThread()
    with log_fields(about(messages)):
        work.submit(lambda: log.warning("set aside")).result(10)
        log.warning("a dead letter", extra={"topic": "alerts.ztf", "partition": 2, "offset": 18})
    work.end(10)
    log.warning("later")
    batch, letter, later = entries(logged.readouterr().err)
    where = {"topic": "alerts.ztf", "partition": 2, "offset": 17, "messages": 2}
    assert where.items() <= batch.items()
    assert (letter["offset"], "messages" in letter) == (18, False)
    assert not where.keys() & later.keys()
