"""The demo as a newcomer runs it, without any data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


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
