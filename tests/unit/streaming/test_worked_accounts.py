"""What is counted of a delivered batch, here and in the metrics; how clients of Kafka are set up; the worker thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import REGISTRY

from broker.batch import SPECTRA, BatchResult, DeadLetter, IncomingMessage
from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.records import KnownObject
from broker.streaming import clients
from broker.streaming.accounting import Accounting
from broker.streaming.limit import BatchSize
from broker.streaming.work_thread import WorkThread
from tests.unit.publish.test_messages import ANNOTATION, NOT_CLASSIFIED, OTHER, UNSCORED

ALERT = replace(ANNOTATION, trigger="alert", known_as=(KnownObject("vsx", "a", "EW", None, 0.1, "EW", "parent"),))


def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def gained(act: Callable[[], None]) -> dict[str, float]:
    """By how much each metric changes, by its name and the values of its labels."""
    before = samples()
    act()
    after = samples()
    changed = {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}
    return {
        " ".join([name, *(value for _, value in labels)]): value
        for (name, labels), value in changed.items()
        if not name.startswith(("python_", "process_"))
    }


def result() -> BatchResult:
    message = IncomingMessage(b"x", 61000.0)
    unscored = replace(UNSCORED, trigger="alert", history="", known_as=())
    return BatchResult(
        messages=7,
        alerts_in=Counter(ztf=5, lsst=1, unknown=2),
        points_left_out=Counter({("ztf", "flagged"): 3}),
        spectra_in=3,
        spectra_stored=2,
        annotations=[
            ALERT,
            replace(ALERT, survey="lsst", anomaly_score=0.25, history="packet", known_as=()),
            unscored,
            replace(OTHER, trigger="alert", known_as=()),
            replace(NOT_CLASSIFIED, trigger="alert", known_as=()),
            replace(ANNOTATION, trigger="spectrum"),  # no alert in: of an object that has a new spectrum
        ],
        dead_letters=[
            DeadLetter(message, "ztf", "why", 5),
            DeadLetter(message, "unknown", "why"),
            DeadLetter(message, "unknown", "why"),
            DeadLetter(message, SPECTRA, "why"),
        ],
    )


def test_each_alert_and_spectrum_is_counted_once() -> None:
    accounting = Accounting()
    changed = gained(lambda: accounting.add(result(), 7, 1234))
    assert (accounting.messages, accounting.payload_bytes) == (7, 1234)
    assert (accounting.alerts_in, accounting.classified) == (8, 4)
    assert (accounting.not_classified, accounting.dead_lettered) == (1, 3)
    assert (accounting.spectra_in, accounting.spectra_stored) == (3, 2)
    assert (accounting.spectra_dead_lettered, accounting.reclassified) == (1, 1)
    assert accounting.classes == {"RRAB": 3, "Other": 1, "NotClassified": 1}
    assert accounting.reconciled
    text = (
        "alerts in 8 = classified 4 + not classified 1 + dead-lettered 3; spectra in 3 = stored 2 + dead-lettered 1, "
        "upon which 1 objects were classified again: "
    )
    assert str(accounting).startswith(text)
    assert changed == {
        "trifid_alerts_in_total ztf": 5, "trifid_alerts_in_total lsst": 1, "trifid_alerts_in_total unknown": 2,
        "trifid_alerts_out_total classified ztf": 3, "trifid_alerts_out_total classified lsst": 1,
        "trifid_alerts_out_total not_classified ztf": 1, "trifid_alerts_out_total dead_lettered ztf": 1,
        "trifid_alerts_out_total dead_lettered unknown": 2, "trifid_classified_total RRAB": 3,
        "trifid_classified_total Other": 1, "trifid_points_left_out_total flagged ztf": 3,
        "trifid_spectra_total stored": 2, "trifid_spectra_total dead_lettered": 1, "trifid_reclassified_total ztf": 1,
        "trifid_alert_history_total missing ztf": 3, "trifid_alert_history_total packet lsst": 1,
        "trifid_known_objects_total vsx parent": 1, "trifid_anomaly_score_count": 3,
        "trifid_anomaly_score_sum": 0.5 + 0.25 + 0.5, "trifid_anomaly_unscored_total": 1,
    }  # fmt: skip
    accounting.add(result(), 7, 1000)
    assert (accounting.alerts_in, accounting.payload_bytes, accounting.classes["RRAB"]) == (16, 2234, 6)


@pytest.mark.parametrize(
    ("part", "value"),
    [("alerts_in", 9), ("dead_lettered", 2), ("spectra_in", 4), ("spectra_stored", 1), ("classified", 0)],
)
def test_what_does_not_reconcile_is_said(part: str, value: int) -> None:
    accounting = Accounting()
    accounting.add(result(), 7, 0)
    setattr(accounting, part, value)
    assert not accounting.reconciled
    assert "NOT RECONCILED" in str(accounting)
    assert str(Accounting()).startswith("alerts in 0 = classified 0 + not classified 0 + dead-lettered 0: ")
    assert "spectra" not in str(Accounting())
    assert Accounting().reconciled


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Kafka's clients were made with."""
    configurations: list[dict[str, Any]] = []

    def make(configuration: dict[str, Any]) -> object:
        configurations.append(configuration)
        return object()

    for name in ("Consumer", "Producer", "AdminClient"):
        monkeypatch.setattr(clients, name, make)
    return configurations


SETTINGS = KafkaSettings.model_validate(
    {
        "bootstrap_servers": "kafka:9", "group_id": "g", "worker_id": "w", "session_timeout_s": 9.0,
        "max_poll_interval_s": 70.0, "transaction_timeout_s": 50.0, "consumer_queue_mib": 3, "producer_queue_mib": 5,
        "max_message_bytes": 2_000_000, "metadata_refresh_s": 11.0, "options": {"linger.ms": 77},
    }
)  # fmt: skip


def part(configuration: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: configuration.get(name) for name in names.split()}


def test_a_consumer_commits_nothing_by_itself_and_reads_what_is_committed(made: list[dict[str, Any]]) -> None:
    clients.consumer(SETTINGS)
    clients.consumer(SETTINGS, "other")
    clients.reader(SETTINGS, "r")
    assert [c["group.id"] for c in made] == ["g", "other", "r"]
    for configuration in made:
        assert configuration["enable.auto.commit"] is False
        assert configuration["isolation.level"] == "read_committed"
        assert part(configuration, "fetch.message.max.bytes queued.max.messages.kbytes fetch.max.bytes") == {
            "fetch.message.max.bytes": 2_000_000, "queued.max.messages.kbytes": 3072, "fetch.max.bytes": 3 * 2**20,
        }  # fmt: skip
        assert part(configuration, "client.id linger.ms topic.metadata.refresh.interval.ms bootstrap.servers") == {
            "client.id": "g-w", "linger.ms": 77, "topic.metadata.refresh.interval.ms": 11_000,
            "bootstrap.servers": "kafka:9",
        }  # fmt: skip
        assert configuration["metadata.recovery.strategy"] == "none"
        assert configuration["error_cb"] is clients.log_error
    assert part(made[0], "session.timeout.ms heartbeat.interval.ms max.poll.interval.ms auto.offset.reset") == {
        "session.timeout.ms": 9000, "heartbeat.interval.ms": 1000, "max.poll.interval.ms": 70_000,
        "auto.offset.reset": "error",
    }  # fmt: skip
    assert part(made[2], "auto.offset.reset enable.partition.eof") == {
        "auto.offset.reset": "error", "enable.partition.eof": True,
    }  # fmt: skip


def test_how_a_group_assigns_partitions(made: list[dict[str, Any]]) -> None:
    for protocol, static in (("cooperative", True), ("eager", False)):
        clients.consumer(SETTINGS.model_copy(update={"group_protocol": protocol, "static_membership": static}))
    assert [c["partition.assignment.strategy"] for c in made] == ["cooperative-sticky", "range,roundrobin"]
    assert [c.get("group.instance.id") for c in made] == ["w", None]


def test_a_producer_sends_once_and_a_transaction_ends_before_kafka_ends_it(made: list[dict[str, Any]]) -> None:
    clients.producer(SETTINGS, transactional=True)
    clients.producer(SETTINGS, transactional=False)
    clients.producer(SETTINGS.model_copy(update={"max_message_bytes": 90 * 2**20}), transactional=False)
    names = "enable.idempotence message.max.bytes queue.buffering.max.kbytes transactional.id transaction.timeout.ms"
    assert part(made[0], f"{names} message.timeout.ms") == {
        "enable.idempotence": True, "message.max.bytes": 2_000_000, "queue.buffering.max.kbytes": 5120,
        "transactional.id": "g-w", "transaction.timeout.ms": 50_000, "message.timeout.ms": 25_000,
    }  # fmt: skip
    assert part(made[1], "enable.idempotence transactional.id transaction.timeout.ms message.timeout.ms") == {
        "enable.idempotence": True, "transactional.id": None, "transaction.timeout.ms": None,
        "message.timeout.ms": None,
    }  # fmt: skip
    assert made[2]["queue.buffering.max.kbytes"] == 180 * 1024
    assert made[0]["compression.type"] == "lz4"
    assert made[0]["linger.ms"] == 77  # kafka.options win over the defaults


def test_values_that_do_not_go_together_are_a_mistake_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(configuration: dict[str, Any]) -> object:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, "no such thing"))

    monkeypatch.setattr(clients, "AdminClient", refuse)
    with pytest.raises(ConfigurationError, match="settings of Kafka: no such thing"):
        clients.admin(SETTINGS)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "inputs need Read"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "need Read"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no right at the cluster"),
    ],
)
def test_a_right_that_is_missing_is_no_matter_of_waiting(code: int, told: str) -> None:
    refused = clients.failure(KafkaError(code, "said Kafka"), "topic a")
    assert isinstance(refused, ConfigurationError)
    assert str(refused).startswith("Kafka does not allow it: topic a: said Kafka; ")
    assert told in str(refused)
    away = clients.failure(KafkaError(KafkaError._AUTHENTICATION, "said Kafka"))
    assert isinstance(away, DependencyUnavailableError)  # passwords are changed on one side first
    assert str(away) == "Kafka: said Kafka"


def test_a_kind_of_error_is_logged_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    report = type(clients.log_error)()
    with caplog.at_level("WARNING"):
        for after, code, text in ((0, 1, "a"), (29.9, 1, "b"), (0, 2, "c"), (0.1, 1, "d"), (29.0, 1, "e")):
            now[0] += after
            report(KafkaError(code, text))
    assert [record.getMessage() for record in caplog.records] == ["Kafka: a", "Kafka: c", "Kafka: d"]


@dataclass
class Admin:
    """A cluster with the topic ``a``, on which some topics cannot be made."""

    errors: dict[str, int]
    made: list[tuple[str, int, int]] = field(default_factory=list)

    def list_topics(self, *, timeout: float) -> Any:
        if "list" in self.errors:
            raise KafkaException(KafkaError(self.errors["list"], "said Kafka"))
        return SimpleNamespace(topics={"a": None})

    def create_topics(self, topics: list[Any], *, request_timeout: float) -> dict[str, Future[None]]:
        self.made = [(t.topic, t.num_partitions, t.replication_factor) for t in topics]
        futures: dict[str, Future[None]] = {t.topic: Future() for t in topics}
        for name, future in futures.items():
            if name in self.errors:
                future.set_exception(KafkaException(KafkaError(self.errors[name], "said Kafka")))
            else:
                future.set_result(None)
        return futures

    def poll(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    ("errors", "kind", "told"),
    [
        ({}, None, ""),
        ({"b": KafkaError.TOPIC_ALREADY_EXISTS}, None, ""),  # another worker was faster
        ({"c": KafkaError.TOPIC_AUTHORIZATION_FAILED}, ConfigurationError, "creating topic c: said Kafka"),
        ({"c": KafkaError.INVALID_REPLICATION_FACTOR}, DependencyUnavailableError, "creating topic c: said Kafka"),
        ({"list": KafkaError._TRANSPORT}, DependencyUnavailableError, "Kafka: said Kafka"),
    ],
)
def test_topics_that_are_missing_are_made(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, int], kind: type[Exception] | None, told: str
) -> None:
    admin = Admin(errors)
    monkeypatch.setattr(clients, "AdminClient", lambda configuration: admin)
    settings = SETTINGS.model_copy(update={"topic_partitions": 7, "replication_factor": 3})
    if kind is None:
        clients.create_missing_topics(settings, ["a", "b", "c"])
        assert admin.made == [("b", 7, 3), ("c", 7, 3)]
        admin.made = []
        clients.create_missing_topics(settings, ["a"])
        assert admin.made == []
    else:
        with pytest.raises(kind, match=told):
            clients.create_missing_topics(settings, ["a", "b", "c"])


def test_the_worker_thread_does_one_thing_after_the_other() -> None:
    work_thread, done, go_on = WorkThread(), [], threading.Event()

    def work(number: int) -> tuple[int, threading.Thread]:
        go_on.wait(300)
        done.append(number)
        return number, threading.current_thread()

    def fail() -> None:
        raise KeyError("candid")

    futures = [work_thread.submit(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
    failed = work_thread.submit(fail)
    assert not work_thread.end(0.01)
    go_on.set()
    with pytest.raises(KeyError, match="candid"):
        failed.result(60)
    threads = {future.result(60)[1] for future in futures}
    assert [future.result()[0] for future in futures] == done == [0, 1, 2]
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.name == "work"  # as it is called where threads are looked at
    assert thread.daemon  # a call that never returns does not keep the process
    thread.join(300)
    assert work_thread.end(0.0)


def test_a_batch_is_halved_down_to_one_message_and_grows_by_a_twentieth() -> None:
    size = BatchSize(100)
    found = [size.now]
    for _ in range(8):
        size.halve()
        found.append(size.now)
    assert found == [100, 50, 25, 12, 6, 3, 1, 1, 1]
    for _ in range(3):
        size.grow()
    assert size.now == 16
    for _ in range(30):
        size.grow()
    assert (size.now, size.share) == (100, 1.0)
    assert REGISTRY.get_sample_value("trifid_batch_limit_messages") == 100
