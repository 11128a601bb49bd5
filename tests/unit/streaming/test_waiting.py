"""What a worker says of itself while it waits, and after it gave up what it waited for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import MetricsSettings, PipelineSettings
from broker.errors import DependencyUnavailableError
from broker.streaming.health import Health
from broker.streaming.partitions import BatchAbandonedError
from broker.streaming.waiting import Waiting


def test_a_worker_whose_partitions_went_while_it_waited_waits_no_more() -> None:
    """Without any partition it does nothing that could succeed, and was not ready for ever."""
    health = Health(MetricsSettings())
    partitions = SimpleNamespace(lost=False, resume=lambda: None)

    def poll(_: float) -> None:
        partitions.lost = True

    source: Any = SimpleNamespace(
        subscribed=True, partitions=partitions, poll_without_taking=poll, lag=lambda cached: 0, in_flight=None
    )
    waiting = Waiting(PipelineSettings(), [source], lambda: None, health, threading.Event())

    def unavailable() -> None:
        raise DependencyUnavailableError("Redis is unavailable")

    with pytest.raises(BatchAbandonedError):
        waiting.patiently(unavailable, source)
    assert health.ready()["work"] is None
    assert waiting.end()
