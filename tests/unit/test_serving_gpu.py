"""The script that measures Triton on a GPU, on a machine that has none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "dirname", "mkdir")


def test_without_a_gpu_it_ends_with_the_reason_before_it_installs_anything(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:  # and no nvidia-smi
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    output = tmp_path / "output"
    done = subprocess.run(
        [tools / "bash", CHECKOUT / "benchmarks/serving_gpu.sh", output],
        env={**os.environ, "PATH": str(tools), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("no NVIDIA GPU here (nvidia-smi: ")
    assert "nvidia-smi: command not found" in done.stderr
    assert not output.exists()
