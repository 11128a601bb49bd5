"""docker-compose.yml, as far as can be told without Docker."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from broker.config import KafkaSettings, load_settings
from broker.embedded.redis import RedisServer
from broker.models.variants import _TENSORRT

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docker-compose.yml").read_text()
VARIABLES: Final = dict(
    line.split("=", 1) for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")
)
COMPOSE: Final = yaml.safe_load(
    re.sub(r"\$\{(\w+)(?::-[^}]*)?\}", lambda found: VARIABLES[found[1]], TEXT).replace("$$", "$")
)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
OURS: Final = ("worker", "worker-gpu", "web", "notify", "tools")


def test_it_is_what_compose_reads() -> None:
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_each_variable_has_its_default_beside_it_too() -> None:
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT):
        assert VARIABLES[name] == default
    assert set(VARIABLES) - {"COMPOSE_PROFILES"} == set(re.findall(r"\$\{(\w+)", TEXT))


@pytest.mark.parametrize("name", OURS)
def test_a_service_sets_only_settings_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, str(value))
        if "__" in variable:
            section, key = variable.removeprefix("TRIFID_").lower().split("__")
            assert key in type(getattr(load_settings(), section)).model_fields
        else:
            assert variable in ("TRIFID_LOG_FORMAT",)
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.redis.address() == "redis://redis:6379/0"
    if name.startswith("worker"):
        assert settings.inference.engine == ("triton" if name == "worker-gpu" else "onnx")
        assert settings.kafka.worker_id_folder is not None


def test_each_profile_starts_what_it_needs() -> None:
    def running(*profiles: str) -> set[str]:
        return {n for n, s in SERVICES.items() if not s.get("profiles") or set(s["profiles"]) & set(profiles)}

    servers = {"kafka", "topics", "redis", "prometheus", "alertmanager", "grafana", "kafka-exporter", "redis-exporter"}
    assert running() == servers
    assert running("cpu") == servers | {"worker"}
    assert running("gpu") == servers | {"worker-gpu", "triton"}
    assert running("cpu", "web") == servers | {"worker", "web", "notify"}
    for profile in ("cpu", "gpu", "web", "notify", "tools"):
        for name in running(profile):
            assert set(SERVICES[name].get("depends_on", {})) <= running(profile), name
    assert VARIABLES["COMPOSE_PROFILES"] in ("cpu", "gpu")


def test_what_is_depended_on_can_become_what_is_waited_for() -> None:
    for service in SERVICES.values():
        for name, awaited in service.get("depends_on", {}).items():
            if awaited["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            else:
                assert awaited["condition"] == "service_completed_successfully"
                assert SERVICES[name]["restart"] == "on-failure"


def test_all_that_keeps_running_is_restarted_and_has_a_health_check() -> None:
    for name, service in SERVICES.items():
        if name not in ("tools", "topics"):
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service, name


def test_workers_can_be_scaled() -> None:
    for name in ("worker", "worker-gpu"):
        worker = SERVICES[name]
        assert not {"ports", "container_name", "hostname"} & set(worker)
        assert worker["scale"] == int(VARIABLES["TRIFID_WORKERS"])
        (volume,) = worker["volumes"]
        assert volume.split(":")[1] == worker["environment"]["TRIFID_KAFKA__WORKER_ID_FOLDER"]


@pytest.mark.parametrize("name", [*OURS, "triton"])
def test_ours_have_a_read_only_root_and_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(path.startswith("/tmp") for path in service["tmpfs"])


def test_triton_may_write_where_a_variant_keeps_what_it_compiled() -> None:
    (folder,) = re.findall(r'trt_engine_cache_path" value: "([^"]+)"', _TENSORRT)
    written = [path.partition(":")[0] for path in SERVICES["triton"]["tmpfs"]]
    assert any(Path(folder).is_relative_to(path) for path in written)


def test_ports_are_those_of_this_machine_alone_and_each_once() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)
    # As the documents, and Trifid's defaults, have them.
    published = {name: service["ports"][0].split(":")[1] for name, service in SERVICES.items() if "ports" in service}
    assert f"localhost:{published['kafka']}" == KafkaSettings().bootstrap_servers
    assert published["redis"] == "6379"
    assert "localhost:9092" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_topics_are_created_before_anybody_reads_them() -> None:
    script = SERVICES["topics"]["command"][0]
    names = re.search(r"for topic in ([^;]*);", script)
    assert names is not None
    assert set(names[1].split()) == {"alerts.ztf", "alerts.lsst", KafkaSettings().spectra_topic}
    assert '--topic "$topic" --partitions 4' in script
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, timeout=10)
    assert done.returncode == 0, done.stderr


def test_mounted_files_exist_and_named_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


class ComposeRedis(RedisServer):
    """The real server, with the command as it stands."""

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        (binary, *_), environment = super()._command()
        given = SERVICES["redis"]["command"][1:]
        return [binary, *given, "--port", str(self.port), "--dir", str(self.folder)], environment


def test_redis_takes_its_command_and_loses_nothing() -> None:
    with ComposeRedis() as server, closing(server.client()) as client:
        asked = client.config_get("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
    assert asked == {
        "appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory": str(4 * 2**30),
        "maxmemory-policy": "noeviction",
    }  # fmt: skip


def test_prometheus_finds_every_replica_of_the_workers() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert jobs["trifid"]["names"] == [name for name in SERVICES if name.startswith("worker")]
    assert jobs["trifid"]["port"] == 8000
    assert jobs["triton"]["names"] == ["triton"]
    assert jobs["trifid-web"]["names"] == ["web"]
    assert str(jobs["trifid-web"]["port"]) == SERVICES["web"]["environment"]["TRIFID_WEB__METRICS_PORT"]
    (manager,) = config["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
