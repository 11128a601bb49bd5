"""Workers as processes, with real Kafka and Redis: rebalances, the end, poison, dead letters and health.

The model is one of random weights in ONNX Runtime, and the objects have too few points to be classified, so that the
alerts are light.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.cli.deadletter import deadletter
from broker.cli.models import models as models_command
from broker.config import KafkaSettings, MetricsSettings, PipelineSettings
from broker.embedded.ports import free_port
from broker.embedded.process import ServerProcess
from broker.embedded.redis import RedisServer
from broker.metrics import BATCHES_ABANDONED
from broker.models.build import build
from broker.publish.annotation import read
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming import clients
from broker.streaming.accounting import Accounting
from broker.streaming.health import Health
from broker.streaming.replay import Replay
from broker.streaming.service import Control, Service
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from deploy.local.triton_server import TritonServer, triton_installed
from tests.busy import Stopwatch
from tests.kafka_groups import members_of
from tests.otlp import PARENT, SAMPLED, TRACE, Receiver, otlp_receiver
from tests.random_models import build_random_repository

PACKETS = [a.payload for a in simulate_alerts(1300, 2, seed=3)]
IDS = [alert.alert_id for payload in PACKETS for alert in Decoder().decode(payload)]
STOP_S = 10.0
PATIENCE_S = 300.0
"""For what is only waited for: far away, also on a busy machine."""


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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as server:
        yield server


@dataclass(eq=False)
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
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, None

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.get("/readyz")[0] == 200, self)

    def stop(self) -> str:
        """SIGTERM; the last line of the log, which has the accounting."""
        with Stopwatch() as watch:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(300)
        assert code == 0, self.tail()
        assert watch.seconds < STOP_S, self.tail()
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
            "pipeline": {"batch_size": 32, "first_backoff_s": 0.2, "max_backoff_s": 1.0},
            "publish": {"topic_prefix": name},
            "metrics": {"address": "127.0.0.1", "probe_interval_s": 1.0},
            "triton": {},
            "tracing": {},
        }  # fmt: skip
        lines: list[str] = []
        for section, values in sections.items():
            given = values | settings.get(section, {})
            if given:  # an earlier release may not know a section
                lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in given.items())]
        self.config.write_text("\n".join(lines))

    def start(self, name: str, before: Sequence[str] = ()) -> Worker:
        """``before`` are arguments of ``env``."""
        port = free_port()
        command = ["env", *before, f"TRIFID_KAFKA__WORKER_ID={name}", f"TRIFID_METRICS__PORT={port}"]
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

    def wait_for(self, count: int, seconds: float = PATIENCE_S) -> None:
        seen: list[int] = []

        def enough() -> bool:
            seen[:] = [len(self.published()), len(self.published(self.letters))]
            return sum(seen) >= count

        try:
            wait_until(enough, *self.workers, seconds=seconds)
        except AssertionError as error:
            error.add_note(f"annotations and dead letters: {seen} of {count}")
            raise

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


def wait_until(condition: Callable[[], bool], *workers: Worker, seconds: float = PATIENCE_S) -> None:
    """Wait for a condition; none of the ``workers`` that run now may end meanwhile, and none may have failed before."""
    running = [worker for worker in workers if worker.process.poll() is None]
    end = time.monotonic() + seconds
    while True:
        codes = {worker: worker.process.poll() for worker in workers}  # before: what it did last counts
        if condition():
            return
        for worker, code in codes.items():
            failed = code is not None and (code > 0 or worker in running)
            assert not failed, f"{worker.log.name} ended with {code}:\n{worker.tail()}"
        assert time.monotonic() < end, "\n\n".join(worker.tail() for worker in workers)
        time.sleep(0.3)


def metric(worker: Worker, name: str) -> float:
    """The sum of a metric of a worker over its labels, or of those that ``name`` begins with."""
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and not line.startswith("#"))


def wait_until_stuck(worker: Worker) -> None:
    """Until a worker has a batch that is decoded and not delivered, and that stays so from one look to the next."""
    seen = -1.0

    def stuck() -> bool:
        nonlocal seen
        decoded, delivered = (
            metric(worker, f'trifid_stage_seconds_count{{stage="{stage}"}}') for stage in ("decode", "deliver")
        )
        same, seen = decoded == seen, decoded
        return same and decoded > delivered

    wait_until(stuck, worker)


def committed(kafka: KafkaServer, topic: str) -> list[bytes]:
    """All messages of a topic that belong to committed transactions."""
    return [message.value() or b"" for message in committed_messages(kafka, topic)]


def committed_messages(kafka: KafkaServer, topic: str) -> list[Message]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap, "group.id": "ledger", "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "isolation.level": "read_committed", "enable.partition.eof": True,
            "log_level": 0,
        }
    )  # fmt: skip
    metadata = consumer.list_topics(topic, 60).topics[topic]
    left = set(metadata.partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in left])
    found: list[Message] = []
    end = time.monotonic() + 120
    while left:
        assert time.monotonic() < end, f"the end of {topic} does not come"
        for message in consumer.consume(500, 0.2):
            if message.error() is None:
                found.append(message)
            else:
                left.discard(message.partition())
    consumer.close()
    return found


def test_waiting_ends_with_the_worker_waited_for(tmp_path: Path) -> None:
    """And not minutes later; one that was stopped before, as its test wanted, is none of them."""
    workers = []
    for name, code in (("stopped", "0"), ("failed", "3")):
        worker = Worker(
            [sys.executable, "-c", f"print('{name}', flush=True); raise SystemExit({code})"], tmp_path / name, 0
        )
        worker.start()
        workers.append(worker)
    stopped, failed = workers
    assert stopped.process.wait(300) == 0
    with pytest.raises(AssertionError, match=r"failed ended with 3:\s+failed"):
        wait_until(lambda: False, stopped, failed)
    wait_until(lambda: True, failed)


def state_of(kafka: KafkaServer, group: str) -> int:
    """How many members a group has."""
    return len(members_of(kafka.bootstrap, group))


def test_workers_come_and_go_under_load(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "scale") as group:
        first = group.start("w1")
        first.wait_until_ready()
        half = len(PACKETS) // 2
        sender = threading.Thread(target=group.send, args=(PACKETS[:half], 80.0))
        sender.start()
        others = [group.start(f"w{number}") for number in (2, 3, 4)]
        for worker in others:
            worker.wait_until_ready()
        assert state_of(servers.kafka, "scale") == 4
        sender.join()
        sender = threading.Thread(target=group.send, args=(PACKETS[half:], 80.0))
        sender.start()
        wait_until(lambda: all(metric(w, "trifid_alerts_in_total") > 0 for w in others), *group.workers)
        accounting = [worker.stop() for worker in others]
        sender.join()
        group.wait_for(len(IDS))
        accounting.append(first.stop())
        counts = group.counts()
        assert counts == Counter(IDS)
        handled = [int(line.split()[2]) for line in accounting]
        assert sum(handled) == len(IDS)
        assert min(handled) > 0
        assert all("reconciled" in line for line in accounting)
        print("alerts by worker:", handled)


class Threads:
    """Workers in threads of this process, with a pipeline that makes a dead letter of everything, in its own time."""

    at_once: int | None = None
    """How many messages are processed and delivered together; None for all of a batch."""

    def __init__(self, kafka: KafkaServer, name: str, pace: Callable[[], float], **settings: object) -> None:
        self.kafka, self.name, self.pace = kafka, name, pace
        kafka.create_topics([f"{name}.in", f"{name}.deadletter"], partitions=4)
        self.settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": kafka.bootstrap, "group_id": name, "input_topics": [f"{name}.in"],
                "spectra_topic": "", "create_topics": False, "session_timeout_s": 6.0, **settings,
            }
        )  # fmt: skip
        self.running: list[tuple[Service, threading.Thread]] = []
        self.accounting: list[Accounting] = []

    def process(self, batch: Sequence[IncomingMessage]) -> BatchResult:
        time.sleep(self.pace())
        batch = batch[: self.at_once]
        return BatchResult(
            messages=len(batch),
            alerts_in=Counter(ztf=len(batch)),
            dead_letters=[DeadLetter(message, "ztf", "a test") for message in batch],
        )

    def start(self) -> None:
        worker_id = f"w{len(self.running) + len(self.accounting)}"
        service = Service(
            self.settings.model_copy(update={"worker_id": worker_id}),
            PipelineSettings(batch_size=20, batch_wait_s=0.1, first_backoff_s=0.1, max_dead_letter_ratio=1.0),
            lambda: self.process,
            Publisher(OutputTopics(self.name, 0.9), "Trifid", 1000),
            Control(Health(MetricsSettings())),
        )
        thread = threading.Thread(target=service.run)
        thread.start()
        self.running.append((service, thread))

    def send(self, payloads: list[bytes]) -> None:
        with Replay(self.settings, f"{self.name}.in") as replay:
            for payload in payloads:
                replay.send(payload)

    def stop(self, number: int) -> None:
        service, thread = self.running.pop(number)
        service.stop()
        thread.join(300)
        assert not thread.is_alive()
        self.accounting.append(service.accounting)

    def out(self) -> list[bytes]:
        return committed(self.kafka, f"{self.name}.deadletter")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        while self.running:
            self.stop(0)


@pytest.mark.parametrize("static", [False, True])
def test_rebalances_with_batches_in_flight(servers: Servers, static: bool) -> None:
    rng = random.Random(6)
    payloads = [b"%d" % number for number in range(2000)]
    name = f"churn-{static}".lower()
    with Threads(servers.kafka, name, lambda: rng.choice((0.0, 0.05, 0.2, 0.5)), static_membership=static) as group:
        group.send(payloads)
        abandoned = BATCHES_ABANDONED._value.get()
        group.start()
        for _ in range(5):
            done = len(group.out())
            group.start()
            wanted = min(done + rng.randrange(20, 200), len(payloads))
            wait_until(lambda wanted=wanted: len(group.out()) >= wanted)  # type: ignore[misc]
            if len(group.running) > 3:
                group.stop(rng.randrange(len(group.running)))
        wait_until(lambda: len(group.out()) >= len(payloads))
        while group.running:
            group.stop(0)
        assert Counter(group.out()) == Counter(payloads)
        assert sum(accounting.dead_lettered for accounting in group.accounting) == len(payloads)
        print(f"6 workers came, {BATCHES_ABANDONED._value.get() - abandoned:.0f} batches abandoned")


def test_messages_of_one_batch_that_are_delivered_in_parts(servers: Servers) -> None:
    """As those that hold many alerts each: a stop between two parts leaves the rest to the next worker."""
    payloads = [b"%d" % number for number in range(60)]
    with Threads(servers.kafka, "parts", lambda: 0.02) as group:
        group.at_once = 3
        group.send(payloads)
        for least in (9, 30, 60):
            group.start()
            wait_until(lambda least=least: len(group.out()) >= least)  # type: ignore[misc]
            group.stop(0)
        assert Counter(group.out()) == Counter(payloads)
        assert sum(accounting.messages for accounting in group.accounting) == 60
        assert all(accounting.reconciled for accounting in group.accounting)


def test_a_long_batch_does_not_cost_the_partitions(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Longer than max.poll.interval; and then another worker joins while one is in flight."""
    pace = iter([9.0, 7.0])
    payloads = [b"%d" % number for number in range(40)]
    with Threads(servers.kafka, "long", lambda: next(pace, 0.0), max_poll_interval_s=6.0) as group:
        group.send(payloads)
        with caplog.at_level("INFO"):
            group.start()
            wait_until(lambda: len(group.out()) >= 20)
            assert "lost" not in caplog.text
            assert "abandoned" not in caplog.text
            group.start()
            wait_until(lambda: len(group.out()) == 40)
            assert "lost" not in caplog.text
        assert Counter(group.out()) == Counter(payloads)


def hang(server: ServerProcess) -> None:
    """The server neither answers nor closes its connections."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)


def go_on(server: ServerProcess) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGCONT)


def stops_in_time(group: Group, server: ServerProcess, payloads: list[bytes], rate: float) -> None:
    """A worker at work is told to stop while a server hangs; the next one takes up what it gave back."""
    worker = group.start("one")
    worker.wait_until_ready()
    sender = threading.Thread(target=group.send, args=(payloads, rate))
    sender.start()
    group.wait_for(20)
    hang(server)
    try:
        wait_until_stuck(worker)
        start = time.monotonic()
        accounting = worker.stop()
        print(f"{type(server).__name__} hangs: ended in {time.monotonic() - start:.1f} s: {accounting}")
    finally:
        go_on(server)
    assert "reconciled" in accounting
    sender.join()
    worker.start()
    worker.wait_until_ready()
    group.wait_for(len(payloads))
    assert "reconciled" in worker.stop()
    assert group.counts() == Counter(alert.alert_id for p in payloads for alert in Decoder().decode(p))


def test_stops_in_time_where_redis_hangs(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "stop-redis") as group:
        stops_in_time(group, servers.redis, PACKETS[:400], 40)


def test_stops_in_time_where_kafka_hangs(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "stop-kafka") as group:
        stops_in_time(group, servers.kafka, PACKETS[:400], 40)


def test_stops_in_time_where_triton_hangs(servers: Servers, tmp_path: Path) -> None:
    if not triton_installed():
        pytest.skip("no Triton here: run `python -m deploy.local.triton_server setup`")
    payloads = [a.payload for a in simulate_alerts(8, 40, seed=5)]
    with (
        TritonServer(servers.models) as triton,
        Group(
            servers, tmp_path, "stop-triton", inference={"engine": "triton"}, triton={"url": triton.grpc_url}
        ) as group,
    ):
        stops_in_time(group, triton, payloads, 40)


def test_stops_in_time_before_the_model_is_there_and_says_so(servers: Servers, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Group(
            servers, tmp_path, "silent", inference={"engine": "triton"}, triton={"url": f"127.0.0.1:{port}"}
        ) as group:
            worker = group.start("one")
            wait_until(lambda: worker.get("/healthz")[0] == 200, worker)
            wait_until(lambda: "triton" in worker.get("/readyz")[1]["checks"], worker)
            status, body = worker.get("/readyz")
            assert status == 503
            assert body["checks"]["model"] == "not loaded yet"
            assert body["checks"]["triton"] in ("not asked yet", "is not ready")
            assert "alerts in 0 = " in worker.stop()


def test_a_second_signal_ends_at_once(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "twice") as group:
        worker = group.start("one")
        worker.wait_until_ready()
        hang(servers.redis)
        try:
            group.send(PACKETS[:10])
            wait_until_stuck(worker)
            worker.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM" in worker.log.read_text(), worker)
            with Stopwatch() as watch:
                worker.process.send_signal(signal.SIGTERM)
                assert worker.process.wait(300) == 128 + signal.SIGTERM
            assert watch.seconds < 2
        finally:
            go_on(servers.redis)


def test_health_names_what_is_unavailable(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "health") as group:
        worker = group.start("one")
        worker.wait_until_ready()
        checks = worker.get("/readyz")[1]["checks"]
        names = "model group work redis onnx kafka topics device models lag loop batch"
        assert set(checks) == set(names.split())
        servers.redis.kill()
        try:
            wait_until(lambda: worker.get("/readyz")[0] == 503, worker)
            assert "Redis is unavailable" in worker.get("/readyz")[1]["checks"]["redis"]
            group.send(PACKETS[:50])
            wait_until(lambda: "Redis is unavailable" in worker.get("/readyz")[1]["checks"]["work"], worker)
            assert worker.get("/healthz")[0] == 200
        finally:
            servers.redis.start()
        worker.wait_until_ready()
        group.wait_for(50)
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics") as response:
            metrics = response.read().decode()
        assert "trifid_ready 1.0" in metrics
        assert 'trifid_check_failed{check="redis"} 0.0' in metrics
        assert "trifid_dead_letter_ratio 0.0" in metrics
        worker.stop()


def test_a_spare_worker_is_ready_too(servers: Servers, tmp_path: Path) -> None:
    """One of five, for four partitions, has nothing to do; and no worker may have another's name."""
    with Group(servers, tmp_path, "spare") as group:
        for number in range(5):
            group.start(f"w{number}")
        for worker in group.workers:
            worker.wait_until_ready()
        group.start("w0")
        assert group.workers[0].process.wait(300) == 1
        assert "fenced this worker" in group.workers[0].tail()


def test_a_trace_goes_from_the_survey_through_the_worker_to_the_subscriber(
    servers: Servers, tmp_path: Path, receiver: Receiver
) -> None:
    endpoint = f"http://127.0.0.1:{receiver.server_port}"
    with Group(servers, tmp_path, "traced", tracing={"endpoint": endpoint, "share": 0.0}) as group:
        producer = Producer({"bootstrap.servers": servers.kafka.bootstrap})
        for number, payload in enumerate(PACKETS[:20]):
            headers = [("traceparent", SAMPLED.encode())] if number == 7 else []
            producer.produce(group.input, payload, headers=headers)
        assert producer.flush(120) == 0
        worker = group.start("w0")
        group.wait_for(20)
        carried = [
            (alert.alert_id, dict(message.headers() or []))
            for message in committed_messages(servers.kafka, f"{group.name}.ztf.all")
            for alert in read(message.value() or b"")
        ]
        worker.stop()
    assert len(carried) == 20
    ((alert_id, headers),) = [(name, found) for name, found in carried if "traceparent" in found]
    assert alert_id == IDS[7]
    spans = [
        s for _, request in receiver.requests for r in request.resource_spans for g in r.scope_spans for s in g.spans
    ]
    by_name = {span.name: span for span in spans}
    assert {"alert", "batch", "decode", "update_state", "assemble", "infer", "annotate", "publish", "deliver"} <= set(
        by_name
    )
    alert = by_name["alert"]
    assert (alert.trace_id.hex(), alert.parent_span_id.hex()) == (TRACE, PARENT)
    assert headers["traceparent"].decode() == f"00-{TRACE}-{alert.span_id.hex()}-01"
    assert {s.parent_span_id for s in spans if s.name in ("infer", "deliver")} == {by_name["batch"].span_id}


def test_a_stream_of_rubbish_stops_the_service(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "limit", pipeline={"dead_letter_min_alerts": 50}) as group:
        group.send(PACKETS[:200])
        worker = group.start("one")
        group.wait_for(200)
        before = len(group.published(group.letters))
        group.send([b"rubbish"] * 900)
        assert worker.process.wait(300) == 3
        assert "max_dead_letter_ratio = 0.5 allows" in worker.tail()
        assert "neither an Avro container" in worker.tail()
        first = len(group.published(group.letters)) - before
        assert first <= 200
        # A new start has forgotten the good ones, and takes no more than it needs to see.
        worker.start()
        assert worker.process.wait(300) == 3
        assert len(group.published(group.letters)) - first - before < 50
        # Let through on purpose.
        worker.command.insert(1, "TRIFID_PIPELINE__MAX_DEAD_LETTER_RATIO=1")
        worker.start()
        group.wait_for(200 + 900)
        worker.stop()
        assert len(group.published(group.letters)) == 900
        assert group.counts() == Counter(IDS[:200])


def dead_letters(group: Group, *arguments: str) -> str:
    """The output of ``trifid deadletter``."""
    result = CliRunner().invoke(deadletter, [*arguments, "--config", str(group.config)])
    assert result.exit_code == 0, result.output
    return result.output.strip()


DEAD_LETTER = [sys.executable, "-c", "from broker.cli.deadletter import deadletter; deadletter()"]


def partition_with_a_message(kafka: KafkaServer, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "look"})
    partitions = consumer.list_topics(topic, 60).topics[topic].partitions
    found = [p for p in partitions if consumer.get_watermark_offsets(TopicPartition(topic, p), 60)[1]]
    consumer.close()
    return found[0]


def put_letters(group: Group, letters: list[tuple[bytes, dict[str, str]]]) -> None:
    """Write dead letters as a worker does, a transaction for every seven of them."""
    producer = clients.producer(group.kafka, transactional=True)
    producer.init_transactions(60)
    for start in range(0, len(letters), 7):
        producer.begin_transaction()
        for payload, headers in letters[start : start + 7]:
            producer.produce(group.letters, payload, headers=headers)
        producer.commit_transaction(60)


def test_dead_letters_are_shown_and_replayed_once(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "letters") as group:
        servers.kafka.create_topics([group.letters], partitions=3)
        whole = b"the whole message " + b"x" * 100
        group.send([whole])
        source = {"source-topic": group.input, "source-partition": "1", "source-offset": "0"}
        wrong = [(b"%d" % n, {"reason": "wrong\x1b[2J", "survey": "ztf", **source}) for n in range(60)]
        odd = [(b"odd", {"reason": "odd", "survey": "unknown", **source}) for _ in range(20)]
        there = {**source, "source-partition": str(partition_with_a_message(servers.kafka, group.input))}
        cut = [
            (b"the wh", {"reason": "cut", "survey": "unknown", "cut-from-bytes": "118", **there}),
            (b"gone", {"reason": "cut", "survey": "unknown", "cut-from-bytes": "9999", **there, "source-offset": "77"}),
            (b"no source", {"reason": "cut", "survey": "unknown"}),
        ]
        put_letters(group, wrong + odd + cut)

        lines = dead_letters(group, "show", "--limit", "5").splitlines()
        assert len(lines) == 5
        assert "6 B of 118  cut" in "\n".join(lines)
        records = [
            json.loads(line)
            for line in dead_letters(
                group, "show", "--from-beginning", "--json", "--reason", "^wr", "--save", str(tmp_path / "saved")
            ).splitlines()
        ]
        assert len(records) == 60
        assert {record["reason"] for record in records} == {"wrong\x1b[2J"}
        assert records[0]["source"] == {"topic": group.input, "partition": 1, "offset": 0}
        assert sorted(path.read_bytes() for path in (tmp_path / "saved").iterdir()) == sorted(p for p, _ in wrong)
        assert "\x1b" not in dead_letters(group, "show", "--reason", "wrong")

        # A filter, a limit and then the rest: each of them once.
        before = Counter(group.published(group.input))
        assert dead_letters(group, "replay", "--reason", "wrong", "--limit", "10").startswith(
            "dead letters 83 = replayed 10 + replayed before 0 + left out 73"
        )
        assert dead_letters(group, "replay", "--survey", "unknown").startswith("dead letters 83 = replayed 21 + ")
        assert dead_letters(group, "replay").startswith(
            "dead letters 83 = replayed 50 + replayed before 31 + left out 0"
        )
        assert dead_letters(group, "replay") == (
            "dead letters 83 = replayed 0 + replayed before 81 + left out 0 + not replayable 2"
        )
        sent = Counter(group.published(group.input)) - before
        assert sent == Counter([p for p, _ in wrong + odd] + [whole])


def test_an_interrupted_replay_neither_repeats_nor_loses(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "interrupted") as group:
        servers.kafka.create_topics([group.letters, "interrupted.again"], partitions=3)
        payloads = [b"%06d" % n + b"." * 20_000 for n in range(4000)]
        put_letters(group, [(payload, {"reason": "x", "survey": "ztf"}) for payload in payloads])
        replay = [*DEAD_LETTER, "replay", "--to-topic", "interrupted.again", "--config", str(group.config)]
        kills = 0
        for _ in range(3):
            seen = len(group.published("interrupted.again"))
            with subprocess.Popen(replay, stdout=subprocess.DEVNULL) as process:
                while process.poll() is None and len(group.published("interrupted.again")) < seen + 200:
                    pass
                kills += process.poll() is None
                process.kill()
        total = dead_letters(group, "replay", "--to-topic", "interrupted.again")
        assert total.startswith("dead letters 4000 = replayed ")
        assert Counter(group.published("interrupted.again")) == Counter(payloads)
        print(f"killed {kills} times; then: {total}")
        assert kills >= 1


def test_a_version_is_promoted_and_rolled_back_while_a_worker_reads(servers: Servers, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for seed in (0, 10):
        build(build_random_repository(tmp_path / f"run{seed}", seed=seed), models, "auto")
    own = {"inference": {"engine": "onnx", "model_repository": str(models), "threads": 1}}
    over, sent = threading.Event(), 0

    def send(group: Group) -> None:
        nonlocal sent
        with Replay(group.kafka, group.input, 60.0) as replay:
            for payload in PACKETS:
                if over.is_set():
                    return
                replay.send(payload)
                sent += 1

    with Group(servers, tmp_path, "promoted", **own) as group:  # type: ignore[arg-type]
        worker = group.start("a")
        worker.wait_until_ready()

        def versions() -> Counter[str]:
            return Counter(a.model_version for payload in group.published() for a in read(payload))

        sending = threading.Thread(target=send, args=(group,))
        sending.start()
        try:
            seen = versions()
            for command, version in ((["promote", "0.0.10"], "0.0.10"), (["rollback"], "0.0.0")):
                done = CliRunner().invoke(models_command, [*command, "--repository", str(models)])
                assert done.exit_code == 0, done.output
                name = f"trifid-random {version}"
                wait_until(lambda n=name, s=seen[name]: versions()[n] > s, worker)  # type: ignore[misc]
                seen = Counter({f"trifid-random {v}": versions()[f"trifid-random {v}"] + 60 for v in ("0.0.0",)})
        finally:
            over.set()
            sending.join()
        group.wait_for(sent)
        assert metric(worker, 'trifid_model_switches_total{outcome="done"}') == 2
        assert metric(worker, 'trifid_model_switches_total{outcome="failed"}') == 0
        worker.stop()
        assert set(versions()) == {"trifid-random 0.0.0", "trifid-random 0.0.10"}
        assert group.counts() == dict.fromkeys(IDS[:sent], 1)
        assert group.published(group.letters) == []
