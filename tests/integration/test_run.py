"""The whole service as an operator starts it, against real Kafka, Redis and Triton at once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fastavro
import numpy as np
import pytest
import redis
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from fastavro.utils import generate_one

from broker.avro.wire import confluent_message
from broker.client import PublishedAnnotation, Subscription
from broker.config import KafkaSettings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.records import Alert, ObservedSpectrum, Spectrum
from broker.spectra.message import write
from broker.streaming.replay import Replay
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from deploy.local.triton_server import TritonServer, triton_installed
from tests.integration.test_service import metric, wait_until
from tests.random_models import MODEL_REPO

PACKETS = [a.payload for a in simulate_alerts(40, 40, seed=11)]
IDS = [Decoder().decode(payload)[0].alert_id for payload in PACKETS]
SPECTRUM = Spectrum(
    np.arange(3850.0, 9000.0, 2.0), np.linspace(1, 2, 2575, dtype=np.float32), np.full(2575, 0.01, "f4")
)
BAD = [b"no alert", PACKETS[0][:-40], b"\x00\x00\x0f\x42\x40 unknown schema"]


@dataclass
class Servers:
    kafka: KafkaServer
    redis: RedisServer
    triton: TritonServer


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    if not triton_installed():
        pytest.skip("no Triton here: run `python -m deploy.local.triton_server setup`")
    with KafkaServer() as kafka, RedisServer(persistent=True) as redis, TritonServer(MODEL_REPO) as triton:
        yield Servers(kafka, redis, triton)


class Worker:
    """A process of ``trifid run`` with topics, group and settings of its own."""

    def __init__(self, servers: Servers, folder: Path, name: str, **pipeline: float) -> None:
        self.input, self.prefix = f"{name}.in", name
        servers.kafka.create_topics([self.input], partitions=3)
        self.kafka = KafkaSettings(bootstrap_servers=servers.kafka.bootstrap)
        self.port = free_port()
        self.log = folder / "worker.log"
        config = folder / "trifid.toml"
        config.write_text(f"""
[kafka]
bootstrap_servers = "{servers.kafka.bootstrap}"
input_topics = ["{self.input}"]
spectra_topic = "{name}.spectra"
group_id = "{name}"
worker_id = "one"
session_timeout_s = 6.0
[redis]
url = "{servers.redis.url}"
[inference]
engine = "triton"
[triton]
url = "{servers.triton.grpc_url}"
[pipeline]
batch_size = {pipeline.get("batch_size", 64)}
first_backoff_s = 0.2
max_backoff_s = 1.0
[publish]
topic_prefix = "{name}"
[metrics]
address = "127.0.0.1"
port = {self.port}
""")
        self._command = [sys.executable, "-m", "broker.cli", "run", "--config", str(config)]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env={**os.environ})

    def stop(self) -> str:
        """SIGTERM; the end of its output, which holds the accounting."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(300) == 0, self.log.read_text()[-2000:]
        return self.log.read_text().strip().splitlines()[-1]

    def send(self, payloads: list[bytes]) -> None:
        with Replay(self.kafka, self.input) as replay:
            for payload in payloads:
                replay.send(payload)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for(self, count: int) -> None:
        """Until so many annotations are committed."""
        admin, topic = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers}), f"{self.prefix}.ztf.all"
        wait_until(lambda: topic in admin.list_topics(timeout=60).topics)  # the worker makes it when it starts
        with Subscription(topic, self.kafka.bootstrap_servers, start="earliest") as subscription:
            assert len(list(islice(subscription, count))) == count

    def wait_until_waiting_for(self, dependency: str) -> None:
        """Until the worker has noticed that a server is unavailable."""
        waits = f'trifid_dependency_waits_total{{dependency="{dependency}"}}'
        wait_until(lambda: metric(self, waits) > 0)

    def annotations(self, count: int, topic: str = "ztf.all", seconds: float = 300.0) -> list[PublishedAnnotation]:
        """Up to ``count`` committed annotations, waiting for them; then whatever else comes in a second."""
        found: list[PublishedAnnotation] = []
        end = time.monotonic() + seconds
        with Subscription(
            f"{self.prefix}.{topic}", self.kafka.bootstrap_servers, start="earliest", idle_timeout=1.0
        ) as subscription:
            while time.monotonic() < end:
                found.extend(subscription)
                if len(found) >= count:
                    break
        return found


def dead_letters(worker: Worker, count: int) -> list[dict[str, str]]:
    consumer = Consumer(
        {
            "bootstrap.servers": worker.kafka.bootstrap_servers,
            "group.id": "letters",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([f"{worker.prefix}.deadletter"])
    messages = consumer.consume(count, 120)
    consumer.close()
    return [{name: value.decode() for name, value in message.headers() or []} for message in messages]


def test_everything_that_comes_in_goes_out(servers: Servers, tmp_path: Path) -> None:
    with Worker(servers, tmp_path, "whole") as worker:
        worker.send([*PACKETS[:300], *BAD, *PACKETS[300:]])
        found = worker.annotations(len(PACKETS))
        assert Counter(a.alert_id for a in found) == Counter(IDS)
        for annotation in found:
            assert sum(annotation.probabilities) == pytest.approx(1, abs=1e-9)
            assert (annotation.reason is not None) == (annotation.best_class == "NotClassified")
        classified = [a for a in found if a.reason is None]
        assert len(classified) > 500
        assert all(1 <= len(a.neighbours) <= 5 and a.anomaly_score is not None for a in classified)

        best = Counter(a.best_class for a in classified).most_common(1)[0]
        assert len(worker.annotations(best[1], f"ztf.{best[0].lower()}")) == best[1]

        letters = dead_letters(worker, len(BAD))
        assert {letter["source-topic"] for letter in letters} == {worker.input}
        assert all(letter["source-partition"].isdigit() and letter["source-offset"].isdigit() for letter in letters)
        reasons = " ".join(letter["reason"] for letter in letters)
        assert "unknown schema id 1000000" in reasons
        assert "neither an Avro container" in reasons

        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics") as response:
            metrics = response.read().decode()
        assert f'trifid_alerts_in_total{{survey="ztf"}} {len(PACKETS)}.0' in metrics
        for name in ("trifid_alerts_out_total", "trifid_stage_seconds_bucket", "trifid_consumer_lag_alerts",
                     "trifid_anomaly_score_bucket", "trifid_batch_alerts_bucket"):  # fmt: skip
            assert name in metrics
        accounting = worker.stop()
        assert f"alerts in {len(PACKETS) + len(BAD)} = classified {len(classified)} + " in accounting
        assert f"dead-lettered {len(BAD)}: reconciled" in accounting


def test_a_worker_killed_at_work_loses_and_repeats_nothing(servers: Servers, tmp_path: Path) -> None:
    with Worker(servers, tmp_path, "killed", batch_size=8) as worker:
        for crash in range(3):
            worker.send(PACKETS[crash::3])
            worker.wait_for(len(PACKETS) // 3 * crash + 20)
            worker.process.kill()
            worker.process.wait()
            worker.start()
        found = worker.annotations(len(PACKETS))
        assert Counter(a.alert_id for a in found) == Counter(IDS)
        last = worker.stop()
    assert "reconciled" in last
    # The last crash left something to do.
    assert int(last.split()[2]) > len(PACKETS) // 20


def test_redis_and_triton_may_be_unavailable_for_a_while(servers: Servers, tmp_path: Path) -> None:
    with Worker(servers, tmp_path, "away", batch_size=16) as worker:
        worker.send(PACKETS[:300])
        worker.wait_for(50)
        servers.redis.kill()
        worker.send(PACKETS[300:500])
        worker.wait_until_waiting_for("redis")
        servers.redis.start()
        servers.triton.kill()
        worker.send(PACKETS[500:700])
        worker.wait_until_waiting_for("triton")
        servers.triton.start()
        found = worker.annotations(700)
        assert Counter(a.alert_id for a in found) == Counter(IDS[:700])
        assert "reconciled" in worker.stop()


def test_a_follow_up_spectrum_and_a_counterpart_change_the_annotation(servers: Servers, tmp_path: Path) -> None:
    """The topic ``spectra``, LSST beside ZTF and a catalogue, all live."""
    star = max(
        (a for p in PACKETS for a in Decoder().decode(p) if isinstance(a, Alert)), key=lambda a: len(a.light_curve)
    )
    packets = [p for p, i in zip(PACKETS, IDS, strict=True) if i <= star.alert_id][-200:]
    lsst = lsst_packet(star.ra, star.dec + 0.3 / 3600)
    spectrum = ObservedSpectrum("follow-up", star.ra, star.dec, 61000.0, SPECTRUM)
    with redis.Redis.from_url(servers.redis.url) as client:
        client.flushall()  # other tests have sent later alerts of the star
    with Worker(servers, tmp_path, "spectra") as worker:
        worker.send(packets)
        worker.annotations(len(packets))
        worker.send([lsst])
        (counterpart,) = worker.annotations(1, "lsst.all")
        assert counterpart.associated == (f"ztf:{star.object_id}",)
        with Replay(worker.kafka, "spectra.spectra") as replay:
            replay.send(write(spectrum))
            replay.send(b"no spectrum")
        found = worker.annotations(len(packets) + 1)
        (again,) = [a for a in found if a.trigger == "spectrum"]
        assert (again.object_id, again.alert_id) == (star.object_id, star.alert_id)
        assert "spectrum" in again.modalities
        assert again.associated == (f"lsst:{counterpart.object_id}",)
        accounting = worker.stop()
    assert f"alerts in {len(packets) + 2} = " in accounting
    assert "dead-lettered 1; spectra in 1 = stored 1 + dead-lettered 0, upon which 2 objects" in accounting
    assert "reconciled" in accounting


def lsst_packet(ra: float, dec: float) -> bytes:
    """A packet of LSST's schema 9.0 at a position, of one detection."""
    schema = lsst_schema(900)
    record = generate_one(schema)
    record |= dict.fromkeys(("ssSource", "MPCORB", "prvDiaSources", "prvDiaForcedSources"))
    record["diaSource"] |= {
        "ra": ra, "dec": dec, "midpointMjdTai": 61000.0, "band": "r", "psfFlux": 5e4, "psfFluxErr": 100.0,
        "diaObjectId": 123456, "ssObjectId": None,
    }  # fmt: skip
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return confluent_message(900, out.getvalue())


def test_an_archive_is_replayed_and_a_subscriber_reads_it(servers: Servers, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "night.tar.gz", "w:gz") as archive:
        for number, payload in enumerate(PACKETS[:100]):
            member = tarfile.TarInfo(f"{number}.avro")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))

    def trifid(*arguments: str) -> str:
        command = [sys.executable, "-m", "broker.cli", *arguments, "--bootstrap-servers", servers.kafka.bootstrap]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

    with Worker(servers, tmp_path, "cli") as worker:
        start = time.monotonic()
        sent = trifid("replay", str(tmp_path / "night.tar.gz"), "--topic", worker.input, "--rate", "50")
        assert sent == f"100 messages sent to {worker.input}\n"
        assert time.monotonic() - start > 1.9
        read = trifid("subscribe", "cli.ztf.all", "--from-beginning", "--limit", "100", "--json")
        records = [json.loads(line) for line in read.splitlines()]
        assert Counter(record["alertId"] for record in records) == Counter(IDS[:100])
        lines = trifid("subscribe", "cli.ztf.all", "--from-beginning", "--limit", "3").splitlines()
        assert lines[0].startswith("object")
        assert len(lines) == 4
