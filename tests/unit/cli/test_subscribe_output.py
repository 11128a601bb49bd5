"""``trifid subscribe --output``, without Kafka."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from broker.cli import main


def test_a_group_does_not_replace_the_file_of_its_first_call(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    path.write_text("earlier")
    arguments = ["subscribe", "trifid.ztf.all", "--output", str(path), "--bootstrap-servers", "127.0.0.1:1"]
    arguments += ["--timeout", "1", "--idle", "1"]
    result = CliRunner().invoke(main, [*arguments, "--group", "mine"])
    assert (result.exit_code, "found.csv is there" in result.stderr) == (2, True), result.output
    assert CliRunner().invoke(main, arguments).exit_code == 1  # without a group nothing counts as read: Kafka is asked
    assert path.read_text() == "earlier"
