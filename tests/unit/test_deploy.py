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

ROOT = Path(__file__).resolve().parents[2]
EXPRESSIONS = [
    rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
] + [
    target["expr"]
    for dashboard in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    for panel in json.loads(dashboard.read_text())["panels"]
    for target in panel.get("targets", [])
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
