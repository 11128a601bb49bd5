"""The index of the web page filled from real Kafka: committed annotations only, each once, over stops and failures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from broker.batch import BatchResult
from broker.cli import main
from broker.config import Settings
from broker.errors import DependencyUnavailableError
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.records import Annotation
from broker.web.follow import Follower
from broker.web.index import Index
from deploy.local.kafka_server import KafkaServer
from tests.waiting import wait_until

A_STAR = Annotation(
    survey="ztf", alert_id=0, source_id=0, object_id="star", ra=1.0, dec=2.0, mjd=60000.0, class_names=("M", "SR"),
    probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=300.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def kafka(kafka: KafkaServer) -> KafkaServer:
    kafka.create_topics(["trifid.ztf.all", "trifid.ztf.m", "trifid.lsst.all", "trifid.deadletter"])
    return kafka


def send(kafka: KafkaServer, numbers: Sequence[int], *, commit: bool, survey: str = "ztf") -> None:
    """Annotations of one object, by number, in one transaction, to all their topics as the service does."""
    result = BatchResult()
    for number in numbers:
        result.annotations.append(replace(A_STAR, survey=survey, alert_id=number, mjd=60000.0 + number))
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": f"worker-{commit}-{survey}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for message in Publisher(OutputTopics("trifid", 1.0), "Trifid", 1000).messages(result):
        if message.topic in ("trifid.ztf.all", "trifid.ztf.m", "trifid.lsst.all"):
            producer.produce(message.topic, message.value, message.key)
    producer.flush(120)
    if commit:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)


def settings_of(kafka: KafkaServer, folder: Path, group: str) -> Settings:
    web = {"database": f"sqlite:///{folder / 'web.sqlite'}", "group_id": group}
    return Settings.model_validate({"kafka": {"bootstrap_servers": kafka.bootstrap}, "web": web})


def stored(index: Index, survey: str = "ztf") -> list[int]:
    return [int(row["alertIdStr"]) for row in index.history(survey, "star")]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(f"sqlite:///{tmp_path / 'web.sqlite'}")
    yield index
    index.close()


def test_what_was_committed_is_there_once_over_stops_and_failures(
    kafka: KafkaServer, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(kafka, tmp_path, "index")
    send(kafka, range(5), commit=True)
    send(kafka, range(5, 8), commit=False)
    send(kafka, [8], commit=True)
    with Follower(settings, index) as follower:
        wait_until(lambda: len(stored(index)) == 6)
        wait_until(lambda: follower.problem is None)
        assert follower.annotations == 6  # the copies in the class's topic are not read
    assert stored(index) == [0, 1, 2, 3, 4, 8]
    # While nobody looks, and in another survey.
    send(kafka, [9], commit=True)
    send(kafka, [10], commit=True, survey="lsst")
    add, failures = index.add, []

    def fail_once(annotations: object) -> None:
        if not failures:
            failures.append(annotations)
            raise DependencyUnavailableError("database of the index: locked")
        add(annotations)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "add", fail_once)
    monkeypatch.setattr("broker.web.follow._RETRY_S", 0.1)
    with Follower(settings, index) as follower:
        wait_until(lambda: follower.problem == "database of the index: locked" or bool(follower.annotations))
        wait_until(lambda: stored(index)[-1:] == [9] and stored(index, "lsst") == [10])
        # What was read before the stop is not read again, and what failed is.
        wait_until(lambda: follower.annotations == 2)
    assert failures
    assert stored(index) == [0, 1, 2, 3, 4, 8, 9]


def test_a_night_is_read_from_kafka_with_its_dead_letters(kafka: KafkaServer, tmp_path: Path) -> None:
    """Annotations of another survey than the other tests': two of one object that are committed, one that is not."""
    send(kafka, [1, 2], commit=True, survey="lsst")
    send(kafka, [3], commit=False, survey="lsst")
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for reason in ("no schema 9", "no schema 9", "truncated\nand more"):
        producer.produce("trifid.deadletter", b"x", headers={"reason": reason})
    assert producer.flush(120) == 0
    path = tmp_path / "night.html"
    given = {
        "TRIFID_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "TRIFID_REDIS__URL": "redis://127.0.0.1:1/0",
    }  # fmt: skip
    result = CliRunner().invoke(main, ["night", "--from-kafka", "--output", str(path)], env=given)
    assert result.exit_code == 0, result.output
    made = path.read_text()
    shown = " ".join(re.sub("<[^>]+>", " ", made).split())
    assert "star lsst" in shown
    assert "Dead letters 3 " in shown
    assert "no schema 9 2 truncated 1" in shown
    assert "and more" not in shown
