"""Topics and groups that change under a running worker: missing, grown, deleted, recreated; quotas; upgrades."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from broker.batch import BatchResult, IncomingMessage
from broker.config import KafkaSettings
from broker.embedded.ports import free_port
from broker.errors import DependencyUnavailableError
from broker.metrics import BATCHES_ABANDONED, TOPICS_RECREATED
from broker.streaming.replay import Replay
from broker.streaming.topics import TopicAdmin
from deploy.local.kafka_server import KafkaServer
from tests.faults.proxy import BadNetwork
from tests.integration.test_service import (
    IDS,
    PACKETS,
    Group,
    Servers,
    Threads,
    Worker,
    metric,
    servers,
    wait_until,
)
from tests.kafka_groups import members_of
from tests.random_models import MODEL_REPO

__all__ = ["servers"]
SECONDS = 100.0
"""For what has to be noticed within seconds, on a busy machine: a third of librdkafka's five minutes."""

MISSING_AT_ONCE = 'TRIFID_KAFKA__OPTIONS={"topic.metadata.propagation.max.ms": 1000}'
"""A producer waits for a topic that is not there for 30 s from the first message to it on, as one just created may not
have reached all brokers. With one broker that is time in which nothing happens."""


def delete(kafka: KafkaServer, *topics: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_topics(list(topics), operation_timeout=10).values():
        future.result()
    wait_until(lambda: not set(topics) & set(admin.list_topics(timeout=60).topics))


def check(worker: Worker, name: str) -> str:
    body = worker.get("/readyz")[1]
    return str(body["checks"].get(name, "")) if body else ""


def send_to(kafka: KafkaServer, topic: str, partition: int, payloads: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "message.timeout.ms": 120_000})
    for payload in payloads:
        producer.produce(topic, payload, partition=partition)
    assert producer.flush(120) == 0


def test_a_missing_topic_is_named_and_read_when_it_comes(servers: Servers, tmp_path: Path) -> None:
    later = "deaf.later"
    with Group(servers, tmp_path, "deaf", kafka={"input_topics": ["deaf.in", later], "metadata_refresh_s": 2}) as group:
        worker = group.start("one")
        wait_until(lambda: later in check(worker, "topics"), worker)
        wait_until(lambda: check(worker, "group") == "ok", worker)
        status, body = worker.get("/readyz")
        assert status == 503
        assert body["checks"]["topics"].startswith("deaf.later: no such topic")
        assert "deaf.in" not in body["checks"]["topics"].split(":")[0]
        servers.kafka.create_topics([later], partitions=2)
        send_to(servers.kafka, later, 0, PACKETS[:20])
        send_to(servers.kafka, later, 1, PACKETS[20:40])
        group.wait_for(40, SECONDS)
        worker.wait_until_ready()
        # Partitions that are added, likewise.
        admin = AdminClient({"bootstrap.servers": servers.kafka.bootstrap})
        admin.create_partitions([NewPartitions(later, 3)])[later].result()
        send_to(servers.kafka, later, 2, PACKETS[40:50])
        group.wait_for(50, SECONDS)
        assert group.counts() == Counter(IDS[:50])
        worker.stop()


def test_a_worker_that_has_only_missing_topics_says_so(servers: Servers, tmp_path: Path) -> None:
    changes = {"input_topics": ["typo.inn", "^typo[.]x.*"], "metadata_refresh_s": 2}
    with Group(servers, tmp_path, "typo", kafka=changes) as group:
        worker = group.start("one")
        wait_until(lambda: "typo.inn, ^typo[.]x.*: no such topic" in check(worker, "topics"), worker)
        assert worker.get("/readyz")[0] == 503
        servers.kafka.create_topics(["typo.inn", "typo.x1"], partitions=1)
        send_to(servers.kafka, "typo.inn", 0, PACKETS[:10])
        send_to(servers.kafka, "typo.x1", 0, PACKETS[10:20])
        group.wait_for(20, SECONDS)
        worker.wait_until_ready()
        assert group.counts() == Counter(IDS[:20])
        worker.stop()


def test_input_topics_are_created_where_asked_for(servers: Servers, tmp_path: Path) -> None:
    changes = {"input_topics": ["made.alerts", "^made[.]other"], "create_input_topics": True, "topic_partitions": 3}
    with Group(servers, tmp_path, "made", kafka=changes) as group:
        worker = group.start("one")
        wait_until(lambda: check(worker, "topics").startswith("^made[.]other: no such topic"), worker)
        admin = AdminClient({"bootstrap.servers": servers.kafka.bootstrap})
        assert len(admin.list_topics("made.alerts", timeout=60).topics["made.alerts"].partitions) == 3


def test_latency_counts_from_the_messages_own_time_and_silence_is_seen(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "waited") as group:
        servers.kafka.create_topics(["waited.deadletter"], partitions=1)
        hour_ago = round((time.time() - 3000) * 1000)
        producer = Producer({"bootstrap.servers": servers.kafka.bootstrap})
        for payload in PACKETS[:10]:
            producer.produce(group.input, payload, timestamp=hour_ago)
        assert producer.flush(120) == 0
        begun = time.time()
        worker = group.start("one")
        worker.wait_until_ready()
        group.wait_for(10)
        wait_until(lambda: metric(worker, "trifid_alert_latency_seconds_count") == 10, worker)
        assert 3000 * 10 < metric(worker, "trifid_alert_latency_seconds_sum") < (3000 + 300) * 10
        last = metric(worker, 'trifid_last_message_timestamp_seconds{topic="waited.in"}')
        assert begun < last <= time.time()
        worker.stop()


@pytest.mark.parametrize("running", [True, False])
def test_an_input_topic_made_anew_is_read_from_its_beginning(
    servers: Servers, running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"anew-{running}".lower()
    topic = f"{name}.in"
    old, new = [b"old %d" % n for n in range(60)], [b"new %d" % n for n in range(300)]
    with Threads(servers.kafka, name, lambda: 0.0, metadata_refresh_s=1.0, session_timeout_s=6.0) as group:
        send_to(servers.kafka, topic, 0, old)
        group.start()
        wait_until(lambda: len(group.out()) == 60)
        recreated = TOPICS_RECREATED.labels(topic)._value.get()
        if not running:
            group.stop(0)
        delete(servers.kafka, topic)
        servers.kafka.create_topics([topic], partitions=4)
        send_to(servers.kafka, topic, 0, new)  # at once more than the old one had
        if not running:
            wait_until(lambda: not assignments(servers.kafka, name))  # once the session is over
            group.start()
        wait_until(lambda: len(group.out()) >= 360)
        time.sleep(3)
        assert Counter(group.out()) == Counter(old + new)
        if running:
            assert TOPICS_RECREATED.labels(topic)._value.get() == recreated + 1
            assert f"input topic {topic} was deleted and recreated" in caplog.text


def test_offsets_of_a_topic_of_the_same_name_are_not_taken(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Committed just after the topic was recreated, by a batch that was in flight: Kafka keeps such offsets."""
    name, topic = "stale", "stale.in"
    payloads = [b"%d" % n for n in range(100)]
    with Threads(servers.kafka, name, lambda: 0.0, metadata_refresh_s=1.0) as group:
        send_to(servers.kafka, topic, 0, payloads)
        consumer = Consumer({"bootstrap.servers": servers.kafka.bootstrap, "group.id": name})
        consumer.commit(offsets=[TopicPartition(topic, 0, 60, "topic-id=AbcdefghijklmnopqrstuQ")], asynchronous=False)
        consumer.close()
        group.start()
        wait_until(lambda: len(group.out()) >= 100)
        assert Counter(group.out()) == Counter(payloads)
        assert "id AbcdefghijklmnopqrstuQ" not in caplog.text
        assert "before AbcdefghijklmnopqrstuQ" in caplog.text
        (committed,) = TopicAdmin(KafkaSettings(bootstrap_servers=servers.kafka.bootstrap)).committed(
            name, [TopicPartition(topic, 0)]
        )
        now = TopicAdmin(KafkaSettings(bootstrap_servers=servers.kafka.bootstrap)).ids([topic])[topic]
        assert (committed.offset, committed.metadata) == (100, f"topic-id={now}")


def test_deleted_output_topics_are_made_again(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "outputs", kafka={"metadata_refresh_s": 1}) as group:
        worker = group.start("one", before=[MISSING_AT_ONCE])
        worker.wait_until_ready()
        group.send(PACKETS[:20])
        group.wait_for(20)
        delete(servers.kafka, "outputs.ztf.all")
        time.sleep(2)
        group.send(PACKETS[20:60])
        wait_until(lambda: "outputs.ztf.all" in AdminClient(
            {"bootstrap.servers": servers.kafka.bootstrap}
        ).list_topics(timeout=60).topics, worker)  # fmt: skip
        group.wait_for(40)
        assert group.counts() == Counter(IDS[20:60])
        assert "reconciled" in worker.stop()


def test_the_error_names_the_output_topic_that_is_gone(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "gone") as group:
        worker = group.start("one", before=[MISSING_AT_ONCE])
        worker.wait_until_ready()
        group.send(PACKETS[:20])
        group.wait_for(20)
        worker.stop()
        changed = group.config.read_text().replace("[kafka]", "[kafka]\ncreate_topics = false\nmetadata_refresh_s = 1")
        group.config.write_text(changed)
        delete(servers.kafka, "gone.ztf.all")
        worker.start()
        worker.wait_until_ready()
        group.send(PACKETS[20:60])
        wait_until(lambda: "gone.ztf.all" in check(worker, "work"), worker)
        servers.kafka.create_topics(["gone.ztf.all"], partitions=1)
        group.wait_for(40)
        assert group.counts() == Counter(IDS[20:60])
        worker.stop()


def test_a_tight_quota_makes_batches_smaller(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """A batch of 20 dead letters of 1,000 bytes never gets through within half of the transaction's 10 s.

    The first batch may be smaller, and does get through: no quota is used up before it.
    """
    name = "quota"
    rng = random.Random(4)
    payloads = [rng.randbytes(1000) for _ in range(44)]
    servers.kafka.tool(
        "configs", "--alter", "--entity-type", "clients", "--entity-name", f"{name}-w0", "--add-config",
        "producer_byte_rate=800",
    )  # fmt: skip
    with Threads(servers.kafka, name, lambda: 0.0, transaction_timeout_s=10.0) as group:
        group.send(payloads)
        with caplog.at_level("INFO"):
            group.start()
            wait_until(lambda: len(group.out()) >= len(payloads))
        assert re.search(r"batches have up to \d+ messages from now on", caplog.text)
        group.stop(0)
        assert Counter(group.out()) == Counter(payloads)


def assignments(kafka: KafkaServer, group_id: str) -> list[list[str]]:
    """Partitions by member."""
    members = members_of(kafka.bootstrap, group_id)
    return sorted(sorted(f"{p.topic}[{p.partition}]" for p in m.assignment.topic_partitions) for m in members)


def shared_out(kafka: KafkaServer, group: Group, members: int) -> bool:
    """Whether so many members have the group's four partitions of alerts between them."""
    found = assignments(kafka, group.name)
    return len(found) == members and sum(p.startswith(group.input) for member in found for p in member) == 4


def test_partitions_of_spectra_do_not_take_the_place_of_alerts(servers: Servers) -> None:
    """Six workers for six partitions of alerts, and four of spectra."""
    name = "apart"
    servers.kafka.create_topics([f"{name}.alerts", f"{name}.spectra"], partitions=6)
    changes = {"input_topics": [f"{name}.alerts"], "spectra_topic": f"{name}.spectra", "metadata_refresh_s": 1.0}
    with Threads(servers.kafka, name, lambda: 0.0, **changes) as group:
        for _ in range(6):
            group.start()
        wait_until(lambda: [len(a) for a in assignments(servers.kafka, name)] == [1] * 6)
        wait_until(lambda: [len(a) for a in assignments(servers.kafka, f"{name}-spectra")] == [1] * 6)
        alerts, spectra = [b"alert %d" % n for n in range(300)], [b"spectrum %d" % n for n in range(100)]
        for partition in range(6):
            send_to(servers.kafka, f"{name}.alerts", partition, alerts[partition::6])
            send_to(servers.kafka, f"{name}.spectra", partition, spectra[partition::6])
        wait_until(lambda: len(group.out()) >= 400)
        time.sleep(1)
        assert Counter(group.out()) == Counter(alerts + spectra)


@pytest.mark.parametrize("long", [False, True])
def test_a_batch_of_spectra_that_is_abandoned_does_not_stop_the_alerts(
    servers: Servers, long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """While it waits for a dependency, or takes long, nothing is read; and then its partitions go to a new worker."""
    name = f"both-{long}".lower()
    servers.kafka.create_topics([f"{name}.alerts", f"{name}.spectra"], partitions=2)
    changes = {"input_topics": [f"{name}.alerts"], "spectra_topic": f"{name}.spectra", "metadata_refresh_s": 1.0}
    held, over, abandoned = threading.Event(), threading.Event(), BATCHES_ABANDONED._value.get()

    class Holding(Threads):
        def process(self, batch: Sequence[IncomingMessage]) -> BatchResult:
            if batch[0].origin.topic == f"{name}.spectra" and not over.is_set():
                held.set()
                if not long:
                    raise DependencyUnavailableError("a test")
                over.wait(300)
            return super().process(batch)

    with Holding(servers.kafka, name, lambda: 0.0, **changes) as group, caplog.at_level("INFO"):
        group.start()
        wait_until(lambda: [len(a) for a in assignments(servers.kafka, name)] == [2])
        wait_until(lambda: [len(a) for a in assignments(servers.kafka, f"{name}-spectra")] == [2])
        spectra, alerts = [b"spectrum %d" % n for n in range(20)], [b"alert %d" % n for n in range(20)]
        for partition in range(2):
            send_to(servers.kafka, f"{name}.spectra", partition, spectra[partition::2])
        assert held.wait(300)
        group.start()
        if long:  # the worker polls, with its consumers paused, and the answer to the group waits for the batch
            wait_until(lambda: f"partitions revoked: {name}.spectra" in caplog.text)
            over.set()
        wait_until(lambda: BATCHES_ABANDONED._value.get() > abandoned)
        over.set()
        for partition in range(2):
            send_to(servers.kafka, f"{name}.alerts", partition, alerts[partition::2])
        wait_until(lambda: len(group.out()) >= 40)
        assert Counter(group.out()) == Counter(alerts + spectra)


def test_spectra_go_on_where_an_earlier_version_was(servers: Servers) -> None:
    """Its workers read alerts and spectra in one group: new ones wait for their end, and take up their offsets."""
    name = "handover"
    topics = [f"{name}.alerts", f"{name}.spectra"]
    servers.kafka.create_topics(topics, partitions=2)
    payloads = [b"spectrum %d" % n for n in range(50)]
    send_to(servers.kafka, topics[1], 0, payloads[:30])
    earlier = Consumer(
        {
            "bootstrap.servers": servers.kafka.bootstrap, "group.id": name, "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "partition.assignment.strategy": "cooperative-sticky",
        }
    )  # fmt: skip
    earlier.subscribe(topics)
    read = earlier.consume(30, 120)
    assert len(read) == 30
    earlier.commit(asynchronous=False)
    changes = {"input_topics": [topics[0]], "spectra_topic": topics[1], "metadata_refresh_s": 1.0}
    with Threads(servers.kafka, name, lambda: 0.0, **changes) as group:
        group.start()
        send_to(servers.kafka, topics[1], 0, payloads[30:])
        late = [m for _ in range(30) for m in earlier.consume(10, 0.3)]
        assert [m.value() for m in late] == payloads[30:]
        assert group.out() == []
        more = [b"late %d" % n for n in range(5)]
        earlier.commit(asynchronous=False)
        earlier.close()
        send_to(servers.kafka, topics[1], 0, more)
        wait_until(lambda: len(group.out()) >= 5)
        time.sleep(2)
        assert Counter(group.out()) == Counter(more)


def test_offsets_that_a_transaction_holds_are_waited_for(servers: Servers) -> None:
    """Those that an earlier version's worker has just committed are not taken for none, and read from the beginning."""
    name, topic = "unstable", "unstable.in"
    servers.kafka.create_topics([topic], partitions=2)
    places = [TopicPartition(topic, partition) for partition in range(2)]
    admin = TopicAdmin(KafkaSettings(bootstrap_servers=servers.kafka.bootstrap))

    def committed() -> list[int]:
        return [p.offset for p in admin.committed(name, places)]

    def is_settled() -> bool:
        with suppress(DependencyUnavailableError):
            return committed() == [7, OFFSET_INVALID]
        return False

    consumer = Consumer({"bootstrap.servers": servers.kafka.bootstrap, "group.id": name})
    producer = Producer({"bootstrap.servers": servers.kafka.bootstrap, "transactional.id": name})
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], consumer.consumer_group_metadata(), 60)
    with pytest.raises(DependencyUnavailableError, match=r"group unstable, unstable\.in\[0\]: .*unstable offsets"):
        committed()
    producer.commit_transaction(60)
    wait_until(is_settled)  # Kafka notes the end a little after it has answered
    consumer.close()


def test_a_group_of_another_protocol_is_named(servers: Servers, tmp_path: Path) -> None:
    with Group(servers, tmp_path, "mixed") as group:
        other = Consumer({"bootstrap.servers": servers.kafka.bootstrap, "group.id": "mixed"})
        other.subscribe([group.input])
        other.poll(10)
        worker = group.start("one")
        wait_until(lambda: "another assignor or group protocol" in check(worker, "group"), worker)
        assert worker.get("/readyz")[0] == 503
        other.close()
        worker.wait_until_ready()
        worker.stop()


def test_workers_join_an_eager_group_where_told_to(servers: Servers) -> None:
    name = "eager"
    with Threads(servers.kafka, name, lambda: 0.02, group_protocol="eager") as group:
        other = Consumer({"bootstrap.servers": servers.kafka.bootstrap, "group.id": name, "enable.auto.commit": False})
        other.subscribe([f"{name}.in"])
        other.poll(5)
        payloads = [b"%d" % n for n in range(400)]
        group.start()
        wait_until(lambda: other.poll(0.1) is None and len(assignments(servers.kafka, name)) == 2)
        other.close()
        group.send(payloads)
        group.start()
        wait_until(lambda: len(group.out()) >= 400)
        time.sleep(1)
        assert Counter(group.out()) == Counter(payloads)


RELEASE = "cb82431"
"""The last release, of which workers may run beside those of now (docs/delivery.md, Upgrades)."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last release's code and model."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", RELEASE, "broker", "model_repo"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"no history with commit {RELEASE} here")
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def test_a_static_member_does_not_read_on_what_its_predecessor_read(servers: Servers) -> None:
    """An input topic is taken out of the settings and the worker started again, within the session's time."""
    name, dropped = "shrunk", "shrunk.dropped"
    servers.kafka.create_topics([dropped], partitions=2)
    with Threads(servers.kafka, name, lambda: 0.0, static_membership=True) as group:
        before = Consumer(
            {
                "bootstrap.servers": servers.kafka.bootstrap, "group.id": name, "group.instance.id": "w0",
                "partition.assignment.strategy": "cooperative-sticky", "session.timeout.ms": 30000,
                "enable.auto.commit": False, "topic.metadata.refresh.interval.ms": 1000,
            }
        )  # fmt: skip
        before.subscribe([f"{name}.in", dropped])
        wait_until(lambda: before.poll(0.1) is None and len(before.assignment()) == 6)
        before.close()
        send_to(servers.kafka, dropped, 0, [b"dropped %d" % n for n in range(5)])
        send_to(servers.kafka, dropped, 1, [b"dropped too %d" % n for n in range(5)])
        payloads = [b"%d" % n for n in range(50)]
        group.send(payloads)
        group.start()
        wait_until(lambda: len(group.out()) >= 50)
        wait_until(lambda: assignments(servers.kafka, name) == [[f"{name}.in[{n}]" for n in range(4)]])
        assert Counter(group.out()) == Counter(payloads)


class Sender(threading.Thread):
    """Sends packets to a group's input topic at a steady rate, until they are out or it is stopped."""

    def __init__(self, group: Group, packets: Sequence[bytes], rate: float) -> None:
        super().__init__()
        self.sent = 0
        self._group, self._packets, self._rate = group, packets, rate
        self._end = threading.Event()

    def run(self) -> None:
        with Replay(self._group.kafka, self._group.input, self._rate) as replay:
            for packet in self._packets:
                if self._end.is_set():
                    break
                replay.send(packet)
                self.sent += 1

    def stop(self) -> None:
        self._end.set()
        self.join()


@pytest.mark.timeout(900)
def test_workers_of_the_last_release_are_replaced_one_by_one(servers: Servers, release: Path, tmp_path: Path) -> None:
    """Under load, alerts and spectra; each of them once."""
    spectra = "upgrade.spectra"
    with Group(servers, tmp_path, "upgrade", kafka={"spectra_topic": spectra, "metadata_refresh_s": 1.0}) as group:
        servers.kafka.create_topics([spectra], partitions=2)
        new_config = group.config.read_text()
        # What the two keep in Redis, and whether one reads the other's, is another matter: each has its own here.
        old = new_config.replace(servers.redis.url, servers.redis.url.rsplit("/", 1)[0] + "/7")
        old = old.replace("metadata_refresh_s = 1.0\n", "")
        old = old.replace(str(servers.models), str(release / "model_repo"))
        old = old.replace(str(MODEL_REPO / "reference_set.npz"), str(release / "model_repo/reference_set.npz"))
        workers = []
        for name in ("w0", "w1"):
            group.config = tmp_path / f"old-{name}.toml"
            group.config.write_text(old)
            worker = group.start(name, before=["-C", str(release), f"PYTHONPATH={release}"])
            workers.append(worker)
        for worker in workers:  # the release's functions are compiled first
            wait_until(lambda worker=worker: worker.get("/readyz")[0] == 200, worker)  # type: ignore[misc]
        sender = Sender(group, PACKETS, 30.0)
        sender.start()
        group.wait_for(50)
        send_to(servers.kafka, spectra, 0, [b"no spectrum: before %d" % n for n in range(10)])
        wait_until(lambda: len(group.published(group.letters)) == 10, *workers)
        group.config = tmp_path / "new.toml"
        group.config.write_text(new_config)
        third = group.start("w2")  # one beside the old ones
        third.wait_until_ready()
        # Its arrival sets off a rebalance of several rounds; between two of them partitions belong to nobody.
        wait_until(lambda: shared_out(servers.kafka, group, members=3), *workers, third)
        send_to(servers.kafka, spectra, 0, [b"no spectrum: meanwhile %d" % n for n in range(10)])
        send_to(servers.kafka, spectra, 1, [b"no spectrum: meanwhile too %d" % n for n in range(10)])
        wait_until(lambda: len(group.published(group.letters)) == 30, *workers, third)
        for worker in workers:  # and then in the place of each
            worker.stop()
        for name in ("w0", "w1"):
            group.start(name).wait_until_ready()
        send_to(servers.kafka, spectra, 1, [b"no spectrum: after %d" % n for n in range(10)])
        last = sender.sent + 60
        wait_until(lambda: sender.sent >= min(last, len(IDS)), *group.workers)
        sender.stop()
        group.wait_for(sender.sent + 40)
        time.sleep(2)
        assert group.counts() == Counter(IDS[: sender.sent])
        letters = group.published(group.letters)
        assert len(letters) == len(set(letters)) == 40
        for worker in group.workers[2:]:
            worker.stop()


def test_brokers_that_move_behind_their_bootstrap_address(servers: Servers, tmp_path: Path) -> None:
    """The worker ends with exit code 1 within a bounded time; started again, it finds them and goes on."""
    with BadNetwork() as network, KafkaServer(tmp_path / "kafka") as kafka:
        network.target_port = port_of(kafka)
        changes = {
            "bootstrap_servers": f"127.0.0.1:{network.port}", "unreachable_limit_s": 8.0, "metadata_refresh_s": 1.0,
        }  # fmt: skip
        with Group(Servers(kafka, servers.redis, servers.models), tmp_path, "moved", kafka=changes) as group:
            worker = group.start("one")
            worker.wait_until_ready()
            group.send(PACKETS[:20])
            group.wait_for(20)
            kafka.kill()
            kafka._port, kafka._controller_port = free_port(), free_port()
            kafka.start()
            network.target_port = port_of(kafka)
            assert worker.process.wait(300) == 1
            assert "kafka.unreachable_limit_s" in worker.tail()
            group.kafka = KafkaSettings(bootstrap_servers=kafka.bootstrap)
            group.send(PACKETS[20:60])
            worker.start()
            group.wait_for(60)
            assert group.counts() == Counter(IDS[:60])
            worker.stop()


def port_of(kafka: KafkaServer) -> int:
    return int(kafka.bootstrap.rsplit(":", 1)[1])
