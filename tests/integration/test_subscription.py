"""Subscribers with real Kafka: where groups go on, what is foreign, and what is not there."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import fastavro
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from broker.batch import BatchResult
from broker.client import (
    Expression,
    Filter,
    ForeignMessage,
    Lag,
    PublishedAnnotation,
    Subscription,
    group_lag,
    move_group,
)  # fmt: skip
from broker.embedded.ports import free_port
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError
from broker.publish.annotation import SCHEMA
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.records import Annotation
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from tests.kafka_groups import members_of
from tests.waiting import wait_until

PARTITIONS = 4
IDLE = 2.0
A_STAR = Annotation(
    survey="ztf", alert_id=0, source_id=0, object_id="", ra=1.0, dec=2.0, mjd=60000.0, class_names=("M", "SR"),
    probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=300.0,
)  # fmt: skip


def payload(alert_id: int) -> bytes:
    star = replace(A_STAR, alert_id=alert_id, object_id=f"star-{alert_id}")
    result = BatchResult()
    result.annotations.append(star)
    return next(Publisher(OutputTopics("x", 1.0), "Trifid", 1000).messages(result)).value


def fill(kafka: KafkaServer, topic: str, counts: Sequence[int], first: int = 0) -> list[int]:
    """So many annotations in each partition; gives their numbers. A message without a transaction is committed."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    number = first
    for partition, count in enumerate(counts):
        for _ in range(count):
            producer.produce(topic, payload(number), partition=partition)
            number += 1
    assert producer.flush(120) == 0
    return list(range(first, number))


def send(kafka: KafkaServer, topic: str, *values: bytes, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(120) == 0


def expire(kafka: KafkaServer, topic: str, before: int) -> None:
    """Have Kafka delete the messages of partition 0 before an offset, as it does with old ones."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for deleted in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        deleted.result(30)


def committed(kafka: KafkaServer, group: str, topic: str) -> list[int]:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    found = consumer.committed([TopicPartition(topic, p) for p in range(PARTITIONS)], 60)
    consumer.close()
    return [p.offset for p in found]


def readers(kafka: KafkaServer, group: str) -> int:
    """How many have partitions of it."""
    return sum(bool(one.assignment.topic_partitions) for one in members_of(kafka.bootstrap, group))


# What is started in the background by a shell ignores SIGINT, and so do its children.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from broker.cli import main; main()"
)


def command(kafka: KafkaServer, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "broker.cli", "subscribe", *arguments, "--bootstrap-servers", kafka.bootstrap, "--json",
    ]  # fmt: skip


def subscribe(kafka: KafkaServer, *arguments: str, code: int = 0) -> list[int]:
    """Numbers of the annotations that the command prints."""
    done = subprocess.run(command(kafka, *arguments), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return [json.loads(line)["alertId"] for line in done.stdout.splitlines()]


def refusal(kafka: KafkaServer, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(command(kafka, *arguments), capture_output=True, text=True, timeout=300)
    assert done.stdout == ""
    return done.returncode, done.stderr


def read_all(kafka: KafkaServer, topic: str, group: str) -> list[int]:
    with Subscription(topic, kafka.bootstrap, group_id=group, idle_timeout=IDLE) as subscription:
        return [annotation.alert_id for annotation in subscription]


def test_a_group_goes_on_after_the_last_printed_line(kafka: KafkaServer) -> None:
    kafka.create_topics(["goes.on"])
    everything = fill(kafka, "goes.on", [400, 1, 0, 250])
    first = subscribe(kafka, "goes.on", "--group", "g", "--from-beginning", "--limit", "300")
    assert len(first) == 300
    # Partitions from which nothing was read have a position, too.
    at = committed(kafka, "g", "goes.on")
    assert sum(at) == 300
    assert min(at) >= 0
    second = subscribe(kafka, "goes.on", "--group", "g", "--limit", "1")
    rest = subscribe(kafka, "goes.on", "--group", "g", "--idle", str(IDLE))
    assert Counter(first + second + rest) == Counter(everything)
    assert subscribe(kafka, "goes.on", "--group", "g", "--idle", str(IDLE)) == []
    later = fill(kafka, "goes.on", [3, 3, 3, 3], first=1000)
    assert Counter(subscribe(kafka, "goes.on", "--group", "g", "--idle", str(IDLE))) == Counter(later)


def test_a_group_that_began_at_the_end_misses_nothing_from_then_on(kafka: KafkaServer) -> None:
    kafka.create_topics(["at.end"])
    fill(kafka, "at.end", [5, 5, 5, 0])
    assert subscribe(kafka, "at.end", "--group", "g", "--idle", str(IDLE)) == []
    assert committed(kafka, "g", "at.end") == [5, 5, 5, 0]
    later = fill(kafka, "at.end", [0, 7, 0, 2], first=100)
    assert Counter(read_all(kafka, "at.end", "g")) == Counter(later)


def test_a_group_of_an_earlier_release_gets_the_partitions_that_it_never_read(kafka: KafkaServer) -> None:
    kafka.create_topics(["half"])
    everything = fill(kafka, "half", [10, 10, 10, 10])
    old = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "g"})
    old.commit(offsets=[TopicPartition("half", 1, 4)], asynchronous=False)
    old.close()
    assert Counter(read_all(kafka, "half", "g")) == Counter(everything) - Counter(range(10, 14))


def test_partitions_and_topics_that_are_added_are_read_from_their_beginning(kafka: KafkaServer) -> None:
    kafka.create_topics(["added.1"], partitions=1)
    fill(kafka, "added.1", [3])
    assert read_all(kafka, r"^added\.[0-9]$", "g") == []
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_partitions([NewPartitions("added.1", 2)])["added.1"].result()
    later = fill(kafka, "added.1", [2, 2], first=10)
    with Subscription(r"^added\.[0-9]$", kafka.bootstrap, group_id="g", idle_timeout=30) as subscription:
        assert sorted(a.alert_id for a in islice(subscription, 4)) == later
        kafka.create_topics(["added.2"], partitions=1)
        newest = fill(kafka, "added.2", [5], first=20)
        assert [a.alert_id for a in islice(subscription, 5)] == newest


class _BodyError(Exception):
    pass


def test_an_annotation_counts_as_read_unless_the_loop_raises(kafka: KafkaServer) -> None:
    kafka.create_topics(["once"], partitions=1)
    fill(kafka, "once", [10])

    def subscription() -> Subscription:
        return Subscription("once", kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE)

    def fail_at(subscription: Subscription, alert_id: int) -> None:
        with subscription:
            for annotation in subscription:
                if annotation.alert_id == alert_id:
                    raise _BodyError

    def fail_and_close(subscription: Subscription) -> None:
        try:
            for _ in subscription:
                raise _BodyError
        finally:
            subscription.close()

    with pytest.raises(_BodyError):
        fail_at(subscription(), 3)
    with subscription() as s:
        for annotation in s:
            assert annotation.alert_id == 3  # it was not dealt with
            break
    with subscription() as s:
        assert [a.alert_id for a in islice(s, 2)] == [4, 5]
    with pytest.raises(_BodyError):
        fail_and_close(subscription())
    s = subscription()
    assert next(iter(s)).alert_id == 6
    for annotation in s:  # whoever asks again has dealt with 6
        assert annotation.alert_id == 7
        break
    s.close()
    assert [a.alert_id for a in subscription()] == [8, 9]  # never closed
    for annotation in subscription():
        pytest.fail(f"{annotation.alert_id} comes again")


def test_a_reader_begins_at_a_time_and_takes_what_meets_its_filter(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka.create_topics(["since"], config={"retention.ms": "-1"})  # Kafka deletes by the time that messages have
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for hour in range(-3, 4):  # numbers 0 to 6, of which 3 is from noon
        at = int((noon + timedelta(hours=hour)).timestamp() * 1000)
        producer.produce("since", payload(hour + 3), partition=(hour + 3) % 2, timestamp=at)
    assert producer.flush(120) == 0

    def read(start: datetime, group: str | None = None, where: Filter | None = None) -> list[int]:
        found = Subscription("since", kafka.bootstrap, group_id=group, start=start, where=where, idle_timeout=IDLE)
        with found as subscription:
            return sorted(annotation.alert_id for annotation in subscription)

    assert read(noon) == [3, 4, 5, 6]
    assert read(noon + timedelta(milliseconds=1), "g") == [4, 5, 6]
    assert read(noon, "g") == []  # a group that has a position keeps it
    assert read(noon + timedelta(days=1), "late") == []
    late = fill(kafka, "since", [0, 0, 1, 0], first=100)
    assert read(noon, "late") == late  # what came after it began, in a partition that had nothing
    assert read(noon, where=Filter(class_name="M", min_probability=0.75)) == [3, 4, 5, 6, 100]
    # Nothing of it is wanted, and all of it counts as read.
    assert read(noon, "none", Filter(min_probability=0.76)) == []
    assert read(noon, "none") == []
    since = ["since", "--since", "2026-11-28T14:00", "--idle", str(IDLE)]
    assert sorted(subscribe(kafka, *since)) == [5, 6, 100]
    cone = ["--ra", "00:04:00", "--dec", "+02:00:00", "--radius", "1"]  # 1 degree, 2 degrees
    assert sorted(subscribe(kafka, *since, *cone)) == [5, 6, 100]
    assert subscribe(kafka, *since, *cone[:-1], "0.5", "--min-points", "21") == []
    region = tmp_path / "here.txt"
    for cells, found in (("0/4", [5, 6, 100]), ("0/0-3,5-11", [])):  # the base cell at RA 0 on the equator, all others
        region.write_text(cells)
        assert sorted(subscribe(kafka, *since, "--moc", str(region))) == found


@pytest.mark.parametrize("batches", [False, True])
def test_a_message_of_several_annotations_is_gone_on_with(kafka: KafkaServer, batches: bool) -> None:
    """Where a caller left in the middle of it and asked again, the rest of it was passed over."""
    topic = f"several.{batches}"
    kafka.create_topics([topic])
    records: list[object] = []
    for number in (1, 2, 3):
        records += fastavro.reader(io.BytesIO(payload(number)))
    container = io.BytesIO()
    fastavro.writer(container, SCHEMA, records)
    send(kafka, topic, container.getvalue(), payload(4))

    def ask(count: int) -> list[int]:
        if batches:
            found = next(iter(subscription.batches(count, wait=600.0)), [])
        else:
            found = list(islice(subscription, count))
        return [annotation.alert_id for annotation in found]

    with Subscription(topic, kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE) as subscription:
        assert ask(1) == [1]
        assert committed(kafka, "g", topic)[0] == 0
        assert ask(1) == [2]
        assert ask(3) == [3, 4]
    assert committed(kafka, "g", topic)[0] == 2


def test_what_headers_tell_to_be_unwanted_is_not_read(kafka: KafkaServer) -> None:
    kafka.create_topics(["told"])
    result = BatchResult()
    result.annotations += [replace(A_STAR, alert_id=1), replace(A_STAR, alert_id=2, detections=19)]
    messages = [m for m in Publisher(OutputTopics("x", 1.0), "Trifid", 1000).messages(result) if m.topic == "x.ztf.all"]
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for message in messages:
        producer.produce("told", message.value, headers=list(message.headers), partition=0)
        producer.produce("told", b"damaged", headers=list(message.headers), partition=0)
        producer.produce("told", message.value, partition=0)  # as earlier releases do
    assert producer.flush(120) == 0

    def read(*where: Filter | Expression) -> tuple[list[int], int]:
        with Subscription("told", kafka.bootstrap, start="earliest", where=where, idle_timeout=IDLE) as found:
            return [a.alert_id for a in found], found.skipped

    enough = Filter(min_detections=20)
    assert read(enough) == ([1, 1], 1)
    assert read(Expression("detections >= 20")) == ([1, 1], 1)
    assert read(Expression("period > 1"), enough) == ([1, 1], 1)  # no header tells the period
    assert read(Expression("period > 1")) == ([1, 1, 2, 2], 2)


def test_a_group_that_kafka_has_deleted_messages_of(kafka: KafkaServer, caplog: pytest.LogCaptureFixture) -> None:
    kafka.create_topics(["expired"])
    ids = fill(kafka, "expired", [10, 0, 0, 0])

    def read(limit: int | None = None) -> list[int]:
        with Subscription("expired", kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE) as found:
            return [a.alert_id for a in islice(found, limit)]

    assert read(3) == ids[:3]
    assert not caplog.records
    expire(kafka, "expired", 8)
    assert read() == ids[8:]
    (told,) = [r.getMessage() for r in caplog.records]
    assert "expired[0]: what came from offset 3 on, 5 messages, was deleted before it was read" in told


def test_ends_of_transactions_that_kafka_deletes_are_no_lost_messages(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A position before the mark of the last transaction was taken for that of a message which was lost."""
    kafka.create_topics(["marked"])
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "marked"})
    producer.init_transactions(120)
    for number in range(4):
        producer.begin_transaction()
        producer.produce("marked", payload(number), partition=0)
        producer.flush(120)
        (producer.commit_transaction if number < 3 else producer.abort_transaction)(120)
    with Subscription("marked", kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE) as subscription:
        assert [a.alert_id for a in subscription] == [0, 1, 2]
        assert subscription.lag()["marked", 0] == 0
    assert committed(kafka, "g", "marked") == [8, 0, 0, 0]
    expire(kafka, "marked", 8)
    (more,) = fill(kafka, "marked", [1], first=9)
    assert read_all(kafka, "marked", "g") == [more]
    assert not caplog.records


@pytest.mark.parametrize("held", [False, True])
def test_what_came_before_a_failure_is_in_a_batch_and_comes_once(kafka: KafkaServer, held: bool) -> None:
    """It counted as read when the caller, who had never seen it, asked again."""
    topic = f"halfway.{held}"
    kafka.create_topics([topic])
    ids = fill(kafka, topic, [3, 0, 0, 0])
    send(kafka, topic, b"foreign")
    ids += fill(kafka, topic, [2, 0, 0, 0], first=3)
    found: list[int] = []
    with Subscription(
        topic, kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE, on_foreign="raise", hold=held
    ) as subscription:

        def read() -> None:
            for batch in subscription.batches(wait=600.0):
                found.extend(a.alert_id for a in batch)

        with pytest.raises(DecodeError):
            read()
        assert found == ids[:3]
        read()
    assert found == ids


def test_a_group_at_offset_0_that_kafka_has_deleted_messages_of(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    kafka.create_topics(["young"])
    assert read_all(kafka, "young", "g") == []
    assert committed(kafka, "g", "young") == [0] * PARTITIONS
    ids = fill(kafka, "young", [10, 0, 0, 0])
    expire(kafka, "young", 8)
    assert read_all(kafka, "young", "g") == ids[8:]
    (told,) = [r.getMessage() for r in caplog.records]
    assert "young[0]: what came from offset 0 on, 8 messages, was deleted before it was read" in told
    assert subscribe(kafka, "young", "--from-beginning", "--idle", str(IDLE)) == ids[8:]


class _Late(Consumer):
    """A consumer in whose topic Kafka deletes messages after a subscription has looked where to begin."""

    happens: Callable[[], None]
    """What happens before it is first assigned partitions."""

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.happens()
        super().assign(partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.happens()
        super().incremental_assign(partitions)


def happens(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Have ``what`` happen once a subscription has looked where to begin, and before it begins; only once."""
    left = [what]
    monkeypatch.setattr(_Late, "happens", lambda _: left.pop()() if left else None, raising=False)
    monkeypatch.setattr("broker.client.subscription.Consumer", _Late)


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_a_position_after_lost_messages_is_kept_over_a_rebalance(
    kafka: KafkaServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    group: str | None,
    strategy: str,
) -> None:
    topic = f"lost.{strategy}.{group}"
    kafka.create_topics([topic])
    ids: list[int] = []

    def lose() -> None:
        ids.extend(fill(kafka, topic, [10, 0, 0, 0]))
        expire(kafka, topic, 7)

    happens(monkeypatch, lose)
    options = {"partition.assignment.strategy": strategy, "topic.metadata.refresh.interval.ms": 500}
    with Subscription(
        topic, kafka.bootstrap, group_id=group, idle_timeout=60.0, options=options, hold=True
    ) as subscription:  # at offset 0 of each partition, as they are empty
        assert [a.alert_id for a in islice(subscription, 3)] == ids[7:]
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        admin.create_partitions([NewPartitions(topic, 5)])[topic].result()
        (newest,) = fill(kafka, topic, [0, 0, 0, 0, 1], first=100)
        assert newest in (a.alert_id for a in subscription)
    (told,) = [r.getMessage() for r in caplog.records]
    assert f"{topic}[0]: what came from offset 0 on, 7 messages, was deleted before it was read" in told


@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("range", "assign"), ("range", "position"), ("cooperative-sticky", "incremental_assign"),
        ("cooperative-sticky", "incremental_unassign"),
    ],
)  # fmt: skip
def test_what_a_consumer_refuses_after_lost_messages_is_an_error_of_ours(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, strategy: str, method: str
) -> None:
    topic = f"refused.{method}"
    kafka.create_topics([topic])

    def refuse(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    def lose() -> None:
        fill(kafka, topic, [10, 0, 0, 0])
        expire(kafka, topic, 7)
        if method.endswith("unassign") or method == "position":
            monkeypatch.setattr(_Late, method, refuse, raising=False)
        else:  # the next time
            monkeypatch.setattr(_Late, "happens", refuse)

    happens(monkeypatch, lose)
    options: dict[str, str | int | float | bool] = {"partition.assignment.strategy": strategy}
    with (
        Subscription(topic, kafka.bootstrap, idle_timeout=60.0, options=options) as subscription,
        pytest.raises(DependencyUnavailableError, match="Erroneous state"),
    ):
        list(subscription)


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_what_kafka_deletes_while_it_is_read_is_told(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture, group: str | None, strategy: str
) -> None:
    topic = f"expires.{strategy}.{group}"
    kafka.create_topics([topic])
    # A message a batch and a fetch, so that little of what is deleted was fetched before.
    options = {
        "partition.assignment.strategy": strategy, "fetch.message.max.bytes": 1, "queued.min.messages": 1,
        "fetch.queue.backoff.ms": 10,
    }  # fmt: skip
    ids = [one for number in range(20) for one in fill(kafka, topic, [1], number)]
    ids += fill(kafka, topic, [0, 3, 0, 0], 20)
    found = []
    with Subscription(
        topic, kafka.bootstrap, group_id=group, start="earliest", idle_timeout=60.0, options=options
    ) as subscription:
        for annotation in subscription:
            found.append(annotation.alert_id)
            if annotation.alert_id == ids[3]:
                expire(kafka, topic, 17)
            if set(found) >= set(ids[17:]):
                break
    first = [one for one in found if one in ids[:20]]
    assert first[-3:] == ids[17:20]
    assert sorted(one for one in found if one not in first) == ids[20:]
    (told,) = [r.getMessage() for r in caplog.records]
    read = len(first) - 3  # of those that were deleted, some were fetched already
    assert f"{topic}[0]: what came from offset {read} on, {17 - read} messages, was deleted before it was read" in told


def test_functions_are_asked_once_of_an_annotation_that_several_topics_have(kafka: KafkaServer) -> None:
    topics = ["y.ztf.m", "y.ztf.all", "y.ztf.longperiod"]
    kafka.create_topics(topics)
    result = BatchResult()
    result.annotations += [replace(A_STAR, alert_id=number) for number in range(3)]
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for message in Publisher(OutputTopics("y", 1.0), "Trifid", 1000).messages(result):
        producer.produce(message.topic, message.value, headers=list(message.headers))
    assert producer.flush(30) == 0
    asked = []

    def even(annotation: PublishedAnnotation) -> bool:
        asked.append(annotation.alert_id)
        return annotation.alert_id % 2 == 0

    with Subscription(topics, kafka.bootstrap, start="earliest", where=even, idle_timeout=IDLE) as subscription:
        assert sorted(annotation.alert_id for annotation in subscription) == [0, 2]
    assert sorted(asked) == [0, 1, 2]


def test_a_group_is_moved(kafka: KafkaServer) -> None:
    kafka.create_topics(["moved"])
    ids = fill(kafka, "moved", [3, 2, 0, 0])
    group = ["moved", "--group", "g", "--idle", str(IDLE)]
    assert sorted(subscribe(kafka, *group, "--from-beginning")) == ids
    assert subscribe(kafka, *group, "--from-beginning") == []
    assert sorted(subscribe(kafka, *group, "--from-beginning", "--reset")) == ids
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert subscribe(kafka, *group, "--since", soon.isoformat(), "--reset") == []
    later = fill(kafka, "moved", [0, 0, 2, 0], first=5)
    assert subscribe(kafka, *group, "--reset") == []  # at the end
    assert committed(kafka, "g", "moved") == [3, 2, 2, 0]
    move_group(["^mov"], kafka.bootstrap, "g", "earliest")
    assert committed(kafka, "g", "moved") == [0, 0, 0, 0]
    with Subscription("moved", kafka.bootstrap, group_id="g", idle_timeout=IDLE) as reader:
        assert sorted(a.alert_id for a in reader) == ids + later
        code, said = refusal(kafka, *group, "--reset")
        assert (code, "group g has members" in said) == (2, True)
    assert refusal(kafka, "moved", "--reset")[0] == 2
    with pytest.raises(ConfigurationError, match="nothing does not exist"):
        move_group(["nothing"], kafka.bootstrap, "g", "earliest")


def test_a_batch_counts_as_read_as_a_whole_when_the_next_is_asked_for(kafka: KafkaServer) -> None:
    kafka.create_topics(["batches"])
    numbers = fill(kafka, "batches", [5, 0, 0, 0])

    def subscription() -> Subscription:
        return Subscription("batches", kafka.bootstrap, group_id="b", start="earliest", idle_timeout=IDLE)

    def fail_in_the_second() -> None:
        with subscription() as first:
            for batch in first.batches(size=3):
                taken.append([annotation.alert_id for annotation in batch])
                if len(taken) == 2:
                    raise RuntimeError("the database is unavailable")

    taken: list[list[int]] = []
    with pytest.raises(RuntimeError, match="unavailable"):
        fail_in_the_second()
    assert taken == [numbers[:3], numbers[3:]]
    assert committed(kafka, "b", "batches")[0] == 3
    with subscription() as second:
        again = [[annotation.alert_id for annotation in batch] for batch in second.batches(size=3)]
    assert again == [numbers[3:]]
    assert committed(kafka, "b", "batches")[0] == 5


def test_a_process_that_is_killed_repeats_little(kafka: KafkaServer) -> None:
    kafka.create_topics(["killed"])
    everything = fill(kafka, "killed", [100, 100, 100, 100])
    process = subprocess.Popen(
        command(kafka, "killed", "--group", "g", "--from-beginning"), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline())["alertId"] for _ in everything]
    wait_until(lambda: committed(kafka, "g", "killed") == [100] * PARTITIONS)  # once a second
    process.kill()
    process.wait()
    process.stdout.close()
    assert Counter(first) == Counter(everything)
    later = fill(kafka, "killed", [1, 1, 1, 1], first=1000)
    assert Counter(read_all(kafka, "killed", "g")) == Counter(later)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_and_repeats_nothing(kafka: KafkaServer, number: signal.Signals) -> None:
    topic = f"signal.{number.name.lower()}"
    kafka.create_topics([topic])
    everything = fill(kafka, topic, [200, 200, 200, 200])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *command(kafka, topic, "--group", "g", "--from-beginning")[3:]],
        stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [process.stdout.readline() for _ in range(50)]
    process.send_signal(number)
    lines += process.stdout.readlines()
    assert process.wait(300) == 128 + number
    assert process.stderr.read() == ""
    process.stderr.close()
    process.stdout.close()
    first = [json.loads(line)["alertId"] for line in lines]
    assert len(first) >= 50
    assert Counter(first + read_all(kafka, topic, "g")) == Counter(everything)


def test_a_signal_ends_a_move_of_a_group_that_waits_for_kafka() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        arguments = ["subscribe", "x", "--group", "g", "--reset", "--bootstrap-servers", address]
        process = subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE, *arguments], stderr=subprocess.PIPE, text=True)
        silent.settimeout(300)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert "Aborted" not in said


def test_members_of_one_group_share_what_there_is(kafka: KafkaServer) -> None:
    kafka.create_topics(["shared"])
    everything = fill(kafka, "shared", [50, 50, 50, 50])
    arguments = ("shared", "--group", "g", "--from-beginning", "--idle", "4")
    members = [
        subprocess.Popen(command(kafka, *arguments), stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]  # fmt: skip
    read = [json.loads(line)["alertId"] for m in members for line in m.communicate(timeout=300)[0].splitlines()]
    # A rebalance may repeat what the member before was given but has not asked beyond.
    assert set(read) == set(everything)
    assert len(read) <= len(everything) + len(members)


def test_foreign_messages_are_named_counted_and_passed(kafka: KafkaServer, caplog: pytest.LogCaptureFixture) -> None:
    kafka.create_topics(["foreign"], partitions=1)
    alert = next(iter(simulate_alerts(1, 1, seed=1))).payload
    good = [payload(n) for n in range(3)]
    send(kafka, "foreign", b"", good[0], b"{}", alert, good[1], good[1][:-20], b"\0\0\0\0\1", good[2])
    with Subscription("foreign", kafka.bootstrap, group_id="g", start="earliest", idle_timeout=IDLE) as subscription:
        assert [a.alert_id for a in subscription] == [0, 1, 2]
        assert subscription.skipped == 5
    places = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert [text.split(": ")[0] for text in places] == [f"skipped foreign[0]@{n}" for n in (0, 2, 3, 5, 6)]
    assert "its schema is " in places[2]
    assert max(map(len, places)) < 300
    assert read_all(kafka, "foreign", "g") == []

    seen: list[ForeignMessage] = []
    with Subscription(
        "foreign", kafka.bootstrap, start="earliest", idle_timeout=IDLE, on_foreign=seen.append
    ) as subscription:
        assert len(list(subscription)) == 3
    assert [(m.topic, m.partition, m.offset) for m in seen] == [("foreign", 0, n) for n in (0, 2, 3, 5, 6)]
    assert [m.payload for m in seen][:3] == [b"", b"{}", alert]

    def raising() -> Subscription:
        return Subscription(
            "foreign", kafka.bootstrap, group_id="strict", start="earliest", idle_timeout=IDLE, on_foreign="raise"
        )

    for _ in range(2):  # it is not counted as read
        with raising() as subscription, pytest.raises(DecodeError, match=r"foreign\[0\]@0: not an annotation"):
            next(iter(subscription))


def test_the_command_passes_foreign_messages(kafka: KafkaServer) -> None:
    kafka.create_topics(["passed"], partitions=1)
    send(kafka, "passed", *[b"no annotation \x1b[31m"] * 15, payload(7))
    done = subprocess.run(
        command(kafka, "passed", "--group", "g", "--from-beginning", "--limit", "1"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    assert [json.loads(line)["alertId"] for line in done.stdout.splitlines()] == [7]
    assert "skipped passed[0]@0: not an annotation of Trifid" in done.stderr
    assert done.stderr.count("\n") == 11
    assert done.stderr.splitlines()[-1] == "messages skipped that are no annotations: 15 of passed"
    assert committed(kafka, "g", "passed")[0] == 16


def test_a_topic_of_something_else_is_refused(kafka: KafkaServer) -> None:
    kafka.create_topics(["alerts.ztf", "trifid.deadletter", "other.alerts"], partitions=1)
    alert = next(iter(simulate_alerts(1, 1, seed=1))).payload
    send(kafka, "other.alerts", *[alert] * 3)
    code, said = refusal(kafka, "alerts.ztf", "--from-beginning", "--idle", "1")
    assert (code, said.count("\n")) == (2, 1)
    assert "alerts.ztf is an input of the service and holds no annotations" in said
    code, said = refusal(kafka, "trifid.deadletter")
    assert (code, said.count("\n")) == (2, 1)
    assert "trifid deadletter show" in said
    code, said = refusal(kafka, "other.alerts", "--from-beginning", "--idle", "1")
    assert code == 2
    assert len(said) < 1000
    assert "no annotations in other.alerts" in said


def test_patterns_leave_dead_letters_out(kafka: KafkaServer) -> None:
    kafka.create_topics(["pat.ztf.m", "pat.lsst.m", "pat.ztf.anomaly", "pat.deadletter", "patXztfXm"], partitions=1)
    for number, topic in enumerate(["pat.ztf.m", "pat.lsst.m", "pat.ztf.anomaly", "pat.deadletter", "patXztfXm"]):
        send(kafka, topic, payload(number))
    arguments = ("--from-beginning", "--idle", str(IDLE))
    assert sorted(subscribe(kafka, "^pat", *arguments)) == [0, 1, 2, 4]
    # As the help has it.
    assert sorted(subscribe(kafka, r"^pat\.[a-z]+\.m$", *arguments)) == [0, 1]


def test_a_pattern_does_not_wait_for_copies_in_topics_that_cannot_be_seen(kafka: KafkaServer) -> None:
    """A user with rights to one class's topic only has its annotations, though the same are in ``all``."""
    kafka.create_topics(["seen.ztf.m"], partitions=1)
    publisher = Publisher(OutputTopics("seen", 1.0), "Trifid", 1000)
    result = BatchResult(annotations=[replace(A_STAR, alert_id=number) for number in (1, 2)])
    messages = [message for message in publisher.messages(result) if message.topic == "seen.ztf.m"]
    send(kafka, "seen.ztf.m", *(message.value for message in messages))
    arguments = ("--from-beginning", "--idle", str(IDLE))
    assert subscribe(kafka, "^seen[.]", *arguments) == [1, 2]
    kafka.create_topics(["seen.ztf.all"], partitions=1)
    send(kafka, "seen.ztf.all", *(message.value for message in messages))
    assert subscribe(kafka, "^seen[.]", *arguments) == [1, 2]


def save(kafka: KafkaServer, topic: str, path: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "broker.cli", "subscribe", topic, "--bootstrap-servers", kafka.bootstrap),
        *("--group", f"{topic}-files", "--from-beginning", "--output", str(path), *arguments),
    ]


def test_files_of_a_group_have_each_annotation_once(kafka: KafkaServer, tmp_path: Path) -> None:
    """By --limit, by a signal in an endless stream, and by --idle: what a file has counts as read, and nothing else."""
    kafka.create_topics(["saved"], partitions=PARTITIONS)
    everything = fill(kafka, "saved", [5, 4, 3, 0])
    names = [tmp_path / name for name in ("1.csv", "2.jsonl", "3.parquet")]
    done = subprocess.run(
        save(kafka, "saved", names[0], "--limit", "4"), capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == ""
    assert done.stderr == f"4 annotations written to {names[0]}\n"
    (lag,) = [sum(one.messages for one in group_lag(["saved"], kafka.bootstrap, "saved-files"))]
    assert lag == len(everything) - 4
    endless = subprocess.Popen(save(kafka, "saved", names[1]), stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: bool(list(tmp_path.glob(".2.jsonl.*"))))
        wait_until(lambda: readers(kafka, "saved-files") == 1)
        time.sleep(3)  # whatever has come until then is in this file, the rest in the next
        assert not names[1].exists()
        endless.send_signal(signal.SIGTERM)
        assert endless.wait(300) == 128 + signal.SIGTERM
    finally:
        endless.kill()
        endless.communicate()
    fresh = fill(kafka, "saved", [2], first=len(everything))
    subprocess.run(save(kafka, "saved", names[2], "--idle", str(IDLE)), check=True, capture_output=True, timeout=300)
    with names[0].open(newline="") as file:
        first = [int(row["alertId"]) for row in csv.DictReader(file)]
    second = [json.loads(line)["alertId"] for line in names[1].read_text().splitlines() if line]
    third = pq.read_table(names[2])["alertId"].to_pylist()
    assert len(first) == 4
    assert sorted([*first, *second, *third]) == [*everything, *fresh]
    assert [one.messages for one in group_lag(["saved"], kafka.bootstrap, "saved-files")] == [0] * PARTITIONS


def test_a_file_that_cannot_be_written_leaves_the_annotations_unread(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka.create_topics(["unsaved"], partitions=1)
    fill(kafka, "unsaved", [3])
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "file" / "x.csv", "x.csv: "),
        (tmp_path / "x.txt", "the ending says what is written"),
    ):
        done = subprocess.run(save(kafka, "unsaved", path, "--limit", "2"), capture_output=True, text=True, timeout=300)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    (one,) = group_lag(["unsaved"], kafka.bootstrap, "unsaved-files")
    assert (one.position, one.end, one.messages) == (None, 3, 3)


def test_the_lag_of_a_group_and_of_a_subscription(kafka: KafkaServer) -> None:
    kafka.create_topics(["lagging"], partitions=2)
    fill(kafka, "lagging", [5, 2])
    with Subscription(
        "lagging", kafka.bootstrap, group_id="slow", start="earliest", idle_timeout=IDLE, hold=True
    ) as subscription:
        before = list(subscription)
        assert len(before) == 7
        assert subscription.lag() == {("lagging", 0): 5, ("lagging", 1): 2}  # nothing was acknowledged
        subscription.acknowledge()
        assert subscription.lag() == {("lagging", 0): 0, ("lagging", 1): 0}
    fill(kafka, "lagging", [3], first=7)
    found = group_lag(["^lagg"], kafka.bootstrap, "slow")
    assert found == [Lag("lagging", 0, 5, 8, 3), Lag("lagging", 1, 2, 2, 0)]
    command = [sys.executable, "-m", "broker.cli", "subscribe", "lagging", "--bootstrap-servers", kafka.bootstrap]
    done = subprocess.run([*command, "--group", "slow", "--lag"], capture_output=True, text=True, timeout=300)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["topic", "partition", "position", "end", "lag"],
        ["lagging", "0", "5", "8", "3"], ["lagging", "1", "2", "2", "0"], ["all", "3"],
    ]  # fmt: skip
    done = subprocess.run([*command, "--lag"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, "--lag is that of a --group" in done.stderr) == (2, True)
    with pytest.raises(ConfigurationError, match="topic lagginn does not exist"):
        group_lag(["lagginn"], kafka.bootstrap, "slow")


def test_a_missing_topic_is_named_with_those_that_are_like_it(kafka: KafkaServer) -> None:
    kafka.create_topics(["near.ztf.rrab", "near.ztf.all"], partitions=1)
    code, said = refusal(kafka, "near.ztf.rrabb", "--idle", "1", "--timeout", "1")
    assert (code, said.count("\n")) == (2, 1)
    assert "topic near.ztf.rrabb does not exist (did you mean near.ztf.rrab" in said
    code, said = refusal(kafka, "^nothing[.]matches", "--idle", "1", "--timeout", "1")
    assert code == 2
    assert "no topic matches ^nothing[.]matches" in said
    with pytest.raises(ConfigurationError, match="topic near does not exist"):
        list(Subscription("near", kafka.bootstrap, idle_timeout=1, timeout=0.5))


def test_a_topic_of_a_pattern_may_come_when_nothing_matched(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there before the group could assign it, and the time without annotations is over long before that."""

    def create(*_: object) -> None:
        kafka.create_topics(["pattern.late"], partitions=1)
        fill(kafka, "pattern.late", [3])

    monkeypatch.setattr(logging.getLogger("broker.client.subscription"), "warning", create)
    with Subscription("^pattern[.]la", kafka.bootstrap, idle_timeout=0.01, timeout=30) as subscription:
        subscription._connect()
        subscription._idle_from = 0.0  # the time for connecting is over
        first = [a.alert_id for a in subscription]  # until partitions are assigned, and perhaps some of them
        subscription._idle_timeout = IDLE
        assert first + [a.alert_id for a in subscription] == [0, 1, 2]


def test_a_topic_may_come_a_little_later(kafka: KafkaServer) -> None:
    subscription = Subscription("later", kafka.bootstrap, idle_timeout=IDLE, timeout=30)

    def create() -> None:
        kafka.create_topics(["later"], partitions=1)
        fill(kafka, "later", [3])

    timer = threading.Timer(1.5, create)
    timer.start()
    with subscription:
        # All of it is newer than the subscription, whatever `start` says.
        assert [a.alert_id for a in subscription] == [0, 1, 2]
    timer.join()


def test_an_unreachable_broker_is_an_error_in_few_lines() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli", "subscribe", "trifid.ztf.all", "--bootstrap-servers",
         f"127.0.0.1:{free_port()}", "--timeout", "4"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 2, done.stderr
    assert "does not answer within 4 s" in done.stderr
    assert "refused" in done.stderr
    assert time.monotonic() - start > 4
    with pytest.raises(DependencyUnavailableError, match="does not answer within 1 s"):
        list(Subscription("t", f"127.0.0.1:{free_port()}", timeout=1))


def test_an_outage_is_told_once_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    with KafkaServer() as server:
        server.create_topics(["t"], partitions=1)
        fill(server, "t", [2])
        with Subscription(
            "t", server.bootstrap, group_id="g", start="earliest", idle_timeout=6, timeout=5
        ) as subscription:
            annotations = iter(subscription)
            assert next(annotations).alert_id == 0
            assert next(annotations).alert_id == 1
            server.kill()
            with pytest.raises(DependencyUnavailableError, match="does not answer any more"):
                next(annotations)
            server.start()
            subscription._idle_timeout = 120.0  # what comes now is only waited for
            fill(server, "t", [1], first=2)
            found = next(iter(subscription))
            assert found.alert_id == 2
    told = [record.getMessage() for record in caplog.records if "Kafka at" in record.getMessage()]
    causes: list[str] = []
    for text in told:  # each cause once in an outage, and then its end; on a busy machine Kafka may go away again
        if text.endswith("answers again"):
            assert causes, told
            causes.clear()
        else:
            assert text not in causes, told
            causes.append(text)
    assert told
    assert not causes, told


def deadletter_show(kafka: KafkaServer, prefix: str, *arguments: str) -> tuple[int, str, str]:
    env = {
        **os.environ, "TRIFID_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "TRIFID_PUBLISH__TOPIC_PREFIX": prefix,
    }  # fmt: skip
    command = [sys.executable, "-m", "broker.cli", "deadletter", "show", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    return done.returncode, done.stdout, done.stderr


def test_showing_no_dead_letters_says_so(kafka: KafkaServer) -> None:
    kafka.create_topics(["none.deadletter", "some.deadletter"], partitions=1)
    send(kafka, "some.deadletter", b"\x1b[31m")
    assert deadletter_show(kafka, "none") == (0, "", "none.deadletter: no dead letters\n")
    assert deadletter_show(kafka, "none", "--json", "--from-beginning") == (0, "", "none.deadletter: no dead letters\n")
    code, out, said = deadletter_show(kafka, "some", "--survey", "ztf")
    assert (code, out) == (0, "")
    assert said == "some.deadletter: none of the dead letters is meant by --reason and --survey\n"
    code, out, said = deadletter_show(kafka, "some")
    assert (code, out.count("\n"), said) == (0, 1, "")
    code, out, said = deadletter_show(kafka, "missing")
    assert (code, out) == (2, "")
    assert "topic missing.deadletter does not exist" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"topics": []}, "no topic"),
        ({"topics": ""}, "'' is no name of a topic"),
        ({"topics": "trifid.*.m"}, "a regular expression begins with"),
        ({"topics": "^trifid("}, "no regular expression"),
        ({"topics": r"^trifid\.\d"}, "not in the regular expressions of Kafka"),
        ({"topics": "trifid.deadletter"}, "trifid deadletter show"),
        ({"topics": "t", "group_id": ""}, "group_id is empty"),
        ({"topics": "t", "group_id": " "}, "group_id is empty"),
        ({"topics": "t", "bootstrap_servers": ""}, "bootstrap_servers is empty"),
        ({"topics": "t", "bootstrap_servers": "http://localhost:9092"}, "the address of a web page"),
        ({"topics": "t", "idle_timeout": float("nan")}, "idle_timeout is nan"),
        ({"topics": "t", "timeout": float("inf")}, "timeout is inf"),
        ({"topics": "t", "start": "newest"}, "start is 'newest'"),
        ({"topics": "t", "on_foreign": "ignore"}, "on_foreign is 'ignore'"),
        ({"topics": "t", "options": {"enable.auto.commit": True}}, "enable.auto.commit cannot be set"),
        ({"topics": "t", "options": {"isolation.level": "read_uncommitted"}}, "isolation.level cannot be set"),
        ({"topics": "t", "options": {"no.such.thing": 1}}, "No such configuration property"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Subscription(**arguments)  # type: ignore[arg-type]
