"""Alerts that Kafka deleted before a worker read them: counted and told, and nothing else is."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from broker.config import KafkaSettings
from broker.metrics import INPUT_LOST, TOPICS_RECREATED
from broker.streaming.deadletter_replay import DeadLetters, LetterFilter
from broker.streaming.topics import TopicAdmin
from deploy.local.kafka_server import KafkaServer
from tests.integration.test_service import Servers, Threads, servers, wait_until
from tests.integration.test_topics import send_to

__all__ = ["servers"]


def lost(topic: str) -> float:
    return float(INPUT_LOST.labels(topic)._value.get())


def expire(kafka: KafkaServer, topic: str, before: int) -> None:
    """Have Kafka delete the messages of partition 0 before an offset, as it does with old ones."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for deleted in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        deleted.result(60)


def committed_offset(kafka: KafkaServer, group: str, topic: str) -> int:
    admin = TopicAdmin(KafkaSettings(bootstrap_servers=kafka.bootstrap))
    (found,) = admin.committed(group, [TopicPartition(topic, 0)])
    return int(found.offset)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("left", [20, 0])
def test_what_was_deleted_while_no_worker_ran_is_counted_once(
    servers: Servers, caplog: pytest.LogCaptureFixture, delivery: str, left: int
) -> None:
    name = f"slept-{delivery}-{left}"
    topic = f"{name}.in"
    payloads = [b"%d" % n for n in range(100)]
    with Threads(servers.kafka, name, lambda: 0.0, delivery=delivery) as group:
        send_to(servers.kafka, topic, 0, payloads[:60])
        group.start()
        wait_until(lambda: len(group.out()) == 60)
        group.stop(0)
        assert lost(topic) == 0
        send_to(servers.kafka, topic, 0, payloads[60:])
        expire(servers.kafka, topic, 100 - left)
        group.start()
        wait_until(lambda: len(group.out()) == 60 + left and lost(topic) > 0)
        told = f"{topic}[0]: what came from offset 60 on, {40 - left} messages, was deleted before it was read"
        assert lost(topic) == 40 - left
        assert caplog.text.count(told) == 1
        # Also where nothing came after it: the next worker does not count it again.
        wait_until(lambda: committed_offset(servers.kafka, name, topic) == 100)
        group.stop(0)
        group.start()
        more = [b"later %d" % n for n in range(5)]
        send_to(servers.kafka, topic, 0, more)
        wait_until(lambda: len(group.out()) == 65 + left)
        assert Counter(group.out()) == Counter(payloads[:60] + payloads[100 - left :] + more)
        assert lost(topic) == 40 - left
        assert TOPICS_RECREATED.labels(topic)._value.get() == 0


@pytest.mark.parametrize("protocol", ["cooperative", "eager"])
def test_what_is_deleted_while_a_worker_reads_is_counted(
    servers: Servers, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """Read + lost = sent, and the batch in flight is delivered. Other partitions are read on."""
    name = f"overtaken-{protocol}"
    topic = f"{name}.in"
    # Messages of a fetch each, so that little of what is deleted was fetched before.
    payloads = [b"%03d" % n + bytes(50_000) for n in range(100)]
    settings: dict[str, object] = {
        "group_protocol": protocol, "max_message_bytes": 60_000, "consumer_queue_mib": 1,
        "options": {"queued.min.messages": 1, "fetch.queue.backoff.ms": 10},
    }  # fmt: skip
    with Threads(servers.kafka, name, lambda: 1.0, **settings) as group:
        others = [b"other %d" % n for n in range(30)]
        send_to(servers.kafka, topic, 1, others)
        for payload in payloads:
            send_to(servers.kafka, topic, 0, [payload])
        group.start()
        wait_until(lambda: len(group.out()) > 0)
        expire(servers.kafka, topic, 95)
        end = [b"end"]
        send_to(servers.kafka, topic, 0, end)
        send_to(servers.kafka, topic, 1, end)
        wait_until(lambda: group.out().count(b"end") == 2)
        numbers = [int(out[:3]) for out in group.out() if out[:3].isdigit()]
        assert len(set(numbers)) == len(numbers)
        read_before = [n for n in numbers if n < 95]
        assert sorted(read_before) == list(range(len(read_before)))
        assert set(numbers) >= set(range(95, 100))
        assert lost(topic) == 95 - len(read_before)
        assert lost(topic) > 0
        told = f"{topic}[0]: what came from offset {len(read_before)} on, {95 - len(read_before)} messages, was deleted"
        assert caplog.text.count(told) == 1
        assert Counter(out for out in group.out() if out.startswith(b"other")) == Counter(others)


def test_ends_of_transactions_and_aborted_messages_are_not_counted(servers: Servers) -> None:
    """All was read; then Kafka deletes it, with the marks of transactions after it."""
    name, topic = "marks", "marks.in"
    payloads = [b"%d" % n for n in range(30)]
    with Threads(servers.kafka, name, lambda: 0.0) as group:
        producer = Producer({"bootstrap.servers": servers.kafka.bootstrap, "transactional.id": name})
        producer.init_transactions(120)
        for number, payload in enumerate(payloads):
            producer.begin_transaction()
            producer.produce(topic, payload, partition=0)
            producer.commit_transaction(120)
            if number % 10 == 9:
                producer.begin_transaction()
                producer.produce(topic, b"aborted", partition=0)
                producer.flush(120)
                producer.abort_transaction(120)
        assert group.start() is None
        wait_until(lambda: len(group.out()) == 30)
        wait_until(lambda: committed_offset(servers.kafka, name, topic) == 66)
        group.stop(0)
        expire(servers.kafka, topic, 66)
        group.start()
        send_to(servers.kafka, topic, 0, [b"more"])
        wait_until(lambda: len(group.out()) == 31)
        assert Counter(group.out()) == Counter([*payloads, b"more"])
        assert lost(topic) == 0


def test_a_first_start_counts_nothing_and_is_remembered(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """What was deleted before the group began was never its own; what is deleted of it later is, read or not."""
    name, topic = "first", "first.in"
    with Threads(servers.kafka, name, lambda: 0.0) as group:
        send_to(servers.kafka, topic, 0, [b"%d" % n for n in range(10)])
        expire(servers.kafka, topic, 10)
        group.start()
        wait_until(lambda: committed_offset(servers.kafka, name, topic) == 10)
        group.stop(0)
        assert lost(topic) == 0
        assert "deleted before it was read" not in caplog.text
        send_to(servers.kafka, topic, 0, [b"unseen %d" % n for n in range(7)])
        expire(servers.kafka, topic, 17)
        group.start()
        wait_until(lambda: lost(topic) == 7)
        send_to(servers.kafka, topic, 0, [b"seen"])
        wait_until(lambda: group.out() == [b"seen"])


def test_an_offset_beyond_the_end_is_told_and_nothing_passed_over(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a topic was made anew and its id is not known, or a disk was lost."""
    name, topic = "beyond", "beyond.in"
    payloads = [b"%d" % n for n in range(10)]
    with Threads(servers.kafka, name, lambda: 0.0) as group:
        send_to(servers.kafka, topic, 0, payloads)
        consumer = Consumer({"bootstrap.servers": servers.kafka.bootstrap, "group.id": name})
        consumer.commit(offsets=[TopicPartition(topic, 0, 1000)], asynchronous=False)
        consumer.close()
        group.start()
        wait_until(lambda: len(group.out()) == 10)
        time.sleep(2)
        assert Counter(group.out()) == Counter(payloads)
        assert caplog.text.count(f"{topic}[0]: ends at offset 10, before the position 1000") == 1
        assert TOPICS_RECREATED.labels(topic)._value.get() == 1
        assert lost(topic) == 0


def test_dead_letters_that_kafka_deletes_while_they_are_replayed_are_told(kafka: KafkaServer) -> None:
    """They ended their partition: what was left of it was neither sent nor counted."""
    kafka.create_topics(["letters", "back"], partitions=1)
    headers: list[tuple[str, str | bytes | None]] = [
        ("reason", b"why"), ("survey", b"ztf"), ("source-topic", b"back"), ("source-partition", b"0"),
        ("source-offset", b"0"),
    ]  # fmt: skip
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(12):
        producer.produce("letters", b"%d" % number, headers=headers)
    assert producer.flush(120) == 0
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap, group_id="deleted-letters")
    with closing(DeadLetters(settings, "letters")) as letters:
        expire(kafka, "letters", 5)
        counts = letters.replay(LetterFilter())
    assert (counts.replayed, counts.left_out, counts.deleted) == (7, 0, 5)
    with closing(DeadLetters(settings, "letters")) as letters:
        counts = letters.replay(LetterFilter())
        assert (counts.replayed, counts.earlier, counts.deleted) == (0, 7, 0)
    with closing(DeadLetters(settings, "back")) as back:
        assert [letter.payload for letter in back.first(LetterFilter())] == [b"%d" % n for n in range(5, 12)]
