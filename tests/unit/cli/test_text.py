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
from click.testing import CliRunner

import broker.cli
from broker.cli import logs, main, text
from broker.cli.deadletter import _line
from broker.errors import InputFileError
from broker.records import Annotation, Neighbour
from broker.streaming.deadletters import Letter

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
