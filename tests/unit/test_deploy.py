"""What is deployed knows only metrics and settings that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

import broker.metrics
from broker.config import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
EXPRESSIONS = [
    rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
] + [
    target["expr"]
    for panel in json.loads((ROOT / "deploy/grafana/trifid.json").read_text())["panels"]
    for target in panel["targets"]
]


def test_rules_and_dashboard_use_existing_metrics_and_labels() -> None:
    assert broker.metrics
    known: dict[str, set[str]] = {}
    for metric in REGISTRY.collect():
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            known[metric.name + suffix] = set()
    used = {name for expression in EXPRESSIONS for name in re.findall(r"trifid_\w+", expression)}
    assert len(used) >= 9
    assert used <= set(known)


@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
)
def test_promtool_accepts_the_configuration_and_the_alarms(arguments: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH: it is in Debian's package prometheus, and in Prometheus's own archives")
    done = subprocess.run(
        [promtool, *arguments.split()], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


def test_compose_sets_only_existing_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {"kafka", "redis", "triton", "trifid", "prometheus", "grafana"} <= set(services)
    for name, value in services["trifid"]["environment"].items():
        section, key = name.removeprefix("TRIFID_").lower().split("__")
        assert key in type(getattr(Settings(), section)).model_fields
        monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert settings.inference.engine == "triton"
    assert settings.kafka.input_topics == ("alerts.ztf", "alerts.lsst")


def test_compose_mounts_files_that_exist() -> None:
    for service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                assert (ROOT / volume.split(":")[0]).exists()
