"""The Helm chart, rendered by Helm's own library and checked without a cluster."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any, Final

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmRenderError, HelmValuesError

from broker.config import load_settings
from tests.documents import blocks

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "deploy/helm/trifid"
KUBERNETES: Final = ("1.29", "1.34")
"""Versions whose schemas the manifests are checked against."""
OTHERS: Final = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
"""Groups of operators, of which Kubernetes has no schemas."""
SITES: Final = {
    name: yaml.safe_load((FOLDER / f"values{name and '-'}{name}.yaml").read_text()) if name else {}
    for name in ("", "laptop", "ztf", "rubin")
}
EVERYTHING: Final[dict[str, Any]] = {
    **SITES["rubin"],
    "images": {"pullSecrets": ["registry"]},
    "priorityClassName": "high",
    "podAnnotations": {"team": "alerts"},
}
SITES["everything"] = EVERYTHING
Manifest = dict[str, Any]


def rendered(values: dict[str, Any]) -> list[Manifest]:
    with Chart.load(FOLDER) as chart:
        files = chart.render(copy.deepcopy(values), name="trifid", namespace="science")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[Manifest]]:
    return {site: rendered(values) for site, values in SITES.items()}


def find(found: list[Manifest], kind: str, ending: str) -> Manifest:
    (one,) = (m for m in found if m["kind"] == kind and m["metadata"]["name"] == f"trifid{ending}")
    return one


def pods(found: list[Manifest]) -> list[Manifest]:
    return [m["spec"]["template"] for m in found if m["kind"] in ("StatefulSet", "Deployment")]


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm does with several files."""
    both = {key: merged(values[key], over[key]) for key in values.keys() & over.keys() if isinstance(over[key], dict)}
    return {**values, **over, **both}


def test_what_the_document_has_a_site_give_is_enough() -> None:
    (block,) = (b for b in blocks("docs/deployment.md") if b.language == "yaml" and "mine.yaml" in b.text)
    found = rendered(merged(SITES["ztf"], yaml.safe_load(block.text)))
    named = {c["image"] for pod in pods(found) for c in pod["spec"]["containers"] if "exporter" not in c["image"]}
    assert named == {"registry.example.org/trifid:0.1.0", "registry.example.org/trifid-web:0.1.0"}
    text = (ROOT / "docs/deployment.md").read_text()
    secrets = {e["secret"] for e in SITES["ztf"]["secrets"]} | {SITES["ztf"]["tls"]["secret"]}
    assert set(re.findall(r"create secret generic ([\w-]+)", text)) == secrets


@pytest.mark.parametrize("site", SITES)
def test_helm_has_nothing_to_say(site: str) -> None:
    report = helm_python.lint(FOLDER, copy.deepcopy(SITES[site]), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_manifest(manifests: dict[str, list[Manifest]], site: str, version: str) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests[site]]
    assert len(set(names)) == len(names) >= 6
    for manifest in manifests[site]:
        if manifest["apiVersion"] not in OTHERS:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("site", SITES)
def test_the_settings_are_settings(
    manifests: dict[str, list[Manifest]], site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("TRIFID_")]:
        monkeypatch.delenv(name)
    environment = dict(find(manifests[site], "ConfigMap", "")["data"])
    secrets = {entry["variable"]: "postgresql://u:p@db/trifid" for entry in SITES[site].get("secrets", [])}
    for name, value in {**environment, **secrets}.items():
        assert isinstance(value, str)
        monkeypatch.setenv(name, value)
        if "__" in name:
            section, key = name.removeprefix("TRIFID_").lower().split("__")
            assert key in type(getattr(load_settings(), section)).model_fields if not secrets else True
    settings = load_settings()
    assert settings.inference.engine == ("triton" if site in ("rubin", "everything") else "onnx")
    if site == "rubin":
        assert settings.kafka.topic_partitions == 48
        assert settings.kafka.security_protocol == "SASL_SSL"
        assert settings.triton.url == "trifid-triton:8001"
        autoscaling = SITES[site]["worker"]["autoscaling"]
        assert autoscaling["maxReplicas"] <= settings.kafka.topic_partitions


@pytest.mark.parametrize("site", SITES)
def test_every_container_has_no_rights_a_read_only_root_probes_and_limits(
    manifests: dict[str, list[Manifest]], site: str
) -> None:
    for pod in pods(manifests[site]):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "readinessProbe" in spec["containers"][0]  # one beside it decides nothing about the pod's traffic
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"startupProbe", "livenessProbe"} <= set(container)
            assert container["resources"]["requests"]["cpu"]
            assert container["resources"]["limits"]["memory"]
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_a_workers_id_is_its_name_and_it_has_time_to_end(manifests: dict[str, list[Manifest]]) -> None:
    worker = find(manifests["ztf"], "StatefulSet", "-worker")["spec"]
    pod = worker["template"]["spec"]
    environment = {entry["name"]: entry["valueFrom"] for entry in pod["containers"][0]["env"]}
    assert environment["TRIFID_KAFKA__WORKER_ID"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert environment["TRIFID_KAFKA__SASL_PASSWORD"] == {"secretKeyRef": {"name": "trifid-kafka", "key": "password"}}
    assert pod["terminationGracePeriodSeconds"] > load_settings().pipeline.stop_timeout_s + 2
    service = find(manifests["ztf"], "Service", "-worker")["spec"]
    assert worker["serviceName"] == "trifid-worker"
    assert service["clusterIP"] == "None"
    assert "replicas" not in worker  # KEDA's
    assert find(manifests["laptop"], "StatefulSet", "-worker")["spec"]["replicas"] == 1


def test_workers_are_scaled_by_the_lag_of_their_group(manifests: dict[str, list[Manifest]]) -> None:
    scaled = find(manifests["ztf"], "ScaledObject", "-worker")["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "trifid-worker"}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 8)
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "kafka"
    assert trigger["metadata"] == {
        "bootstrapServers": "trifid-kafka-bootstrap.kafka.svc:9093", "consumerGroup": "trifid", "lagThreshold": "2000",
        "offsetResetPolicy": "earliest", "sasl": "scram_sha512", "tls": "enable",
    }  # fmt: skip
    assert trigger["authenticationRef"] == {"name": "trifid-kafka"}
    assert not [m for m in manifests["laptop"] if m["kind"] == "ScaledObject"]


def test_triton_has_gpus_and_is_scaled_by_its_queue(manifests: dict[str, list[Manifest]]) -> None:
    pod = find(manifests["rubin"], "Deployment", "-triton")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    writable = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert writable == {"/tmp", "/dev/shm", "/var/cache/trifid"}  # TensorRT's engines are in the last
    (trigger,) = find(manifests["rubin"], "ScaledObject", "-triton")["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"]["threshold"] == "20"
    assert 'nv_inference_queue_duration_us{namespace="science"}' in trigger["metadata"]["query"]
    assert {m["kind"] for m in manifests["ztf"] if m["metadata"]["name"].endswith("triton")} == {
        "ConfigMap"
    }  # dashboard


def test_each_part_has_a_disruption_budget_and_a_network_policy(manifests: dict[str, list[Manifest]]) -> None:
    found = manifests["rubin"]
    for part in ("worker", "triton", "web"):
        labels = find(found, "NetworkPolicy", f"-{part}")["spec"]["podSelector"]["matchLabels"]
        assert labels["app.kubernetes.io/component"] == part
        assert find(found, "PodDisruptionBudget", f"-{part}")["spec"]["maxUnavailable"] == 1
        (pod,) = (p for p in pods(found) if p["metadata"]["labels"]["app.kubernetes.io/component"] == part)
        assert labels.items() <= pod["metadata"]["labels"].items()
    worker = find(found, "NetworkPolicy", "-worker")["spec"]
    ports = {port["port"] for rule in worker["egress"] for port in rule["ports"]}
    assert {53, 8001, 9093, 6380} <= ports
    assert find(found, "NetworkPolicy", "-triton")["spec"]["egress"] == []


def test_lists_are_filled_beside_the_pages_from_the_same_database(manifests: dict[str, list[Manifest]]) -> None:
    for values, shared in (("rubin", True), ("laptop", False)):
        web, notify = find(manifests[values], "Deployment", "-web")["spec"]["template"]["spec"]["containers"]
        assert notify["args"] == ["notify"]
        assert web["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
        assert "readinessProbe" not in notify  # it would take the page beside it out of service
        env = [{e["name"]: e for e in container["env"]} for container in (web, notify)]
        assert env[0]["TRIFID_WEB__DATABASE"] == env[1]["TRIFID_WEB__DATABASE"]
        assert ("value" in env[1]["TRIFID_WEB__DATABASE"]) is not shared
        assert notify["volumeMounts"] == web["volumeMounts"]
    without = rendered({"web": {"enabled": True, "notify": False}})
    (web,) = find(without, "Deployment", "-web")["spec"]["template"]["spec"]["containers"]
    assert web["name"] == "web"


def test_exporters_log_in_as_the_service_does(manifests: dict[str, list[Manifest]]) -> None:
    pod = find(manifests["ztf"], "Deployment", "-exporters")["spec"]["template"]["spec"]
    kafka, redis = pod["containers"]
    assert kafka["args"] == [
        "--kafka.server=trifid-kafka-bootstrap.kafka.svc:9093", "--kafka.version=4.0.0", "--sasl.enabled",
        "--sasl.mechanism=scram-sha512", "--sasl.username=trifid", "--tls.enabled",
        "--tls.ca-file=/etc/trifid/tls/kafka.pem",
    ]  # fmt: skip
    secret = {"secretKeyRef": {"name": "trifid-kafka", "key": "password"}}
    assert kafka["env"] == [{"name": "SASL_USER_PASSWORD", "valueFrom": secret}]
    env = {variable["name"]: variable.get("value") for variable in redis["env"]}
    assert env == {
        "REDIS_ADDR": "rediss://redis.redis.svc:6380/0", "REDIS_USER": "trifid", "REDIS_PASSWORD": None,
        "REDIS_EXPORTER_TLS_CA_CERT_FILE": "/etc/trifid/tls/redis.pem",
    }  # fmt: skip
    monitor = find(manifests["ztf"], "ServiceMonitor", "-exporters")["spec"]["endpoints"]
    ports = find(manifests["ztf"], "Service", "-exporters")["spec"]["ports"]
    assert [endpoint["port"] for endpoint in monitor] == [port["name"] for port in ports] == ["kafka", "redis"]
    assert not [m for m in manifests["laptop"] if "exporters" in m["metadata"]["name"]]


def test_prometheus_and_grafana_get_the_rules_and_dashboards_of_deploy(manifests: dict[str, list[Manifest]]) -> None:
    found = manifests["ztf"]
    monitor = find(found, "ServiceMonitor", "-worker")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= find(found, "Service", "-worker")["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["relabelings"] == [{"targetLabel": "job", "replacement": "trifid"}]
    monitor, service = (find(found, kind, "-web") for kind in ("ServiceMonitor", "Service"))
    for endpoint, job in zip(monitor["spec"]["endpoints"], ("trifid-web", "trifid-notify"), strict=True):
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    allowed = {
        port["port"] for rule in find(found, "NetworkPolicy", "-web")["spec"]["ingress"] for port in rule["ports"]
    }
    assert allowed == {"http", "metrics", "notify"}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    assert find(found, "PrometheusRule", "")["spec"] == rules
    dashboards = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    assert dashboards
    for path in dashboards:
        assert find(found, "ConfigMap", f"-dashboard-{path.stem}")["data"] == {path.name: path.read_text()}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"settings": {"kafka": {"sasl_password": "hush"}}}, "sasl_password"),
        ({"worker": {"replica": 3}}, "replica"),
        ({"worker": {"replicas": 0}}, "minimum"),
        ({"secrets": [{"variable": "PASSWORD", "secret": "a", "key": "b"}]}, "pattern"),
        ({"web": {"enabled": True, "replicas": 2}}, "database that they share"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises((HelmValuesError, HelmRenderError), match=reason):
        rendered(wrong)
