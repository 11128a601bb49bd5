"""The demo as a newcomer runs it, without any data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from broker.demo import demo_packets
from broker.embedded.ports import free_port


def test_the_demo_runs_without_data_and_its_alerts_reconcile(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker.cli", "demo", "--objects", "15", "--alerts-per-object", "30"]
    environment = {**os.environ, "TRIFID_SHARED": str(tmp_path / "absent")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"alerts in (\d+) = classified (\d+) \+ not classified (\d+) \+ dead-lettered 0", done.stdout)
    assert found is not None, done.stdout[-2000:]
    alerts, classified, not_classified = map(int, found.groups())
    assert alerts == classified + not_classified
    assert classified > 100
    assert f"{alerts} annotations in" in done.stdout


def test_the_demo_serves_a_page_of_what_it_read(tmp_path: Path) -> None:
    port = free_port()
    # What is started in the background by a shell ignores SIGINT, and so do its children.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from broker.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "demo", "--objects", "6", "--alerts-per-object", "12"]
    demo = subprocess.Popen(
        [*command, "--web", "--web-port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TRIFID_SHARED": str(tmp_path / "absent")},
    )  # fmt: skip
    try:
        found: list[dict[str, object]] = []
        end = time.monotonic() + 180
        while not found and time.monotonic() < end and demo.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/objects", timeout=10) as answer:
                    found = json.load(answer)["objects"]
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.2)
        assert len(found) == 6
        page = f"http://127.0.0.1:{port}/object/ztf/{found[0]['objectId']}"
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert f"<h1>{found[0]['objectId']}" in answer.read().decode()
    finally:
        demo.send_signal(signal.SIGINT)
        out, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, errors[-2000:]
    assert f"look at http://127.0.0.1:{port}/" in errors
    assert "dead-lettered 0" in out


def test_ctrl_c_ends_a_demo_that_goes_on_while_alerts_are_on_their_way(tmp_path: Path) -> None:
    keep = tmp_path / "demo.toml"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from broker.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "demo", "--objects", "400", "--alerts-per-object", "60"]
    demo = subprocess.Popen(
        [*command, "--keep", str(keep)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TRIFID_SHARED": str(tmp_path / "absent")},
    )  # fmt: skip
    try:
        listen = [sys.executable, "-m", "broker.cli", "subscribe", "trifid.ztf.all", "--config", str(keep)]
        end = time.monotonic() + 120
        while not keep.exists() and time.monotonic() < end and demo.poll() is None:
            time.sleep(0.1)
        subprocess.run([*listen, "--from-beginning", "--limit", "1"], capture_output=True, timeout=300, check=True)
    finally:
        demo.send_signal(signal.SIGINT)
        out, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, errors[-2000:]
    assert "Aborted" not in errors
    found = re.search(r"alerts in (\d+) = .* \+ dead-lettered 0: reconciled", out)
    assert found is not None, out[-2000:]
    assert 0 < int(found[1]) < 24_000
    assert not keep.exists()


@pytest.mark.parametrize("web", [False, True])
def test_a_night_beside_a_demo_that_goes_on(tmp_path: Path, web: bool) -> None:
    """As the demo itself says: from its index where it has one, else from Kafka."""
    keep, errors_of_demo = tmp_path / "demo.toml", tmp_path / "errors.txt"
    all_of_it = f"{len(list(demo_packets(None, 6, 10, 0)))} annotations = "
    command = [sys.executable, "-m", "broker.cli", "demo", "--objects", "6", "--alerts-per-object", "10"]
    command += ["--keep", str(keep), *(["--web", "--web-port", str(free_port())] if web else [])]
    environment = {**os.environ, "TRIFID_SHARED": str(tmp_path / "absent")}
    with errors_of_demo.open("w") as errors:
        demo = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
    try:
        end = time.monotonic() + 240
        found = ""
        while all_of_it not in found and time.monotonic() < end and demo.poll() is None:
            if keep.exists():
                night = [sys.executable, "-m", "broker.cli", "night", *([] if web else ["--from-kafka"])]
                done = subprocess.run(
                    [*night, "--output", str(tmp_path / "night.html")], capture_output=True, text=True, timeout=300,
                    env={**environment, "TRIFID_CONFIG": str(keep)}, check=False,
                )  # fmt: skip
                found = done.stdout + done.stderr
            time.sleep(0.5)
        told = errors_of_demo.read_text()
        assert all_of_it in found, found[-2000:] + told[-2000:]
        assert f"export TRIFID_CONFIG={keep}" in told
        assert ("  trifid night  " if web else "  trifid night --from-kafka  ") in told
        assert ("[web]" in keep.read_text()) == web
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(300)
    assert demo.returncode == 0, errors_of_demo.read_text()[-2000:]
