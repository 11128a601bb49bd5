"""`/readyz` of `trifid web` and `trifid notify` with real Kafka, Redis and PostgreSQL, one of which goes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from fastapi.testclient import TestClient

from broker.build import build_store
from broker.config import Settings
from broker.database import connect
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.readiness import metrics_server, watched
from broker.web.app import application, parts_of
from broker.web.index import Index
from deploy.local.kafka_server import KafkaServer
from tests.postgres_server import PostgresServer
from tests.waiting import wait_until

NOWHERE = "127.0.0.1:1"


def ask(port: int, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
    """Status and answer; 0 where nobody listens."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except (URLError, ConnectionError, TimeoutError):
        return 0, {}


def settings_of(database: str, redis: str, kafka: str, **web: object) -> Settings:
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka, "replication_factor": 1},
            "redis": {"url": redis},
            "web": {"database": database} | web,
            "metrics": {"probe_interval_s": 0.5},
        }
    )


@pytest.fixture(scope="module")
def kafka(kafka: KafkaServer) -> KafkaServer:
    """With a topic to read: without any, matching says so."""
    kafka.create_topics(["trifid.ztf.all"])
    return kafka


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One of this test's own, which may go."""
    with RedisServer() as server:
        yield server


@contextmanager
def page(settings: Settings) -> Iterator[int]:
    """The port at which the readiness of the page is told."""
    port = free_port()
    engine = connect(settings.web.database.get_secret_value())
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        store = stack.enter_context(closing(build_store(settings, read_only=True)))
        readiness = stack.enter_context(watched(settings, engine, store))
        stack.enter_context(metrics_server("127.0.0.1", port, readiness))
        yield port


def test_the_page_is_out_of_service_without_its_database_only(
    kafka: KafkaServer, redis: RedisServer, postgres: PostgresServer
) -> None:
    with page(settings_of(postgres.database(), redis.url, kafka.bootstrap)) as port:
        wait_until(lambda: ask(port)[0] == 200)
        assert ask(port) == (200, {"ready": True, "checks": dict.fromkeys(("database", "kafka", "redis"), "ok")})
        assert ask(port, "/healthz") == (200, {"alive": True, "checks": {}})
        redis.kill()
        wait_until(lambda: "redis" in ask(port)[1].get("notes", {}))
        status, told = ask(port)
        assert (status, told["ready"]) == (200, True)
        assert "Redis is unavailable" in told["notes"]["redis"]
        with postgres.frozen():
            wait_until(lambda: ask(port)[0] == 503)
            wait_until(lambda: ask(port)[1]["checks"]["database"] != "ok")
        redis.start()
        wait_until(lambda: ask(port)[1].get("checks") == dict.fromkeys(("database", "kafka", "redis"), "ok"))


def test_what_has_never_answered_counts(redis: RedisServer, postgres: PostgresServer) -> None:
    """As after an upgrade with a wrong address: the pods before it stay."""
    with page(settings_of(postgres.database(), redis.url, NOWHERE)) as port:
        wait_until(lambda: ask(port)[1].get("checks", {}).get("redis") == "ok")
        wait_until(lambda: ask(port)[1]["checks"]["kafka"] not in ("ok", "not asked yet"))
        status, told = ask(port)
        assert (status, told["ready"]) == (503, False)
        assert (told["checks"]["database"], "notes" in told) == ("ok", False)


def test_who_has_no_token_is_told_no_reasons(redis: RedisServer, postgres: PostgresServer, tmp_path: Path) -> None:
    settings = settings_of(postgres.database(), redis.url, NOWHERE, require_login=True)
    with (
        closing(Index(settings.web.database.get_secret_value())) as index,
        parts_of(settings, index, follow=False) as parts,
        watched(settings, index.engine, parts.store) as found,
    ):
        http = TestClient(application(replace(parts, readiness=found)), base_url="http://web.example")
        wait_until(lambda: http.get("/readyz").json()["checks"]["redis"] == "ok")
        answer = http.get("/readyz")
        assert answer.status_code == 503
        told = answer.json()["checks"]["kafka"]
        assert told == "does not answer; /readyz at web.metrics_port, and the log, say why"


@pytest.mark.parametrize("command", ["web", "notify"])
def test_the_commands_tell_their_readiness(
    command: str, kafka: KafkaServer, redis: RedisServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    ports, page_port = {name: free_port() for name in ("web", "notify")}, free_port()
    config = tmp_path / "trifid.toml"
    config.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap}"\nreplication_factor = 1\n[redis]\nurl = "{redis.url}"\n'
        f'[web]\ndatabase = "{postgres.database()}"\nport = {page_port}\nmetrics_port = {ports["web"]}\n'
        f"[notify]\nmetrics_port = {ports['notify']}\n[metrics]\nprobe_interval_s = 0.5\n"
    )
    started = [sys.executable, "-m", "broker.cli", command, "--config", str(config)]
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: ask(ports[command])[0] == 200)
            expected = {"database", "kafka"} | ({"redis"} if command == "web" else {"match", "send", "deliver", "hold"})
            assert ask(ports[command]) == (200, {"ready": True, "checks": dict.fromkeys(expected, "ok")})
            with postgres.frozen():
                wait_until(lambda: ask(ports[command])[0] == 503)
                if command == "web":
                    wait_until(lambda: ask(page_port)[0] == 503)
                    assert ask(ports[command], "/healthz")[0] == 200
            wait_until(lambda: ask(ports[command])[0] == 200)
        finally:
            process.terminate()
            process.wait(300)
