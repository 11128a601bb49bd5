"""What becomes of a batch whatever Kafka says of its messages: a producer that answers as each case is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError
from broker.metrics import DEPENDENCY_WAITS
from broker.publish.messages import OutgoingMessage
from broker.streaming import delivery
from broker.streaming.delivery import (
    AtLeastOnceDelivery,
    DeliveryTimedOutError,
    ExactlyOnceDelivery,
    KafkaUnreachableError,
    TopicMissingError,
    WorkerFencedError,
)

MESSAGES = [
    OutgoingMessage("trifid.ztf.all", b"first", b"ZTF18a", (("reason", b"why"),)),
    OutgoingMessage("trifid.ztf.rrab", b"second", b"ZTF18b", partition=0),
    OutgoingMessage("trifid.deadletter", b"third"),
]
OFFSETS = [TopicPartition("alerts", 3, 18)]
SENT = [f"produce {m.value.decode()}" for m in MESSAGES]


@dataclass
class _Message:
    name: str

    def topic(self) -> str:
        return self.name


def _error(code: int, *, retriable: bool = False, fatal: bool = False) -> KafkaError:
    return KafkaError(code, "said Kafka", fatal=fatal, retriable=retriable)


@dataclass
class Kafka:
    """Producer and consumer in one, which write down what is asked of them."""

    refused: dict[bytes, KafkaError] = field(default_factory=dict)
    """Messages that are not acknowledged, by value."""
    raised: dict[str, list[Exception]] = field(default_factory=dict)
    """What calls raise, one after the other, until nothing is left."""
    unacknowledged: list[int] = field(default_factory=list)
    """What ``flush`` returns, then 0."""
    member: str = "member-1"
    calls: list[str] = field(default_factory=list)
    produced: list[tuple[Any, ...]] = field(default_factory=list)
    offsets: list[TopicPartition] | None = None
    _reports: list[Callable[[], None]] = field(default_factory=list)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.raised.get(name.split()[0]):
            raise self.raised[name.split()[0]].pop(0)

    def produce(self, topic: str, value: bytes, key: bytes | None, partition: int, *, headers: Any, on_delivery: Any):
        self._call(f"produce {value.decode()}")
        self.produced.append((topic, value, key, partition, headers))
        error = self.refused.get(value)
        self._reports.append(lambda: on_delivery(error, _Message(topic)))

    def poll(self, seconds: float) -> int:
        reports, self._reports = self._reports, []
        for report in reports:
            report()
        return len(reports)

    def flush(self, seconds: float) -> int:
        assert 0 < seconds <= 10
        self._call("flush")
        self.poll(0)
        return self.unacknowledged.pop(0) if self.unacknowledged else 0

    def purge(self) -> None:
        self._call("purge")

    def init_transactions(self, seconds: float) -> None:
        self._call("init")

    def begin_transaction(self) -> None:
        self._call("begin")

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], group: object, seconds: float) -> None:
        assert group == "group of member-1"
        self._call("offsets")
        self.offsets = offsets

    def commit_transaction(self, seconds: float) -> None:
        self.poll(0)
        self._call("commit")

    def abort_transaction(self, seconds: float) -> None:
        self._call("abort")

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        self._call("commit")
        self.offsets = offsets

    def consumer_group_metadata(self) -> str:
        return "group of member-1"

    def memberid(self) -> str:
        return self.member


def at_least_once(kafka: Kafka, stop: threading.Event | None = None, **others: Any) -> AtLeastOnceDelivery:
    return AtLeastOnceDelivery(lambda: cast(Any, kafka), stop or threading.Event(), **others)


def exactly_once(kafka: Kafka, stop: threading.Event | None = None, **others: Any) -> ExactlyOnceDelivery:
    return ExactlyOnceDelivery(lambda: cast(Any, kafka), stop or threading.Event(), **others)


def waits() -> float:
    return float(DEPENDENCY_WAITS.labels("kafka")._value.get())


REFUSALS: list[tuple[int, type[TrifidError], str]] = [
    (KafkaError.MSG_SIZE_TOO_LARGE, ConfigurationError, "refuses a message for its size.*dead_letter_max_bytes"),
    (KafkaError.INVALID_MSG_SIZE, ConfigurationError, "refuses a message for its size"),
    (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigurationError, "topic trifid.ztf.rrab: .*outputs Write"),
    (KafkaError.UNKNOWN_TOPIC_OR_PART, TopicMissingError, "topic trifid.ztf.rrab: .*has it been deleted"),
    (KafkaError._UNKNOWN_TOPIC, TopicMissingError, "has it been deleted"),
    (KafkaError._UNKNOWN_PARTITION, TopicMissingError, "has it been deleted"),
    (KafkaError.UNKNOWN_TOPIC_ID, TopicMissingError, "has it been deleted"),
    (KafkaError._MSG_TIMED_OUT, DeliveryTimedOutError, "topic trifid.ztf.rrab: said Kafka"),
    (KafkaError._TIMED_OUT, DeliveryTimedOutError, "said Kafka"),
    (KafkaError.REQUEST_TIMED_OUT, DeliveryTimedOutError, "said Kafka"),
    (KafkaError.NOT_ENOUGH_REPLICAS, DependencyUnavailableError, "topic trifid.ztf.rrab: said Kafka"),
]


@pytest.mark.parametrize(("code", "kind", "told"), REFUSALS)
def test_a_message_that_is_refused_keeps_the_offsets_back(code: int, kind: type[TrifidError], told: str) -> None:
    kafka = Kafka(refused={b"second": _error(code)})
    with pytest.raises(kind, match=told) as caught:
        at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert type(caught.value) is kind
    assert kafka.calls == [*SENT, "flush"]
    assert kafka.offsets is None


def test_messages_are_acknowledged_before_the_offsets_are_committed() -> None:
    kafka, before = Kafka(unacknowledged=[3, 1]), waits()
    at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls == [*SENT, "flush", "flush", "flush", "commit"]
    assert kafka.offsets == OFFSETS
    assert kafka.produced == [
        ("trifid.ztf.all", b"first", b"ZTF18a", -1, [("reason", b"why")]),
        ("trifid.ztf.rrab", b"second", b"ZTF18b", 0, []),
        ("trifid.deadletter", b"third", None, -1, []),
    ]
    assert waits() == before + 2


def test_the_first_refusal_is_told_and_the_next_batch_begins_without_it() -> None:
    kafka = Kafka(refused={b"first": _error(KafkaError._MSG_TIMED_OUT), b"third": _error(KafkaError._UNKNOWN_TOPIC)})
    way = at_least_once(kafka)
    with pytest.raises(DeliveryTimedOutError, match=r"trifid\.ztf\.all"):
        way.deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    kafka.refused.clear()
    way.deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls[-1] == "commit"


@pytest.mark.parametrize("code", [KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT])
def test_a_message_purged_with_its_transaction_is_no_refusal(code: int) -> None:
    kafka = Kafka(refused={b"first": _error(code)})
    at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls[-1] == "commit"


def test_a_full_queue_is_drained_and_the_message_sent_once() -> None:
    kafka, beats = Kafka(raised={"produce": [BufferError(), BufferError()]}), []
    at_least_once(kafka, beat=lambda: beats.append(1)).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert [message[1] for message in kafka.produced] == [b"first", b"second", b"third"]
    assert kafka.calls == [SENT[0], SENT[0], *SENT, "flush", "commit"]
    assert len(beats) == 2


def test_a_full_queue_does_not_outlast_the_service() -> None:
    stop = threading.Event()
    stop.set()
    kafka = Kafka(raised={"produce": [BufferError()]})
    with pytest.raises(DependencyUnavailableError, match="did not take all messages before the end"):
        at_least_once(kafka, stop).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.offsets is None


def test_messages_that_nobody_acknowledges_do_not_outlast_the_service() -> None:
    stop = threading.Event()
    stop.set()
    kafka = Kafka(unacknowledged=[1])
    with pytest.raises(DependencyUnavailableError, match="did not acknowledge all messages before the end"):
        at_least_once(kafka, stop).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls == [*SENT, "flush"]


def test_a_message_that_cannot_be_sent_at_all_is_told_with_its_topic() -> None:
    kafka = Kafka(raised={"produce": [KafkaException(_error(KafkaError.MSG_SIZE_TOO_LARGE))]})
    with pytest.raises(ConfigurationError, match="refuses a message for its size"):
        at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.offsets is None
    kafka = Kafka(raised={"produce": [KafkaException(_error(KafkaError._UNKNOWN_TOPIC))]})
    with pytest.raises(TopicMissingError, match=r"topic trifid\.ztf\.all"):
        at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))


def test_offsets_that_are_refused_have_the_batch_delivered_again() -> None:
    before = waits()
    kafka = Kafka(raised={"commit": [KafkaException(_error(KafkaError.ILLEGAL_GENERATION))]})
    with pytest.raises(DependencyUnavailableError, match="Kafka: said Kafka") as caught:
        at_least_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert type(caught.value) is DependencyUnavailableError  # nothing was said of a message
    assert waits() == before + 1


@pytest.mark.parametrize(("passed", "unreachable"), [(59.0, False), (60.0, False), (61.0, True)])
def test_a_delivery_takes_no_longer_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, passed: float, unreachable: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr(delivery.time, "monotonic", lambda: now[0])
    kafka = Kafka(unacknowledged=[1])
    way = at_least_once(kafka, limit_s=60.0)
    now[0] += 500.0  # between batches any time may pass
    flush = kafka.flush

    def slow(seconds: float) -> int:
        now[0] += passed
        return flush(seconds)

    kafka.flush = slow  # type: ignore[method-assign]
    if unreachable:
        with pytest.raises(KafkaUnreachableError, match=r"not taken a batch for 61 s \(kafka\.unreachable_limit_s\)"):
            way.deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    else:
        way.deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert (kafka.offsets is None) is unreachable


def test_a_transaction_holds_messages_and_offsets() -> None:
    kafka = Kafka()
    exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls == ["begin", *SENT, "offsets", "commit"]
    assert kafka.offsets == OFFSETS


@pytest.mark.parametrize("call", ["offsets", "commit"])
def test_what_may_still_succeed_is_asked_again_and_nothing_else_is(call: str) -> None:
    kafka, before, beats = Kafka(), waits(), []
    kafka.raised[call] = [KafkaException(_error(KafkaError._TIMED_OUT, retriable=True)) for _ in range(2)]
    exactly_once(kafka, beat=lambda: beats.append(1)).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls.count(call) == 3
    assert kafka.calls.count("begin") == kafka.calls.count(SENT[0]) == 1
    assert "abort" not in kafka.calls
    assert waits() == before + 2
    assert len(beats) == 4


@pytest.mark.parametrize("call", ["offsets", "commit"])
def test_a_transaction_that_fails_is_aborted(call: str) -> None:
    kafka = Kafka(raised={call: [KafkaException(_error(KafkaError.ILLEGAL_GENERATION))]})
    with pytest.raises(DependencyUnavailableError, match="said Kafka") as caught:
        exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert type(caught.value) is DependencyUnavailableError
    assert kafka.calls[-1] == "abort"


def test_why_a_transaction_failed_is_what_was_said_of_a_message() -> None:
    kafka = Kafka(
        refused={b"second": _error(KafkaError._MSG_TIMED_OUT)},
        raised={"commit": [KafkaException(_error(KafkaError._STATE))]},
    )
    with pytest.raises(DeliveryTimedOutError, match=r"topic trifid\.ztf\.rrab"):
        exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls[-1] == "abort"


def test_offsets_that_time_out_may_not_count_for_the_next_transaction() -> None:
    """They may be on their way: only a new producer, of the next epoch, is safe from them."""
    first = Kafka(raised={"offsets": [KafkaException(_error(KafkaError._TIMED_OUT))]})
    second = Kafka(raised={"init": [KafkaException(_error(KafkaError._TIMED_OUT, retriable=True))]})
    connected = iter([first, second])
    way = ExactlyOnceDelivery(lambda: cast(Any, next(connected)), threading.Event())
    with pytest.raises(DeliveryTimedOutError, match="said Kafka"):
        way.deliver(MESSAGES, OFFSETS, cast(Any, first))
    assert first.calls == ["begin", *SENT, "offsets", "purge", "flush"]
    assert second.calls == ["init", "init"]
    way.deliver(MESSAGES, OFFSETS, cast(Any, second))
    assert second.calls[2:] == ["begin", *SENT, "offsets", "commit"]
    assert len(second.produced) == 3


def test_a_new_producer_that_kafka_refuses_ends_the_worker() -> None:
    first = Kafka(raised={"offsets": [KafkaException(_error(KafkaError.REQUEST_TIMED_OUT))]})
    second = Kafka(raised={"init": [KafkaException(_error(KafkaError._FENCED, fatal=True))]})
    connected = iter([first, second])
    way = ExactlyOnceDelivery(lambda: cast(Any, next(connected)), threading.Event())
    with pytest.raises(WorkerFencedError, match="does not let the transaction be aborted"):
        way.deliver(MESSAGES, OFFSETS, cast(Any, first))


def test_a_worker_that_is_shut_out_aborts_nothing() -> None:
    kafka = Kafka(raised={"commit": [KafkaException(_error(KafkaError._FENCED, fatal=True))]})
    with pytest.raises(WorkerFencedError, match="fenced this worker"):
        exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert "abort" not in kafka.calls


def test_a_transaction_that_cannot_be_aborted_ends_the_worker_unless_it_ends_anyway() -> None:
    failures = {"commit": KafkaError.ILLEGAL_GENERATION, "abort": KafkaError._STATE}
    kafka = Kafka(raised={call: [KafkaException(_error(code))] for call, code in failures.items()})
    with pytest.raises(WorkerFencedError, match="does not let the transaction be aborted"):
        exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    stop = threading.Event()
    stop.set()
    kafka = Kafka(raised={"commit": [KafkaException(_error(KafkaError._TIMED_OUT, retriable=True))]})
    with pytest.raises(DependencyUnavailableError):
        exactly_once(kafka, stop).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls[-1] == "commit"  # once, and the next process under this name aborts


def test_a_consumer_that_is_out_of_its_group_commits_nothing() -> None:
    kafka = Kafka(member="")
    with pytest.raises(DependencyUnavailableError, match="not in the group"):
        exactly_once(kafka).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls == []
    exactly_once(kafka, as_member=False).deliver(MESSAGES, OFFSETS, cast(Any, kafka))
    assert kafka.calls[-1] == "commit"


def test_a_transactional_id_that_may_not_be_used_is_a_mistake_in_the_settings() -> None:
    refused = _error(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, fatal=True)
    kafka = Kafka(raised={"init": [KafkaException(refused)]})
    with pytest.raises(ConfigurationError, match=r"begin with kafka\.group_id"):
        exactly_once(kafka).start()
    kafka = Kafka(raised={"init": [KafkaException(_error(KafkaError._TIMED_OUT))]})
    with pytest.raises(DependencyUnavailableError, match="said Kafka"):
        exactly_once(kafka).start()
    kafka = Kafka()
    exactly_once(kafka).start()
    at_least_once(kafka).start()
    assert kafka.calls == ["init"]


@pytest.mark.parametrize("make", [at_least_once, exactly_once])
def test_closing_drops_what_kafka_did_not_take(make: Callable[[Kafka], AtLeastOnceDelivery]) -> None:
    kafka = Kafka()
    make(kafka).close()
    assert kafka.calls == ["purge", "flush"]
    kafka = Kafka(raised={"purge": [KafkaException(_error(KafkaError._FENCED, fatal=True))]})
    make(kafka).close()
    assert kafka.calls == ["purge"]
