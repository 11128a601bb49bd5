"""Questions about topics while no broker is there: librdkafka connects without a pause for those to the controller."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

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
