"""What a worker imports at its start, most of the time until it is ready: nothing that its settings do not ask for."""

from __future__ import annotations

import subprocess
import sys

NOT_AT_THE_START = {
    "httpx": "the client of a schema registry",
    "authlib": "the client of a schema registry",
    "astropy": "units of spectra",
    "lsst.resources": "LSST's own schemas, of messages without one",
    "grpc": "Triton, or its absence",
    "onnxruntime": "the model in this process, or its absence",
    "torch": "training",
    "pandas": "tables",
    "broker.tracing": "tracing.endpoint",
    "opentelemetry.sdk.trace": "tracing.endpoint",
    "opentelemetry.exporter": "tracing.endpoint",
}


def test_a_worker_imports_what_its_settings_ask_for_only_then() -> None:
    code = "import sys, broker.cli, broker.streaming.supervisor; print('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "broker.pipeline" in found
    assert {name for name in NOT_AT_THE_START if name in found} == set()
