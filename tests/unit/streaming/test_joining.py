"""When a worker is ready: it joins the group of spectra as soon as that of alerts has settled, and can read offsets."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from broker.config import KafkaSettings, MetricsSettings, PipelineSettings
from broker.errors import DependencyUnavailableError
from broker.metrics import OFFSETS_PENDING
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming import consumer
from broker.streaming.health import Health
from broker.streaming.service import Control, Service

REFRESH_S = 600.0


class Topics:
    """Answers at once: the group of alerts is being rebalanced at first, and has settled then."""

    silent_s = 0.0

    def __init__(self, *answers: bool | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def ask(self, names: Iterable[str]) -> dict[str, object]:
        return {}

    def answer(self, asked: object) -> dict[str, str]:
        return {}

    def is_assigned(self, group_id: str, topic: str) -> bool | None:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def looked(*answers: bool | None, until: int) -> tuple[Topics, list[float]]:
    """A worker that looks until it has asked so often, and when it then joined the group of spectra, if it did."""
    service = Service(
        KafkaSettings(metadata_refresh_s=REFRESH_S),
        PipelineSettings(),
        lambda: lambda batch: None,  # type: ignore[arg-type, return-value]
        Publisher(OutputTopics("trifid", 0.9), "Trifid", 1000),
        Control(Health(MetricsSettings())),
    )
    topics, joined, begun = Topics(*answers), list[float](), time.monotonic()
    watch = service._watch
    watch._topics = topics  # type: ignore[assignment]
    service._consumers += [service._consumer("alerts", ["in"], "group"), service._consumer("s", ["spectra"], "spectra")]
    service._consumers[0].subscribed = True

    def subscribe(stop: object) -> None:
        joined.append(time.monotonic() - begun)
        service._consumers[1].subscribed = True

    service._consumers[1].subscribe = subscribe  # type: ignore[method-assign]
    while topics.asked < until and time.monotonic() < begun + 60:
        watch.look()
        time.sleep(0.02)
    watch.look()
    for member in service._consumers:
        member.close()
    return topics, joined


def test_a_group_that_is_being_rebalanced_is_asked_again_soon() -> None:
    """It was asked again after ``metadata_refresh_s`` only, 5 s in which the worker was not ready."""
    topics, joined = looked(None, None, False, until=3)
    assert topics.asked == 3
    assert len(joined) == 1


def test_workers_of_an_earlier_version_are_asked_for_seldom() -> None:
    topics, joined = looked(None, True, until=2)
    assert topics.asked == 2
    assert not joined


def test_committed_offsets_that_cannot_be_read_are_told_once_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(consumer.time, "monotonic", lambda: now[0])
    service = Service(
        KafkaSettings(), PipelineSettings(), lambda: lambda batch: None,  # type: ignore[arg-type, return-value]
        Publisher(OutputTopics("trifid", 0.9), "Trifid", 1000), Control(Health(MetricsSettings())),
    )  # fmt: skip
    member, health = service._consumer("alerts", ["in"], "group"), service._health
    member.subscribed = True
    health.report("group", None)
    pending = OFFSETS_PENDING.labels("group")._value

    def seek() -> None:
        raise DependencyUnavailableError("Kafka: group alerts: unstable offsets")

    with monkeypatch.context() as held:
        held.setattr(member.partitions, "seek_to_committed", seek)
        for later, ready in ((0.0, True), (29.0, True), (31.0, False)):
            now[0] = 1000.0 + later
            assert member.rewind() is False
            assert pending.get() == later
            assert (health.ready()["group"] is None) is ready
        told = health.ready()["group"] or ""
        assert told.startswith("cannot read the committed offsets for 31 s")
        assert "TrifidOffsetsPending" in told
        assert "unstable offsets" in told
    assert member.rewind() is True
    assert health.ready()["group"] is None
    assert pending.get() == 0.0
    member.close()
