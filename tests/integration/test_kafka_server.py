from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from broker.errors import ConfigurationError, DependencyUnavailableError
from deploy.local.kafka_server import KafkaServer, find_kafka_home


def _read(kafka: KafkaServer, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "test",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    messages = consumer.consume(count, timeout=120)
    consumer.close()
    assert all(message.error() is None for message in messages)
    return [message.value() for message in messages]


def test_keeps_what_it_acknowledged_through_a_crash(kafka: KafkaServer) -> None:
    kafka.create_topics(["alerts"], partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "acks": "all", "log_level": 0})
    for number in range(100):
        producer.produce("alerts", str(number).encode())
    assert producer.flush(120) == 0
    first = kafka.pid
    kafka.kill()
    assert kafka.pid is None
    kafka.start()
    assert kafka.pid != first
    assert _read(kafka, "alerts", 100) == [str(number).encode() for number in range(100)]


def test_a_topic_that_exists_is_refused(kafka: KafkaServer) -> None:
    kafka.create_topics(["once"], partitions=2, config={"cleanup.policy": "compact"})
    with pytest.raises(DependencyUnavailableError, match="once cannot be created"):
        kafka.create_topics(["once"])


def test_a_broker_that_cannot_start_says_why() -> None:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    server = KafkaServer(settings={"process.roles": "astronomer"})
    with pytest.raises(ConfigurationError, match="astronomer"):
        server.start()
    assert not server.running


def test_no_kafka(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIFID_KAFKA_HOME", str(tmp_path))
    assert find_kafka_home() is None
    with pytest.raises(ConfigurationError, match="TRIFID_KAFKA_HOME"):
        KafkaServer()
