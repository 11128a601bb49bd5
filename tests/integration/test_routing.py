"""Which topic has what: the service with real Kafka and Redis, exactly once, and a model that knows ``Other``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import fastavro
import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from broker.batch import BatchResult
from broker.client import PublishedAnnotation, Subscription
from broker.config import (
    AnnotationRegistrySettings,
    InferenceSettings,
    KafkaSettings,
    PublishSettings,
    RedisSettings,
    Settings,
)
from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.publish.annotation import read
from broker.streaming.accounting import Accounting
from broker.streaming.replay import Replay
from broker.streaming.worker import worker
from broker.surveys.simulator import simulate_alerts
from broker.taxonomy import CLASS_NAMES, PARENT_OF, PARENTS
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from tests.elasticc_schema import read_classification
from tests.random_models import build_random_repository
from tests.schema_registry_server import SchemaRegistryServer

THRESHOLD = 0.5
ASTEROIDS = 7
GARBAGE = 3
IDLE = 2.0
STARS = [alert.payload for alert in simulate_alerts(12, 25, seed=4)]


def asteroid(payload: bytes, number: int) -> bytes:
    """The same as a detection of tonight, beside which ZTF names a body of the solar system."""
    reader = fastavro.reader(io.BytesIO(payload))
    (record,) = reader
    assert isinstance(record, dict)
    record |= {"objectId": f"ZTF26body{number:03}", "candid": number + 1, "prv_candidates": None}
    record["candidate"] |= {"candid": number + 1, "ssdistnr": 0.5, "jdstarthist": record["candidate"]["jd"]}
    out = io.BytesIO()
    fastavro.writer(out, reader.writer_schema, [record])
    return out.getvalue()


@dataclass
class Published:
    kafka: KafkaServer
    accounting: Accounting
    topics: dict[str, list[PublishedAnnotation]]
    """All annotations of each topic, from beginning to end."""
    elasticc: list[Message]
    """All messages in ELAsTiCC's schema."""
    sent: Counter[int]
    """How many messages of the input topic have which of Kafka's timestamps, milliseconds since 1970."""
    registry: SchemaRegistryServer
    """Where the schema of the topics of ``registered`` is."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    payloads = [*STARS, *(asteroid(STARS[i], i) for i in range(ASTEROIDS)), *[b"no alert"] * GARBAGE]
    models = build_random_repository(tmp_path_factory.mktemp("models"), 4, other_threshold=THRESHOLD)
    with KafkaServer() as kafka, RedisServer() as redis:
        # One partition, for one order: with several a star's first alert, too short to classify alone, may come last.
        kafka.create_topics(["in"], partitions=1)
        settings = Settings(
            kafka=KafkaSettings(
                bootstrap_servers=kafka.bootstrap, input_topics=("in",), spectra_topic="", topic_partitions=2
            ),
            redis=RedisSettings(url=SecretStr(redis.url)),
            inference=InferenceSettings(model_repository=models, threads=1),
            publish=PublishSettings(topic_prefix="r.t", elasticc_surveys=("ztf",)),
        )
        with Replay(settings.kafka, "in") as replay:
            for payload in payloads:
                replay.send(payload)
        accounting = _serve(settings, len(payloads))
        with SchemaRegistryServer() as registry:
            again = settings.model_copy(
                update={
                    "kafka": settings.kafka.model_copy(update={"group_id": "registered"}),
                    "publish": PublishSettings(topic_prefix="registered"),
                    "annotation_registry": AnnotationRegistrySettings(url=registry.url),
                }
            )
            _serve(again, len(payloads))
            yield _published(kafka, accounting, registry)


def _serve(settings: Settings, messages: int) -> Accounting:
    """Run a worker until it has delivered what so many messages came to."""
    done = 0

    def delivered(result: BatchResult) -> None:
        nonlocal done
        done += result.messages
        if done == messages:
            service.stop()

    with worker(settings, delivered) as service:
        thread = threading.Thread(target=service.run)
        thread.start()
        thread.join(300)
        assert not thread.is_alive()
    return service.accounting


def _published(kafka: KafkaServer, accounting: Accounting, registry: SchemaRegistryServer) -> Published:
    topics = AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=60).topics
    found = {t: _all(kafka.bootstrap, t) for t in topics if t == "in" or t.startswith("r.t.")}
    annotations = {
        topic.removeprefix("r.t.ztf."): [a for m in messages for a in read(m.value() or b"", topic)]
        for topic, messages in found.items()
        if topic.startswith("r.t.ztf.")
    }
    sent = Counter(message.timestamp()[1] for message in found["in"])
    return Published(kafka, accounting, annotations, found["r.t.brokerclassification"], sent, registry)


def _all(bootstrap: str, topic: str) -> list[Message]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "test", "isolation.level": "read_committed",
         "enable.partition.eof": True}
    )  # fmt: skip
    # A transaction's mark is written after its commit has returned: until then what is committed seems to end sooner.
    plain = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "isolation.level": "read_uncommitted"})
    found: list[Message] = []
    partitions = consumer.list_topics(topic, timeout=60).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    left = {p: plain.get_watermark_offsets(TopicPartition(topic, p), 30)[1] for p in partitions}
    while left:
        message = consumer.poll(60)
        assert message is not None
        if (error := message.error()) is not None:
            assert error.code() == KafkaError._PARTITION_EOF
            if message.offset() >= left[message.partition()]:
                del left[message.partition()]
            continue
        found.append(message)
    consumer.close()
    plain.close()
    return found


def test_alerts_reconcile_with_other(published: Published) -> None:
    accounting, other = published.accounting, published.topics["other"]
    assert accounting.alerts_in == len(STARS) + ASTEROIDS + GARBAGE
    assert (accounting.dead_lettered, accounting.reconciled) == (GARBAGE, True)
    assert len(published.topics["all"]) == accounting.classified + accounting.not_classified == len(STARS) + ASTEROIDS
    assert accounting.classes["Other"] == len(other) > ASTEROIDS
    assert accounting.not_classified == len(published.topics["notclassified"]) > 0
    assert accounting.classified == len(other) + sum(len(published.topics[name.lower()]) for name in CLASS_NAMES)
    assert accounting.classes == Counter(annotation.best_class for annotation in published.topics["all"])


def test_each_annotation_is_in_the_topics_that_it_names_and_in_no_other(published: Published) -> None:
    where = defaultdict(set)
    for topic, found in published.topics.items():
        for annotation in found:
            where[annotation.alert_id].add(f"r.t.ztf.{topic}")
    for annotation in published.topics["all"]:
        assert where[annotation.alert_id] == set(annotation.topics)


def test_what_is_other_is_in_no_topic_of_a_class_or_parent(published: Published) -> None:
    for topic in (*CLASS_NAMES, *PARENTS):
        for annotation in published.topics[topic.lower()]:
            assert annotation.p_other is not None
            assert annotation.p_other < THRESHOLD
            assert len(annotation.class_names) == 10
    bodies = [a for a in published.topics["other"] if a.object_id.startswith("ZTF26body")]
    assert len(bodies) == ASTEROIDS
    assert all(a.p_other == 1.0 and a.solar_system for a in bodies)
    for annotation in published.topics["other"]:
        assert annotation.p_other is not None
        assert annotation.p_other >= THRESHOLD
        assert annotation.probabilities[-1] == annotation.p_other
        assert sum(annotation.probabilities) == pytest.approx(1.0, abs=1e-9)


def test_parents_topics_hold_what_has_this_parent_whatever_its_class(published: Published) -> None:
    by_hand: Counter[str] = Counter()
    for annotation in published.topics["all"]:
        if annotation.classified and annotation.best_class != "Other":
            sums: Counter[str] = Counter()
            for name, probability in zip(annotation.class_names, annotation.probabilities, strict=True):
                sums[PARENT_OF[name]] += probability
            assert annotation.parents == pytest.approx(sums, abs=1e-12)
            by_hand[sums.most_common(1)[0][0]] += 1
    assert by_hand == {p: n for p in PARENTS if (n := len(published.topics[p.lower()]))}
    assert len(by_hand) > 2


def test_elasticcs_topic_has_every_annotation_in_the_official_schema(published: Published) -> None:
    """In the same transactions: read_committed sees as many of both, and no alert twice."""
    numbers = {"Eclipsing": 2325, "RRLyrae": 2323, "DeltaScuti": 2324, "LongPeriod": 2326, "Rotational": 2321}
    records = {(r := read_classification(m.value() or b""))["alertId"]: r for m in published.elasticc}
    assert len(records) == len(published.elasticc) == len(published.topics["all"])
    milliseconds: Counter[int] = Counter()
    for annotation in published.topics["all"]:
        record = records[annotation.alert_id]
        assert record["diaSourceId"] == annotation.source_id
        expected = {numbers[parent]: probability for parent, probability in annotation.parents.items()}
        if annotation.best_class == "Other":
            expected[100] = annotation.best_probability
        found = {c["classId"]: c["probability"] for c in record["classifications"]}
        assert found == pytest.approx(expected or {300: 1.0}, abs=1e-6)
        assert len(found) == len(record["classifications"])
        milliseconds[round(1000 * record["elasticcPublishTimestamp"].timestamp())] += 1
    assert all(published.sent[ms] >= count for ms, count in milliseconds.items())


def test_a_subscriber_of_several_topics_has_each_annotation_once(published: Published) -> None:
    everything = sorted(annotation.alert_id for annotation in published.topics["all"])
    for topics in ("^r[.]t[.]ztf[.]", ["r.t.ztf.other", "r.t.ztf.all"], ["^r[.]t[.]ztf[.][rw]", "r.t.ztf.all"]):
        with Subscription(topics, published.kafka.bootstrap, start="earliest", idle_timeout=IDLE) as subscription:
            found = [annotation.alert_id for annotation in subscription]
        assert sorted(found) == everything
    # Not those that another topic has, too: that one is not subscribed to.
    with Subscription(
        "r.t.ztf.rrlyrae", published.kafka.bootstrap, start="earliest", idle_timeout=IDLE
    ) as subscription:
        assert len(list(subscription)) == len(published.topics["rrlyrae"]) > 0


def test_members_of_a_group_and_later_calls_repeat_nothing(published: Published) -> None:
    """The copies of an annotation go to whoever has their partitions, before and after a restart."""
    topics = ["r.t.ztf.all", "r.t.ztf.rrlyrae", "r.t.ztf.other"]
    found: list[int] = []
    for number in (40, 10**6):
        with Subscription(
            topics, published.kafka.bootstrap, group_id="several", start="earliest", idle_timeout=IDLE
        ) as subscription:
            for annotation in subscription:
                found.append(annotation.alert_id)
                if len(found) == number:
                    break
    assert sorted(found) == sorted(annotation.alert_id for annotation in published.topics["all"])


def test_annotations_by_a_registered_schema(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap, topic = published.kafka.bootstrap, "registered.ztf.all"
    sizes = [len(message.value() or b"") for message in _all(bootstrap, topic)]
    containers = [len(message.value() or b"") for message in _all(bootstrap, "r.t.ztf.all")]
    assert len(sizes) == len(containers)
    assert np.mean(containers) - np.mean(sizes) > 2_000
    with Subscription(
        topic, bootstrap, start="earliest", idle_timeout=IDLE, schema_registry=published.registry.url
    ) as subscription:
        found = {annotation.alert_id for annotation in subscription}
    assert found == {annotation.alert_id for annotation in published.topics["all"]}
    assert subscription.skipped == 0
    command = [
        sys.executable,
        "-m",
        "broker.cli",
        "subscribe",
        topic,
        "--json",
        "--from-beginning",
        "--idle",
        str(IDLE),
    ]
    command += ["--bootstrap-servers", bootstrap]
    done = subprocess.run(
        [*command, "--schema-registry", published.registry.url], capture_output=True, text=True, timeout=300
    )
    assert {json.loads(line)["alertId"] for line in done.stdout.splitlines()} == found
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "its schema has id 1 in a schema registry, of which no address is given" in done.stderr


def test_an_annotation_comes_again_where_its_schema_could_not_be_asked_for(published: Published) -> None:
    bootstrap, registry = published.kafka.bootstrap, published.registry
    registry.broken = True
    try:
        with Subscription(
            "registered.ztf.all", bootstrap, start="earliest", idle_timeout=IDLE, timeout=1.0,
            schema_registry=registry.url,
        ) as subscription:  # fmt: skip
            with pytest.raises(DependencyUnavailableError, match="nothing else knows schema id 1"):
                next(iter(subscription))
            registry.broken = False
            found = set()
            for _ in range(100):  # the registry is left alone for some seconds
                with suppress(DependencyUnavailableError):
                    found |= {annotation.alert_id for annotation in subscription}
                    break
    finally:
        registry.broken = False
    assert found == {annotation.alert_id for annotation in published.topics["all"]}


def test_the_command_by_class_and_parent(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_PUBLISH__TOPIC_PREFIX", "r.t")

    def subscribe(*arguments: str) -> list[int]:
        command = [sys.executable, "-m", "broker.cli", "subscribe", *arguments, "--json", "--from-beginning", "--idle"]
        done = subprocess.run(
            [*command, str(IDLE), "--bootstrap-servers", published.kafka.bootstrap],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return sorted(json.loads(line)["alertId"] for line in done.stdout.splitlines())

    def wanted(*topics: str) -> list[int]:
        return sorted({annotation.alert_id for topic in topics for annotation in published.topics[topic]})

    assert subscribe("--parent", "RR Lyrae", "--survey", "ztf") == wanted("rrlyrae")
    assert subscribe("--class", "rrab", "--parent", "rr_lyrae", "--class", "rrc") == wanted("rrab", "rrc", "rrlyrae")
    assert subscribe("--class", "Other") == wanted("other")
