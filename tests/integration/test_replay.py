"""``trifid replay`` of files, of which some cannot be read or sent, to a real Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.cli import main
from deploy.local.kafka_server import KafkaServer, find_kafka_home

NIGHTS = Path(__file__).parents[1] / "data" / "cases" / "09-ztf-archive"


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka or no Java: see deploy/local/kafka_server.py")
    with KafkaServer() as server:
        yield server


def replay(kafka: KafkaServer, topic: str, *paths: Path) -> tuple[int, str, list[str]]:
    arguments = ["replay", *map(str, paths), "--topic", topic, "--bootstrap-servers", kafka.bootstrap]
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stdout, [line for line in result.stderr.splitlines() if ": " in line]


def payloads(kafka: KafkaServer, topic: str, count: int) -> list[bytes]:
    """What is in a topic once ``count`` messages are, and whatever follows within two seconds."""
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": f"{topic}.read", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found: list[bytes] = []
    try:
        while (message := consumer.poll(30 if len(found) < count else 2)) is not None:
            assert message.error() is None
            found.append(message.value() or b"")
    finally:
        consumer.close()
    return found


def test_bad_archives_are_named_and_the_good_ones_around_them_are_sent(kafka: KafkaServer) -> None:
    good, cut, html, mixed = (NIGHTS / f"ztf_public_2019010{number}.tar.gz" for number in (2, 3, 4, 5))
    code, said, remarks = replay(kafka, "nights", good, cut, html, mixed, NIGHTS / "one.avro.gz")
    assert code == 1
    assert said == "6 messages sent to nights, 3 not readable or too large\n"
    assert [remark.removeprefix(f"{NIGHTS}/").split(":")[0] for remark in remarks] == [
        "ztf_public_20190103.tar.gz/55931624000000000.avro",
        "ztf_public_20190104.tar.gz",
        "ztf_public_20190105.tar.gz/empty.avro",
    ]
    found = payloads(kafka, "nights", 6)
    assert len(found) == 6
    assert all(payload.startswith(b"Obj\x01") for payload in found)


def test_packets_too_large_for_the_client_or_the_broker_are_named_and_the_others_sent(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    topic = NewTopic("large", 1, config={"max.message.bytes": "1048588"})  # Kafka's own default
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([topic])["large"].result(30)
    sizes = {"a": 1000, "b": 2_000_000, "c": 1001, "d": 11_000_000, "e": 1002}
    for name, size in sizes.items():
        (tmp_path / f"{name}.avro").write_bytes(b"\0" + np.random.default_rng(0).bytes(size - 1))
    code, said, remarks = replay(kafka, "large", tmp_path)
    assert code == 1
    assert said == "3 messages sent to large, 2 not readable or too large\n"
    assert sorted(remarks) == [
        "b.avro: Broker: Message size too large",
        "d.avro: Unable to produce message: Broker: Message size too large",
    ]
    assert sorted(map(len, payloads(kafka, "large", 3))) == [1000, 1001, 1002]


def test_good_files_end_with_exit_code_0(kafka: KafkaServer) -> None:
    code, said, remarks = replay(kafka, "good", NIGHTS / "ztf_public_20190102.tar.gz")
    assert (code, said, remarks) == (0, "3 messages sent to good\n", [])
