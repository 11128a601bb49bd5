from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.config import KafkaSettings, Settings
from broker.errors import ConfigurationError
from broker.streaming.worker_ids import own_worker_id

HOLD = """
import sys
from pathlib import Path
from broker.config import KafkaSettings, Settings
from broker.streaming.worker_ids import own_worker_id
with own_worker_id(Settings(kafka=KafkaSettings(worker_id_folder=Path(sys.argv[1])))) as settings:
    print(settings.kafka.worker_id, flush=True)
    sys.stdin.read()
"""


def settings(folder: Path) -> Settings:
    return Settings(kafka=KafkaSettings(worker_id_folder=folder))


def test_each_takes_the_lowest_free_id_and_a_killed_process_frees_its_own(tmp_path: Path) -> None:
    with own_worker_id(settings(tmp_path)) as first:
        assert first.kafka.worker_id == "worker-1"
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "worker-2\n"
            with own_worker_id(settings(tmp_path)) as third:
                assert third.kafka.worker_id == "worker-3"
            other.send_signal(signal.SIGKILL)
            other.wait()
            with own_worker_id(settings(tmp_path)) as again:
                assert again.kafka.worker_id == "worker-2"
    with own_worker_id(settings(tmp_path)) as last:
        assert last.kafka.worker_id == "worker-1"


def test_without_a_folder_the_settings_are_as_they_were() -> None:
    given = Settings(kafka=KafkaSettings(worker_id="east"))
    with own_worker_id(given) as same:
        assert same is given


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"worker_id_folder.*No such file"),
        own_worker_id(settings(tmp_path / "x")),
    ):
        pass
    with pytest.raises(ValueError, match="worker_id or worker_id_folder, not both"):
        KafkaSettings(worker_id="east", worker_id_folder=tmp_path)


def test_an_id_from_the_environment_and_a_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ.get("TRIFID_KAFKA__WORKER_ID") is None
    monkeypatch.setenv("TRIFID_KAFKA__WORKER_ID", "east")
    monkeypatch.setenv("TRIFID_KAFKA__WORKER_ID_FOLDER", "/ids")
    with pytest.raises(ValueError, match="not both"):
        Settings()
