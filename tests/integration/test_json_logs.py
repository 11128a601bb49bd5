"""What services write with ``--log-format json`` is JSON lines and nothing else, with real Kafka, Redis and Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.config import KafkaSettings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.metrics import CHECKS
from broker.streaming.replay import Replay
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer
from deploy.local.triton_server import TritonServer, triton_installed
from tests.random_models import MODEL_REPO

PACKETS = [a.payload for a in simulate_alerts(8, 5, seed=5)]
_WAIT_S = 300.0


class Process:
    """A service as it is started in a container: JSON by the environment, one stream of output."""

    def __init__(self, folder: Path, *arguments: str, **settings: object) -> None:
        self.log = folder / f"{arguments[0]}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIFID_")}
        environment |= {f"TRIFID_{name}": str(value) for name, value in settings.items()}
        environment |= {"TRIFID_LOG_FORMAT": "json"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", *arguments], stdout=log, stderr=log, env=environment
            )

    def entries(self) -> list[dict[str, Any]]:
        """All lines so far; raises where one is no JSON object."""
        text = self.log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def find(self, start: str) -> list[dict[str, Any]]:
        """Lines whose message starts so."""
        return [entry for entry in self.entries() if entry["message"].startswith(start)]

    def wait(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + _WAIT_S
        while not what():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def end(self, code: int = 0) -> list[dict[str, Any]]:
        """SIGTERM; all that it wrote."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(300) == code, self.log.read_text()[-3000:]
        return self.entries()


@contextmanager
def running(folder: Path, *arguments: str, **settings: object) -> Iterator[Process]:
    service = Process(folder, *arguments, **settings)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()


def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)
    except urllib.error.URLError:
        return 0, {}


def alerts_out(port: int) -> float:
    """Alerts and undecodable messages that are delivered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(s.value for f in families for s in f.samples if s.name == "trifid_alerts_out_total")


def test_a_workers_log_is_json_whatever_fails_and_says_where(kafka: KafkaServer, tmp_path: Path) -> None:
    if not triton_installed():
        pytest.skip("no Triton here: run `python -m deploy.local.triton_server setup`")
    port, where = free_port(), KafkaSettings(bootstrap_servers=kafka.bootstrap)
    kafka.create_topics(["logs.in", "logs.spectra"], partitions=1)
    servers = RedisServer(persistent=True), TritonServer(MODEL_REPO)
    with (
        servers[0] as redis,
        servers[1] as triton,
        running(
            tmp_path,
            "run",
            KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap,
            KAFKA__INPUT_TOPICS="logs.in",
            KAFKA__SPECTRA_TOPIC="logs.spectra",
            KAFKA__GROUP_ID="logs",
            PUBLISH__TOPIC_PREFIX="logs",
            REDIS__URL=redis.url,
            INFERENCE__ENGINE="triton",
            TRITON__URL=triton.grpc_url,
            METRICS__PORT=port,
            METRICS__PROBE_INTERVAL_S=1,
            PIPELINE__MAX_BACKOFF_S=1,
        ) as worker,
    ):

        def send(topic: str, *payloads: bytes) -> None:
            with Replay(where, topic) as replay:
                for payload in payloads:
                    replay.send(payload)

        def ready() -> bool:
            return ask(port, "/readyz")[0] == 200

        def waits_for(name: str) -> bool:
            return any(name in entry["message"] for entry in worker.find("waiting"))

        def is_out(alerts: int) -> bool:
            return alerts_out(port) == alerts

        worker.wait(ready)
        send("logs.in", *PACKETS[:3], b"no alert", *PACKETS[3:6])
        send("logs.spectra", b"no spectrum")
        worker.wait(lambda: len(worker.find("1 dead letters")) == 2)
        servers_by_name = (("Redis", redis, PACKETS[6:8], 10), ("Triton", triton, PACKETS[8:10], 12))
        for name, server, packets, delivered in servers_by_name:
            server.kill()
            send("logs.in", *packets)
            worker.wait(partial(waits_for, name))

            def is_named(name: str = name) -> bool:
                checks = ask(port, "/readyz")[1]["checks"]
                return name in checks[name.lower()] and name in checks["work"]

            worker.wait(is_named)  # servers are asked from time to time
            code, body = ask(port, "/readyz")
            assert code == 503
            assert set(body["checks"]) == {*CHECKS, "triton"}
            assert ask(port, "/healthz")[0] == 200
            server.start()
            worker.wait(partial(is_out, delivered))
            worker.wait(ready)
        kafka.kill()
        worker.wait(lambda: ask(port, "/readyz")[1]["checks"]["kafka"])
        assert ask(port, "/healthz")[0] == 200
        kafka.start()
        worker.wait(ready)
        written = worker.end()

    start, *_ = (entry for entry in written if entry["message"].startswith("trifid "))
    assert start["input_topics"] == ["logs.in", "logs.spectra"]
    alert, spectrum = sorted(worker.find("1 dead letters"), key=lambda entry: str(entry["topic"]))
    assert (alert["topic"], alert["partition"], alert["offset"], alert["survey"]) == ("logs.in", 0, 3, "unknown")
    assert (spectrum["topic"], spectrum["partition"], spectrum["offset"]) == ("logs.spectra", 0, 0)
    assert {"alert_id"} <= set(alert) & set(spectrum)
    waits = [entry for entry in worker.find("waiting") if "offset" in entry]
    assert {(entry["topic"], entry["partition"], entry["offset"]) for entry in waits} == {
        ("logs.in", 0, 7), ("logs.in", 0, 9)
    }  # fmt: skip
    assert all(entry["messages"] >= 1 for entry in waits)
    last = written[-1]
    assert last["message"].endswith("reconciled")
    assert (last["alerts_in"], last["dead_lettered"], last["spectra_dead_lettered"]) == (12, 2, 0)


def test_the_pages_and_the_lists_log_json(kafka: KafkaServer, tmp_path: Path) -> None:
    settings = {
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "WEB__DATABASE": f"sqlite:///{tmp_path / 'web.sqlite'}",
        "PUBLISH__TOPIC_PREFIX": "pages",
    }
    kafka.create_topics(["pages.ztf.all"], partitions=1)
    with RedisServer() as redis:
        settings["REDIS__URL"] = redis.url
        port = free_port()
        with running(tmp_path, "web", "--port", str(port), WEB__METRICS_PORT=free_port(), **settings) as web:
            web.wait(lambda: web.find("http://"))
            with running(tmp_path, "notify", NOTIFY__METRICS_PORT=free_port(), **settings) as notify:
                notify.wait(lambda: notify.find("reading annotations in the group trifid-notify"))
                with Replay(KafkaSettings(bootstrap_servers=kafka.bootstrap), "pages.ztf.all") as replay:
                    replay.send(b"no annotation")
                web.wait(lambda: web.find("skipped pages.ztf.all[0]@0"))
                notify.end()
            web.end()
    (skipped,) = web.find("skipped")
    assert (skipped["topic"], skipped["partition"], skipped["offset"]) == ("pages.ztf.all", 0, 0)


def test_a_refusal_of_settings_or_options_is_json_too(tmp_path: Path) -> None:
    for arguments, settings in (
        (["run", "--log-level", "LOUD"], {}),
        (["run"], {"KAFKA__TOPIC_PARTITIONS": "many"}),
        (["notify"], {"WEB__DATABASE": "sqlite:////no/such/folder/a.sqlite"}),
    ):
        with running(tmp_path, *arguments, **settings) as service:
            service.process.wait(300)
        (entry,) = service.entries()
        assert (entry["level"], entry["exit_code"]) == ("ERROR", service.process.returncode)
        assert service.process.returncode in (1, 2)
