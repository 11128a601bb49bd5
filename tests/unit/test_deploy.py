"""What is deployed knows only metrics and settings that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

import broker.metrics
from broker.taxonomy import PARENTS

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
}
PANELS = [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]
OF_TRITON = {
    "nv_inference_queue_duration_us", "nv_inference_compute_infer_duration_us", "nv_inference_request_success",
    "nv_inference_count", "nv_inference_request_failure", "nv_inference_pending_request_count",
    "nv_inference_request_summary_us", "nv_gpu_utilization", "nv_gpu_memory_used_bytes",
}  # fmt: skip
"""Triton's own metrics (its docs/user_guide/metrics.md); integration/test_triton_repository.py asks a real server."""
OF_EXPORTERS = {
    "kafka_brokers", "kafka_topic_partition_under_replicated_partition", "kafka_consumergroup_lag",
    "redis_memory_used_bytes", "redis_memory_max_bytes", "redis_commands_processed_total", "redis_aof_enabled",
    "redis_aof_last_write_status", "redis_aof_last_bgrewrite_status",
}  # fmt: skip
"""Of danielqsj/kafka_exporter and oliver006/redis_exporter (kafka_exporter.go, exporter/metrics.go)."""
OF_PROMETHEUS = {"up", "process_resident_memory_bytes"}


def test_rules_and_dashboard_use_existing_metrics_and_labels() -> None:
    known = {
        metric.name + suffix for metric in REGISTRY.collect() for suffix in ("", "_total", "_bucket", "_sum", "_count")
    }
    used = {
        name
        for expression in EXPRESSIONS
        for name in re.findall(r"\b(?:trifid|nv|process|kafka|redis)_\w+", expression)
    }
    assert len(used) >= 30
    assert used <= known | OF_TRITON | OF_EXPORTERS | OF_PROMETHEUS


def test_expressions_group_by_labels_that_their_metrics_have() -> None:
    """By a label that is spelt wrong all becomes one group, without a word."""
    of_metric = {m._name: set(m._labelnames) for m in vars(broker.metrics).values() if isinstance(m, MetricWrapperBase)}
    wrong = []
    for expression in EXPRESSIONS:
        names = [re.sub("_(total|bucket|sum|count)$", "", n) for n in re.findall(r"\btrifid_\w+", expression)]
        if not names or re.search(r"\b(nv|kafka|redis)_", expression):
            continue
        there = {"le", "job", "instance"}.union(*(of_metric[name] for name in names))
        for text in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression):
            wrong += [(label, expression) for label in re.split(r"[,\s]+", text.strip()) if label not in {*there, ""}]
    assert not wrong


def test_every_bucket_that_is_asked_for_exists() -> None:
    buckets: dict[str, set[float]] = {}
    for metric in vars(broker.metrics).values():
        if isinstance(metric, Histogram):
            buckets[f"{metric._name}_bucket"] = set(metric._upper_bounds)
    asked = [
        (name, float(bound))
        for expression in EXPRESSIONS
        for name, bound in re.findall(r'(trifid_\w+_bucket)\{le="([\d.]+)"\}', expression)
    ]
    assert len(asked) >= 4
    assert [(name, bound) for name, bound in asked if bound not in buckets[name]] == []


def test_every_metric_of_the_service_has_a_panel_or_an_alarm() -> None:
    text = " ".join(EXPRESSIONS)
    for metric in vars(broker.metrics).values():
        if isinstance(metric, MetricWrapperBase):
            assert metric._name in text, metric._name


def test_every_alarm_has_an_entry_in_the_runbook_and_every_entry_an_alarm() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    entries = dict(re.findall(r"^## (\w+)\n\n(\w+)\. ", runbook, re.MULTILINE))
    assert entries == {rule["alert"]: rule["labels"]["severity"] for rule in RULES}


def test_every_alarm_is_seen_to_fire_and_to_keep_silent() -> None:
    cases = yaml.safe_load((ROOT / "deploy/prometheus/rules_test.yml").read_text())["tests"]
    tested = [
        (case["alertname"], bool(case["exp_alerts"])) for group in cases for case in group.get("alert_rule_test", [])
    ]
    names = {rule["alert"] for rule in RULES}
    assert {name for name, fires in tested if fires} == names
    assert {name for name, fires in tested if not fires} == names


def test_panels_are_complete_and_do_not_overlap() -> None:
    assert set(DASHBOARDS) == {"operators", "scientists", "triton"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 3
    for dashboard in DASHBOARDS.values():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
        assert all(panel["description"] and panel["targets"] for panel in panels)


def test_the_parents_on_the_dashboard_are_those_of_the_taxonomy() -> None:
    (panel,) = (p for p in DASHBOARDS["scientists"]["panels"] if p["title"] == "Parents")
    shown = {}
    for target in panel["targets"]:
        found = re.search(r'class_name=~?"([\w|]+)"', target["expr"])
        assert found is not None
        shown[target["legendFormat"]] = tuple(sorted(found[1].split("|")))
    assert shown == {name: tuple(sorted(classes)) for name, classes in PARENTS.items()}


def test_promtool_reads_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH: it is in Debian's package prometheus, and in Prometheus's own archives")
    rules = [{"record": f"panel:{n}", "expr": expression} for n, expression in enumerate(EXPRESSIONS)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_takes_its_configuration_and_tells_pages_from_tickets() -> None:
    amtool = shutil.which("amtool")
    if amtool is None:
        pytest.skip("no amtool on PATH: it is in Debian's package prometheus-alertmanager")

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [amtool, *arguments],
            cwd=ROOT / "deploy/prometheus",
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout

    assert "SUCCESS" in ask("check-config", "alertmanager.yml")
    for severity in {rule["labels"]["severity"] for rule in RULES}:
        route = ("config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}")
        assert ask(*route).split() == [severity]


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
