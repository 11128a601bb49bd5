"""Folders of servers that tests, demonstrations and benchmarks start: what a process that is killed leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from broker.embedded.process import temporary_folder
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
STARTER = """
import sys, time
from pathlib import Path
from broker.embedded.process import ServerProcess, temporary_folder

class Sleeping(ServerProcess):
    def __init__(self):
        self.folder = temporary_folder(self, "trifid-sleeping-")
        super().__init__(self.folder / "log", start_timeout=120, stop_timeout=120)

    def _command(self):
        return ["sleep", "3600"], {}

    def _answers(self):
        return True

server = Sleeping()
if sys.argv[1] == "server":
    server.start()
print(server.folder, server.pid or 0, flush=True)
time.sleep(3600)
"""


class _Owner:
    pass


@pytest.mark.parametrize("what", ["server", "nothing"])
def test_what_a_killed_process_left_is_removed_once_its_server_has_ended(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, what],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as starter:
        try:
            assert starter.stdout is not None
            name, pid = starter.stdout.readline().split()
            folder, server = Path(name), int(pid)
            assert folder.parent == tmp_path
            own = temporary_folder(_Owner(), "trifid-sleeping-")
            assert not own.exists()  # its owner is gone
            assert folder.exists()
        finally:
            starter.kill()
    owner = _Owner()
    own = temporary_folder(owner, "trifid-sleeping-")
    if server:
        assert folder.exists()  # of a server that runs
        os.kill(server, signal.SIGKILL)

    def swept() -> bool:
        temporary_folder(_Owner(), "trifid-sleeping-")
        return not folder.exists()

    wait_until(swept)
    assert list(tmp_path.iterdir()) == [own]


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no lock yet, as those of earlier releases, of which nobody can say who uses them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "trifid-sleeping-new").mkdir()
    temporary_folder(_Owner(), "trifid-sleeping-")
    assert [path.name for path in tmp_path.iterdir()] == ["trifid-sleeping-new"]
