"""The load of Triton's own Performance Analyzer (``pip install perf-analyzer``), a compiled program.

Its wheel is for glibc 2.38 and newer (Debian 13, Ubuntu 24.04); on older systems pip takes an empty package. There the
program runs by the loader and libraries of a newer system, unpacked into a folder (docs/serving.md).
"""

from __future__ import annotations

import base64
import csv
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError
from broker.inference.encode import Signature, to_models
from broker.inference.triton import GATEWAY

_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Load:
    """What it measured."""

    requests_a_second: float
    p50_ms: float
    p99_ms: float


def why_not(program: str) -> str | None:
    """Why ``program`` does not start here; None where it does."""
    try:
        started = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if started.returncode == 0 else (started.stderr.strip() or "no output").splitlines()[0]


def measure(
    program: str, url: str, inputs: ModelInputs, signatures: dict[str, Signature], in_flight: int, requests: int
) -> Load:
    """Requests to the model ``trifid``, each a batch of ``inputs``, so many ``in_flight``; the latest versions answer.

    Inputs are in the message: it has no shared memory for a model with optional inputs. Each of three windows has at
    least so many ``requests``. Raises ConfigurationError where it fails.
    """
    batch = to_models(inputs, signatures)
    if batch is None:
        raise ConfigurationError("no object has any modality")
    data = {
        name: {"b64": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape)}
        for name, array in batch.tensors().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inputs.json").write_text(json.dumps({"data": [data]}))
        report = Path(folder) / "report.csv"
        arguments = [
            program, "-m", GATEWAY, "-i", "grpc", "-u", url, "--input-data", f"{folder}/inputs.json",
            "--concurrency-range", str(in_flight), "--measurement-mode", "count_windows",
            "--measurement-request-count", str(requests), "--stability-percentage", "50", "--max-trials", "6",
            "--percentile", "99", "-f", str(report),
        ]  # fmt: skip
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if not report.exists():
            raise ConfigurationError(f"{program}: {(done.stdout + done.stderr).strip()[-300:]}")
        (row,) = csv.DictReader(report.open())
    return Load(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p99 latency"]) / 1e3)
