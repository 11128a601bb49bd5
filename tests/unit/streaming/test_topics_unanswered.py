"""Questions about topics and groups that Kafka does not answer now."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicPartition

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError
from broker.streaming import clients
from broker.streaming.topics import TopicAdmin


class _Admin:
    """An AdminClient of a Kafka that is there or not."""

    def __init__(self) -> None:
        self.there = True
        self.asked: list[str] = []

    def list_topics(self, timeout: float) -> SimpleNamespace:
        self.asked.append("any broker")
        if not self.there:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return SimpleNamespace(topics={})

    def describe_topics(self, names: object, request_timeout: float) -> dict[str, Future[object]]:
        self.asked.append("controller")
        answer: Future[object] = Future()
        if self.there:
            answer.set_result(SimpleNamespace(topic_id="an-id"))
        else:
            answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        return {"t": answer}

    def poll(self, timeout: float) -> int:
        return 0


def test_the_controller_is_not_asked_for_until_a_broker_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = _Admin()
    monkeypatch.setattr(clients, "admin", lambda settings: admin)
    topics = TopicAdmin(KafkaSettings())
    assert topics.ids(["t"]) == {"t": "an-id"}
    assert admin.asked == ["controller"]
    admin.there = False
    for _ in range(3):
        with pytest.raises(DependencyUnavailableError):
            topics.ids(["t"])
    assert admin.asked[1:] == ["controller", "any broker", "any broker"]
    admin.there = True
    assert topics.ids(["t"]) == topics.ids(["t"]) == {"t": "an-id"}
    assert admin.asked[4:] == ["any broker", "controller", "controller"]


class _NotConnected(_Admin):
    """What librdkafka says of groups while the coordinator's connection is being made, and where there is no group."""

    def __init__(self, *, real: bool) -> None:
        super().__init__()
        self.real, self.connected = real, False

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={}, brokers={1: None}, controller_id=1 if self.real else -1)

    def _answer(self, value: object) -> dict[str, Future[object]]:
        answer: Future[object] = Future()
        if self.connected:
            answer.set_result(value)
        else:
            answer.set_exception(KafkaException(KafkaError(KafkaError._UNSUPPORTED_FEATURE)))
        return {"group": answer}

    def list_consumer_group_offsets(self, request: object, **_: object) -> dict[str, Future[object]]:
        return self._answer(SimpleNamespace(topic_partitions=[TopicPartition("t", 0, 50)]))

    def describe_consumer_groups(self, groups: object, **_: object) -> dict[str, Future[object]]:
        member = SimpleNamespace(assignment=SimpleNamespace(topic_partitions=[TopicPartition("t", 0)]))
        return self._answer(SimpleNamespace(state=ConsumerGroupState.STABLE, members=[member]))


@pytest.mark.parametrize("connected_before", [True, False])
def test_offsets_of_a_group_whose_coordinator_is_not_connected_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, connected_before: bool
) -> None:
    """They were taken for none, and the group's spectra were read a second time."""
    admin = _NotConnected(real=True)
    monkeypatch.setattr(clients, "admin", lambda settings: admin)
    topics = TopicAdmin(KafkaSettings())
    if connected_before:
        topics.connect()
    with pytest.raises(DependencyUnavailableError):
        topics.committed("group", [TopicPartition("t", 0, -1001)])
    with pytest.raises(DependencyUnavailableError):
        topics.is_assigned("group", "t")
    admin.connected = True
    assert [p.offset for p in topics.committed("group", [TopicPartition("t", 0, -1001)])] == [50]
    assert topics.is_assigned("group", "t") is True


def test_a_cluster_without_groups_has_no_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "admin", lambda settings: _NotConnected(real=False))
    topics = TopicAdmin(KafkaSettings())
    assert [p.offset for p in topics.committed("group", [TopicPartition("t", 0, -1001)])] == [-1001]
    assert topics.is_assigned("group", "t") is False
