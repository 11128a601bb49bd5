"""Kafka, Redis and Triton killed and brought back, and a disk that is full."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import find_kafka_home
from deploy.local.triton_server import TritonServer
from tests.faults.conftest import NewCase
from tests.faults.harness import BATCH, GIVE_UP_S, JOINED, PARTITIONS, Case, Kafka, check_recovery
from tests.faults.ledger import Row, Sent, stream
from tests.kafka_groups import members_of

AWAY_S = 4.0


@pytest.fixture
def alerts(full: bool) -> list[Sent]:
    return stream(6000 if full else 2000, seed=3)


@pytest.mark.timeout(900)
def test_kafka_killed_and_brought_back(new_case: NewCase, kafka: Kafka, alerts: list[Sent]) -> None:
    """On the same port and folder."""
    with new_case("broker") as case:
        for name in ("one", "two"):
            case.worker(name)
        full_rate = case.begin(alerts)
        kafka.kill()
        time.sleep(AWAY_S)
        kafka.start()
        back = time.monotonic()
        by_hand = case.wait_with_the_runbook(len(alerts))
        recovery = case.ledger.recovery(back, full_rate)
        note = f"since it answered{by_hand}; workers that ended and were started again: {case.restarts}"
        # What no coordinator knows any more is aborted by partition: offsets, where annotations may be committed.
        doubled = len(case.workers) * BATCH if by_hand else 0
        case.finish("Kafka: kill -9, back on the same folder", recovery, note, doubled=doubled)
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_redis_killed_and_brought_back(new_case: NewCase, alerts: list[Sent]) -> None:
    """With its data: ``appendonly yes``, ``appendfsync always``."""
    with new_case("redis") as case:
        assert isinstance(case.redis, RedisServer)
        for name in ("one", "two"):
            case.worker(name)
        full_rate = case.begin(alerts)
        objects = len(list(case.redis.client().scan_iter("trifid:*:ztf:*:lc")))
        case.redis.kill()
        time.sleep(AWAY_S)
        case.redis.start()
        back = time.monotonic()
        assert len(list(case.redis.client().scan_iter("trifid:*:ztf:*:lc"))) >= objects > 0
        case.wait(len(alerts))
        recovery = case.ledger.recovery(back, full_rate)
        case.finish("Redis: kill -9, with persistence", recovery, "since it answered")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_redis_comes_back_empty(new_case: NewCase, alerts: list[Sent]) -> None:
    """Without persistence: still one annotation an alert, from at least what its packet carries."""
    with new_case("forgetful", redis=RedisServer()) as case:
        assert isinstance(case.redis, RedisServer)
        for name in ("one", "two"):
            case.worker(name)
        full_rate = case.begin(alerts)
        case.redis.kill()
        time.sleep(AWAY_S)
        case.redis.start()
        back = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(back, full_rate)
        carried = {sent.alert_id: sent.detections for sent in alerts}
        short = [o for o in case.ledger.outputs if o.detections < carried[o.alert_id]]
        assert not short, f"fewer detections than in their packets: {short[:5]}"
        case.finish("Redis: kill -9, without persistence", recovery, "since it answered; histories begin again")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_triton_killed_in_the_middle_of_a_batch(new_case: NewCase, triton: TritonServer, alerts: list[Sent]) -> None:
    """Three times, at random moments."""
    chance = random.Random(4)
    engine = {"inference": {"engine": "triton"}, "triton": {"url": triton.grpc_url}}
    with new_case("triton") as case:
        case.worker("one", engine)
        full_rate = case.begin(alerts, 0.15)
        for _ in range(3):
            case.wait(case.ledger.accounted + 100)
            time.sleep(chance.uniform(0.0, 0.5))
            triton.kill()
            time.sleep(1.0)
            triton.start()
            back = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(back, full_rate)
        assert not case.ledger.letters
        case.finish("Triton: kill -9, 3 times", recovery, "since it answered the last time")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_topic_that_takes_no_dead_letter(new_case: NewCase, kafka: Kafka, alerts: list[Sent]) -> None:
    """The service stops with a clear error rather than dropping one; once the topic is repaired it goes on."""
    garbage = Sent(random.Random(5).randbytes(20_000), b"garbage")
    alerts = [*alerts[: len(alerts) // 2], garbage, *alerts[len(alerts) // 2 :]]
    with new_case("letters", dead_letter_topic={"max.message.bytes": "10000"}) as case:
        worker = case.worker("one")
        case.ledger.send(alerts)
        code = worker.wait_for_end(GIVE_UP_S)
        assert code == 2, case.tails()
        assert "lower publish.dead_letter_max_bytes" in worker.output
        assert not case.ledger.letters
        topic = f"{case.prefix}.deadletter"
        change = ("--alter", "--entity-type", "topics", "--entity-name", topic)
        kafka.tool("configs", *change, "--add-config", "max.message.bytes=1000000")
        worker.start()
        started = time.monotonic()
        worker.wait_for(JOINED)
        case.wait(len(alerts))
        (letter,) = case.ledger.letters
        assert "neither an Avro container" in letter.reason
        recovery = letter.time - started
        case.finish("dead letters refused by their topic", recovery, "stopped with exit code 2; start to dead letter")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_a_transaction_that_nobody_ends(new_case: NewCase, kafka: Kafka, full: bool) -> None:
    """Its coordinator has lost it, as a crash may: the offsets in it are pending until an operator ends it.

    The worker says so, and goes on when that was done as the runbook says; made by removing the coordinators' topic
    while Kafka is down.
    """
    alerts = stream(2000 if full else 400, seed=9)
    half = len(alerts) // 2
    with new_case("hanging") as case:
        worker = case.worker("one")
        case.begin(alerts[:half], 1.0)
        quiet = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
        lost = Producer({**quiet, "transactional.id": "hanging-lost", "transaction.timeout.ms": 600_000})
        nobody = Consumer({**quiet, "group.id": case.prefix})
        lost.init_transactions(60)
        lost.begin_transaction()
        places = [TopicPartition(f"{case.prefix}.in", partition, 0) for partition in range(PARTITIONS)]
        worker.kill()
        wait_for_empty_group(kafka, case.prefix)
        lost.send_offsets_to_transaction(places, nobody.consumer_group_metadata(), 60)
        nobody.close()
        kafka.kill()
        for folder in kafka.logs.glob("__transaction_state-*"):
            shutil.rmtree(folder)
        kafka.start()
        worker.start()
        case.ledger.send(alerts[half:])
        worker.wait_for("cannot seek to the committed offsets")
        time.sleep(AWAY_S)
        assert case.ledger.accounted == half  # nothing is read from a wrong place
        ended = kafka.end_open_transactions()
        assert [topic for topic, _ in ended] == ["__consumer_offsets"], ended
        back = time.monotonic()
        case.wait(len(alerts))
        case.finish("a transaction that its coordinator has lost", time.monotonic() - back, "since it was ended")


def wait_for_empty_group(kafka: Kafka, group: str) -> None:
    """Until a member that was killed counts as gone: nobody else may commit before."""
    end = time.monotonic() + GIVE_UP_S
    while members_of(kafka.bootstrap, group):
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for a broker, in memory; skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = "size=700m"
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False).returncode
    ):
        pytest.skip("a small disk cannot be mounted here (it needs root)")
    yield folder
    # Lazily: whatever holds a file in it is gone soon.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(900)
def test_full_disk(small_disk: Path, tmp_path: Path, report: Callable[[Row], None], alerts: list[Sent]) -> None:
    """Kafka's disk fills up with what comes out, and Kafka halts; with room again it is started again.

    As many alerts as are in flight at a worker came twice in 2 of 103 runs; why is not known (docs/faults.md).
    """
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    filler = small_disk / "filler"
    with Kafka(small_disk / "kafka") as kafka, Case(kafka, tmp_path, report, "disk") as case:
        for name in ("one", "two"):
            case.worker(name)
        full_rate = case.begin(alerts)
        space = os.statvfs(small_disk)
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            for _ in range(space.f_bavail * space.f_frsize // 65536 + 1):
                file.write(bytes(65536))
        stalled = time.monotonic()
        while kafka.running and time.monotonic() < stalled + 30:
            time.sleep(0.2)
        halted = not kafka.running
        filler.unlink()
        kafka.kill()
        kafka.start()
        back = time.monotonic()
        by_hand = case.wait_with_the_runbook(len(alerts))
        recovery = case.ledger.recovery(back, full_rate)
        note = (
            f"Kafka {'halted by itself' if halted else 'was killed'}; workers started again: {case.restarts}" + by_hand
        )
        case.finish("full disk of Kafka", recovery, note, doubled=len(case.workers) * BATCH)
    check_recovery(recovery)
