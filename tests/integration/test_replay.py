"""``trifid replay`` of files, of which some cannot be read or sent, to a real Kafka; and ``trifid state rebuild`` from
its topics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker import rebuild
from broker.cli import main, state_rebuild
from broker.config import KafkaSettings, Settings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.records import Alert, ObjectState
from broker.state.redis import RedisStore
from broker.streaming.stored_topic import StoredTopic
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer

NIGHTS = Path(__file__).parents[1] / "data" / "cases" / "09-ztf-archive"


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
        while (message := consumer.poll(120 if len(found) < count else 2)) is not None:
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


PACKETS = [alert.payload for alert in simulate_alerts(6, 12, seed=21)]
ALERTS = [a for payload in PACKETS for a in Decoder().decode(payload) if isinstance(a, Alert)]
MORNING = datetime(2026, 11, 28, 6, tzinfo=UTC)
HALF = len(PACKETS) // 2
"""So many alerts are from an hour before MORNING, the others from an hour after it."""


@pytest.fixture(scope="module")
def night(kafka: KafkaServer) -> str:
    """A topic of alerts, one of which is none."""
    # Kafka would delete what was written so long ago.
    kafka.create_topics(["night"], partitions=3, config={"retention.ms": "-1"})
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number, payload in enumerate([*PACKETS, b"no alert"]):
        hour = -1 if number < len(PACKETS) // 2 else 1
        producer.produce(
            "night", payload, partition=number % 3, timestamp=round(1000 * MORNING.timestamp()) + hour * 3_600_000
        )
    assert producer.flush(120) == 0
    return "night"


@pytest.fixture
def state(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setenv("TRIFID_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    with RedisServer() as server:
        monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
        yield server


def rebuilt(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["state", "rebuild", "--processes", "1", *arguments])
    return result.exit_code, result.output


def states(url: str, alerts: list[Alert]) -> dict[str, ObjectState]:
    latest = {alert.object_id: alert for alert in alerts}
    with closing(RedisStore(url)) as store:
        return dict(zip(latest, store.update(list(latest.values())), strict=True))


def of_a_stream(alerts: list[Alert]) -> dict[str, ObjectState]:
    """The same alerts, one by one, in a Redis of their own."""
    with RedisServer() as server, closing(RedisStore(server.url)) as store:
        for alert in alerts:
            store.update([alert])
        return states(server.url, alerts)


def assert_same(found: dict[str, ObjectState], expected: dict[str, ObjectState]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        for column in ("mjd", "flux", "flux_error", "band", "kind"):
            np.testing.assert_array_equal(getattr(found[name].light_curve, column), getattr(one.light_curve, column))


def test_state_comes_back_from_a_topic(kafka: KafkaServer, night: str, state: RedisServer) -> None:
    code, said = rebuilt("--from", f"kafka:///{night}")
    assert code == 1  # of what is no alert, which is named
    assert f"{len(ALERTS)} alerts and 0 spectra of {len(PACKETS) + 1} packets in the state, 1 not readable" in said
    assert f"night[{len(PACKETS) % 3}] offset {len(PACKETS) // 3}: neither an Avro container" in said
    assert_same(states(state.url, ALERTS), of_a_stream(ALERTS))
    # No group of consumers was made, and nothing was written to Kafka.
    groups = AdminClient({"bootstrap.servers": kafka.bootstrap}).list_consumer_groups().result().valid
    assert not [group.group_id for group in groups if "rebuild" in group.group_id]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_partitions_of_their_own_where_there_are_enough(
    night: str, state: RedisServer, processes: int
) -> None:
    code, said = rebuilt("--from", f"kafka:///{night}", "--processes", str(processes))
    assert code == 1
    assert f"{len(ALERTS)} alerts and 0 spectra of {len(PACKETS) + 1} packets in the state, 1 not readable" in said
    assert f"night[{len(PACKETS) % 3}] offset {len(PACKETS) // 3}: neither an Avro container" in said
    assert_same(states(state.url, ALERTS), of_a_stream(ALERTS))


def test_processes_that_read_by_themselves_say_how_far_they_came(
    kafka: KafkaServer, night: str, state: RedisServer
) -> None:
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": kafka.bootstrap}, "redis": {"url": state.url}})
    stored = StoredTopic(settings.kafka, night)
    whole, (results, read) = stored.left, (rebuild.rebuild_topic(stored, settings, 3), 0)
    batch, result = next(results)
    results.close()
    ((partition, offset),) = batch.reached.items()
    assert result.messages == offset == len(PACKETS) // 3 + (int(partition) == len(PACKETS) % 3)
    rest = StoredTopic(settings.kafka, night, done={int(partition): offset})
    assert rest.left == whole - offset
    for batch, result in rebuild.rebuild_topic(rest, settings, 2):
        read += result.messages
        assert not batch.packets
    assert read == whole - offset
    assert_same(states(state.url, ALERTS), of_a_stream(ALERTS))


def test_a_server_that_is_away_ends_processes_that_read_by_themselves(kafka: KafkaServer, night: str) -> None:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap_servers": kafka.bootstrap}, "redis": {"url": f"redis://127.0.0.1:{free_port()}/0"}}
    )
    with pytest.raises(DependencyUnavailableError, match="Redis"):
        list(rebuild.rebuild_topic(StoredTopic(settings.kafka, night), settings, 2))


@pytest.mark.parametrize(
    ("option", "half"), [("--since", slice(len(PACKETS) // 2, None)), ("--until", slice(0, len(PACKETS) // 2))]
)
def test_from_or_up_to_a_time(kafka: KafkaServer, night: str, state: RedisServer, option: str, half: slice) -> None:
    code, said = rebuilt("--from", f"kafka://{kafka.bootstrap}/{night}", option, "2026-11-28T06:00:00")
    assert code == (option == "--since")  # the bad one is of the morning
    assert f"{len(ALERTS[half])} alerts" in said
    assert_same(states(state.url, ALERTS[half]), of_a_stream(ALERTS[half]))


def test_an_interrupted_rebuild_goes_on(night: str, state: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_rebuild, "_SAVE_S", 0.0)
    monkeypatch.setattr(rebuild, "BATCH", 10)
    merge, sizes = rebuild.merge, list[int]()

    def merged(packets: list[rebuild.Packet], *given: object) -> rebuild.Rebuilt:
        if len(sizes) == 3:
            raise DependencyUnavailableError("Redis: gone")
        sizes.append(len(packets))
        return merge(packets, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "merge", merged)
    code, said = rebuilt("--from", f"kafka:///{night}")
    assert (code, "Redis: gone" in said) == (1, True)
    monkeypatch.setattr(rebuild, "merge", merge)
    code, said = rebuilt("--from", f"kafka:///{night}")
    assert "goes on where a run was interrupted" in said
    assert f"of {len(PACKETS) + 1 - sum(sizes)} packets in the state" in said
    assert_same(states(state.url, ALERTS), of_a_stream(ALERTS))
    # All of it was read: where Redis loses its state once more, the next run begins anew.
    assert state.client().keys("trifid:rebuild:*") == []
    assert f"of {len(PACKETS) + 1} packets in the state" in rebuilt("--from", f"kafka:///{night}")[1]


def test_what_kafka_deletes_meanwhile_is_counted(kafka: KafkaServer) -> None:
    kafka.create_topics(["short"], partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(20):
        producer.produce("short", b"%d" % number)
    assert producer.flush(120) == 0
    with closing(StoredTopic(KafkaSettings(bootstrap_servers=kafka.bootstrap), "short")) as stored:
        assert stored.left == 20
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for future in admin.delete_records([TopicPartition("short", 0, 5)]).values():
            future.result()
        read = [message.value() for messages in stored.read(100) for message in messages]
        assert read == [b"%d" % number for number in range(5, 20)]
        assert (stored.missed, stored.left) == (5, 0)


def test_what_kafka_deleted_before_an_interrupted_reading_went_on_is_counted(kafka: KafkaServer) -> None:
    kafka.create_topics(["gap"], partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(20):
        producer.produce("gap", b"%d" % number)
    assert producer.flush(120) == 0
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([TopicPartition("gap", 0, 12)]).values():
        future.result()
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap)
    for done, missed in ((None, 0), ({0: 15}, 0), ({0: 4}, 8)):
        with closing(StoredTopic(settings, "gap", done=done)) as stored:
            assert (stored.missed, stored.left) == (missed, 5 if missed == 0 and done else 8)


def test_of_a_topic_that_was_recreated_nothing_was_read(
    kafka: KafkaServer, state: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_rebuild, "_SAVE_S", 0.0)
    monkeypatch.setattr(rebuild, "BATCH", 10)
    merge, sizes = rebuild.merge, list[int]()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})

    def filled() -> None:
        kafka.create_topics(["again"], partitions=1)
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        for payload in PACKETS:
            producer.produce("again", payload)
        assert producer.flush(120) == 0

    def merged(packets: list[rebuild.Packet], *given: object) -> rebuild.Rebuilt:
        if len(sizes) == 3:
            raise DependencyUnavailableError("Redis: gone")
        sizes.append(len(packets))
        return merge(packets, *given)  # type: ignore[arg-type]

    filled()
    monkeypatch.setattr(rebuild, "merge", merged)
    assert rebuilt("--from", "kafka:///again")[0] == 1
    monkeypatch.setattr(rebuild, "merge", merge)
    admin.delete_topics(["again"])["again"].result()
    while "again" in admin.list_topics(timeout=60).topics:
        time.sleep(0.1)
    filled()
    code, said = rebuilt("--from", "kafka:///again")
    assert (code, f"of {len(PACKETS)} packets in the state" in said) == (0, True), said


def test_a_topic_that_is_none(state: RedisServer) -> None:
    code, said = rebuilt("--from", "kafka:///evenings")
    assert (code, "topic evenings does not exist" in said) == (2, True)
    for wrong in ("kafka:nights", "kafka://", "kafka:///a/b", "kafka://me:secret@host/alerts"):
        code, said = rebuilt("--from", wrong)
        assert code == 2, wrong
        assert "secret" not in said
