"""What comes from outside does not reach the terminal as control characters."""

from __future__ import annotations

import ast
import io
import json
import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import click
import pytest
import redis
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException

import broker.cli
from broker.cli import logs, main, text
from broker.cli.deadletter import _line
from broker.errors import InputFileError
from broker.records import Annotation, Neighbour
from broker.streaming.deadletter_replay import Letter
from broker.surveys.simulator import simulate_alerts

ESCAPE = "\x1b[31m\x07\x9b2J\u202e\r"
ANNOTATION = Annotation(
    survey=f"z{ESCAPE}", alert_id=1, source_id=1, object_id=f"ZTF{ESCAPE}", ra=1.0, dec=2.0, mjd=60000.0,
    class_names=(f"M{ESCAPE}", "SR"), probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20,
    period=3.0, prediction_set=("SR", f"M{ESCAPE}\n"), neighbours=(Neighbour(f"a{ESCAPE}", f"b{ESCAPE}\n", 0.1),),
)  # fmt: skip


def harmless(printed: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in printed)


def test_annotations() -> None:
    for annotation in (ANNOTATION, replace(ANNOTATION, reason=f"too {ESCAPE}\nfew")):
        assert text.line(annotation).isprintable()
    assert r"ZTF\x1b[31m\x07\x9b2J\u202e\r" in text.line(ANNOTATION)
    plain = replace(ANNOTATION, survey="ztf", object_id="étoile ☆")
    assert "étoile ☆" in text.line(plain)


def test_dead_letters() -> None:
    headers = {
        "reason": f"why\n{ESCAPE}", "survey": ESCAPE, "source-topic": f"t{ESCAPE}", "source-partition": "0",
        "source-offset": "1",
    }  # fmt: skip
    line = _line(Letter("t", 0, 0, 0, b"", headers))
    assert line.isprintable()
    assert r"why\n\x1b[31m" in line


def test_names_of_files_in_errors_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "night.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(f"bad{ESCAPE.replace('/', '')}.avro")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    strange = tmp_path / f"strange{ESCAPE}.csv"
    strange.write_text("a\n1\n")
    for arguments in (
        ["classify", str(archive)],
        ["classify", "--lightcurves", str(strange)],
        ["classify", f"{tmp_path}/no{ESCAPE}"],
        ["spectra", "show", str(strange), "--ra", "1", "--dec", "2"],
        ["run", "--config", str(strange)],
        [f"command{ESCAPE}"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code in (1, 2), result.output
        assert harmless(result.output), arguments
        assert r"\x1b[31m" in result.output, arguments
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "member %s", (ESCAPE,), None)
    logs._Stderr().emit(record)
    assert harmless(capsys.readouterr().err)


def test_whatever_a_command_raises_is_one_harmless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise InputFileError(f"file {ESCAPE}: bad")

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    result = CliRunner().invoke(main, ["fail"])
    assert (result.exit_code, result.output) == (2, "Error: file " + r"\x1b[31m\x07\x9b2J\u202e\r" + ": bad\n")


def test_commands_print_by_the_one_function_that_escapes() -> None:
    """``click.echo`` is for JSON only, which escapes by itself."""
    found = []
    for path in sorted(Path(broker.cli.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name in ("text.py", "logs.py") or not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            if function == "click.echo":
                made = ast.unparse(node.args[0].func) if isinstance(node.args[0], ast.Call) else "?"
                if made not in ("json.dumps", "to_json"):
                    found.append(f"{path.name}:{node.lineno}")
            elif function in ("print", "click.secho", "sys.stdout.write", "sys.stderr.write"):
                found.append(f"{path.name}:{node.lineno}: {function}")
    assert not found
    assert json.dumps(ESCAPE).isprintable()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["catalog", "match", "1", "2", "--mjd"],
        ["catalog", "load", "x", ".", "--epoch"],
        ["catalog", "load", "x", ".", "--radius"],
        ["spectra", "show", ".", "--redshift"],
        ["replay", ".", "--topic", "t", "--rate"],
        ["subscribe", "t", "--idle"],
        ["subscribe", "t", "--timeout"],
    ],
)
def test_numbers_that_are_none_are_refused(arguments: list[str], value: str) -> None:
    result = CliRunner().invoke(main, [*arguments, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-1]}'" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["subscribe", "t", "--group"],
        ["subscribe", "t", "--bootstrap-servers"],
        ["replay", ".", "--topic"],
        ["replay", ".", "--topic", "t", "--bootstrap-servers"],
        ["spectra", "send", ".", "--bootstrap-servers"],
        ["deadletter", "replay", "--to-topic"],
        ["deadletter", "show", "--survey"],
    ],
)
def test_empty_texts_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, ""])
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-1]}': is empty" in result.output


def test_no_option_takes_any_float_or_an_empty_address() -> None:
    def commands(group: click.Group) -> list[click.Command]:
        found: list[click.Command] = []
        for command in group.commands.values():
            found += commands(command) if isinstance(command, click.Group) else [command]
        return found

    for command in commands(main):
        for parameter in command.params:
            kind = type(parameter.type).__name__
            assert kind not in ("FloatRange", "FloatParamType"), f"{command.name} {parameter.name}: use options.Number"


def test_a_dependency_that_is_unreachable_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody listens at port 1."""
    monkeypatch.setenv("TRIFID_REDIS__URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TRIFID_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    (tmp_path / "packet.avro").write_bytes(next(iter(simulate_alerts(1, 1, seed=1))).payload)
    for arguments in (
        ["state", "migrate"],
        ["state", "show", "ztf:x"],
        ["reference", "load"],
        ["catalog", "list"],
        ["catalog", "drop", "x"],
        ["catalog", "match", "1", "2"],
        ["deadletter", "show"],
        ["deadletter", "replay"],
        ["replay", str(tmp_path), "--topic", "t"],
        ["subscribe", "trifid.ztf.all", "--timeout", "1"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert isinstance(result.exception, SystemExit), arguments
        last = result.output.splitlines()[-1]
        assert last.startswith("Error: "), arguments
        assert "Kafka" in last or "Redis" in last


def test_errors_of_libraries_are_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {
        "Kafka: ": KafkaException(KafkaError(KafkaError._TRANSPORT)),
        "Redis is unavailable": redis.ConnectionError("no route"),
        "Redis: ": redis.ResponseError("wrong kind of value"),
        "[Errno 13] Permission denied": PermissionError(13, "Permission denied", "/x"),
        "not enough memory": MemoryError(),
    }
    for message, error in errors.items():

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
        result = CliRunner().invoke(main, ["fail"])
        assert result.exit_code == 1, message
        assert result.output.startswith(f"Error: {message}")
