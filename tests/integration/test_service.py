"""Workers as processes, with real Kafka and Redis: rebalances, the end, poison, dead letters and health.

The model is one of random weights in ONNX Runtime, and the objects have too few points to be classified, so that the
alerts are light.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from broker.config import KafkaSettings
from broker.embedded.kafka import KafkaServer, find_kafka_home
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.publish.annotation import read
from broker.streaming.replay import Replay
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import MODEL_REPO, build_random_repository

PACKETS = [a.payload for a in simulate_alerts(1500, 2, seed=3)]
IDS = [alert.alert_id for payload in PACKETS for alert in Decoder().decode(payload)]
STOP_S = 10.0


@dataclass
class Servers:
    kafka: KafkaServer
    redis: RedisServer
    models: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    with KafkaServer() as kafka, RedisServer() as redis:
        yield Servers(kafka, redis, build_random_repository(tmp_path_factory.mktemp("models")))


@dataclass
class Worker:
    """One process of ``trifid run``."""

    command: list[str]
    log: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, None

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.get("/readyz")[0] == 200, 60, self)

    def stop(self) -> str:
        """SIGTERM; the last line of the log, which has the books."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.tail()
        assert time.monotonic() - start < STOP_S, self.tail()
        return self.log.read_text().strip().splitlines()[-1]

    def tail(self) -> str:
        return self.log.read_text()[-4000:]


class Group:
    """Workers of one group, with topics of their own."""

    def __init__(self, servers: Servers, folder: Path, name: str, **settings: dict[str, object]) -> None:
        self.servers, self.folder, self.name = servers, folder, name
        self.input, self.letters = f"{name}.in", f"{name}.deadletter"
        servers.kafka.create_topics([self.input], partitions=4)
        self.kafka = KafkaSettings(bootstrap_servers=servers.kafka.bootstrap, group_id=name)
        self.workers: list[Worker] = []
        self.config = folder / "trifid.toml"
        sections: dict[str, dict[str, object]] = {
            "kafka": {
                "bootstrap_servers": servers.kafka.bootstrap, "input_topics": [self.input], "spectra_topic": "",
                "group_id": name, "session_timeout_s": 6.0,
            },
            "redis": {"url": servers.redis.url},
            "inference": {"engine": "onnx", "model_repository": str(servers.models), "threads": 1},
            "anomaly": {"reference_set": str(MODEL_REPO / "reference_set.npz")},
            "pipeline": {"batch_size": 32, "first_backoff_s": 0.2, "max_backoff_s": 1.0},
            "publish": {"topic_prefix": name},
            "metrics": {"address": "127.0.0.1", "probe_interval_s": 1.0},
        }  # fmt: skip
        lines: list[str] = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in (values | settings.get(section, {})).items()]
        self.config.write_text("\n".join(lines))

    def start(self, name: str) -> Worker:
        port = free_port()
        command = ["env", f"TRIFID_KAFKA__WORKER_ID={name}", f"TRIFID_METRICS__PORT={port}"]
        command += [sys.executable, "-m", "broker.cli", "run", "--config", str(self.config)]
        worker = Worker(command, self.folder / f"{name}.log", port)
        worker.start()
        self.workers.append(worker)
        return worker

    def send(self, payloads: list[bytes], rate: float | None = None) -> None:
        with Replay(self.kafka, self.input, rate) as replay:
            for payload in payloads:
                replay.send(payload)

    def published(self, topic: str = "") -> list[bytes]:
        return committed(self.servers.kafka, topic or f"{self.name}.ztf.all")

    def counts(self) -> Counter[int]:
        """How often each alert was published."""
        return Counter(a.alert_id for payload in self.published() for a in read(payload))

    def wait_for(self, count: int, seconds: float = 90.0) -> None:
        wait_until(lambda: len(self.published()) + len(self.published(self.letters)) >= count, seconds, *self.workers)

    def trifid(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "broker.cli", *arguments, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


def wait_until(condition: Callable[[], bool], seconds: float, *workers: Worker) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "\n\n".join(worker.tail() for worker in workers)
        time.sleep(0.3)


def committed(kafka: KafkaServer, topic: str) -> list[bytes]:
    """All messages of a topic that belong to committed transactions."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap, "group.id": "ledger", "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "isolation.level": "read_committed", "enable.partition.eof": True,
            "log_level": 0,
        }
    )  # fmt: skip
    metadata = consumer.list_topics(topic, 10).topics[topic]
    left = set(metadata.partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in left])
    found: list[bytes] = []
    end = time.monotonic() + 20
    while left and time.monotonic() < end:
        for message in consumer.consume(500, 0.2):
            if message.error() is None:
                found.append(message.value() or b"")
            else:
                left.discard(message.partition())
    consumer.close()
    return found


def state_of(kafka: KafkaServer, group: str) -> int:
    """How many members a group has."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    return len(admin.describe_consumer_groups([group])[group].result().members)


def test_workers_come_and_go_under_load(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "scale") as group:
        first = group.start("w1")
        first.wait_until_ready()
        sender = threading.Thread(target=group.send, args=(PACKETS, 90.0))
        sender.start()
        others = [group.start(f"w{number}") for number in (2, 3, 4)]
        for worker in others:
            worker.wait_until_ready()
        assert state_of(servers.kafka, "scale") == 4
        time.sleep(3)
        books = [worker.stop() for worker in others]
        sender.join()
        group.wait_for(len(IDS))
        books.append(first.stop())
        counts = group.counts()
        assert counts == Counter(IDS)
        handled = [int(line.split()[2]) for line in books]
        assert sum(handled) == len(IDS)
        assert min(handled) > 0
        assert all("the books balance" in line for line in books)
        print("alerts by worker:", handled)
