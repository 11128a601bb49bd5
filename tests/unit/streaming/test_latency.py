"""How long alerts take, in seconds, and when each topic had its last message."""

from __future__ import annotations

import pytest

from broker.batch import IncomingMessage, Origin
from broker.metrics import ALERT_LATENCY, DELIVERED_MESSAGE, LAST_MESSAGE
from broker.streaming import latency


def observed() -> dict[str, float]:
    """Cumulative counts by the upper end of their bucket, the sum and the count."""
    (metric,) = ALERT_LATENCY.collect()
    return {s.labels.get("le", s.name): s.value for s in metric.samples if not s.name.endswith("_created")}


def message(topic: str, timestamp_ms: int | None) -> IncomingMessage:
    origin = None if timestamp_ms is None else Origin(topic, 0, 1, timestamp_ms)
    return IncomingMessage(b"", 61000.0, origin)


def test_latency_is_in_seconds_since_each_messages_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency.time, "time", lambda: 1_700_000_100.0)
    before = observed()
    latency.measure_latency(
        [
            message("latency-a", 1_700_000_097_500),  # 2.5 s ago
            message("latency-a", 1_700_000_000_000),  # 100 s ago
            message("latency-b", 1_700_000_101_000),  # of a clock that is a second ahead
            message("latency-b", 0),  # Kafka does not say
            message("", None),  # no message of Kafka's
        ]
    )
    after = observed()
    gained = {name: after[name] - before[name] for name in after}
    assert gained["trifid_alert_latency_seconds_sum"] == pytest.approx(102.5)
    assert gained["trifid_alert_latency_seconds_count"] == 3
    buckets = {float(name): value for name, value in gained.items() if not name.startswith("trifid")}
    for end, count in buckets.items():
        assert count == sum(latency <= end for latency in (0.0, 2.5, 100.0)), end
    assert any(2.5 < end < 100.0 for end in buckets)
    for topic in ("latency-a", "latency-b"):
        assert LAST_MESSAGE.labels(topic)._value.get() == 1_700_000_100.0
    newest = {"latency-a": 1_700_000_097.5, "latency-b": 1_700_000_101.0}
    assert {topic: DELIVERED_MESSAGE.labels(topic)._value.get() for topic in newest} == newest
