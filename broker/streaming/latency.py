"""How long alerts take, and when each topic had its last message."""

from __future__ import annotations

import time
from collections.abc import Sequence

from broker.batch import IncomingMessage
from broker.metrics import ALERT_LATENCY, DELIVERED_MESSAGE, LAST_MESSAGE


def measure_latency(batch: Sequence[IncomingMessage]) -> None:
    """Observe how long delivered messages took, from each one's own time on: what it waited in Kafka counts, too."""
    now = time.time()
    newest: dict[str, float] = {}
    for message in batch:
        if message.origin is None:
            continue
        written = message.origin.timestamp_ms / 1000
        if written > 0:
            ALERT_LATENCY.observe(max(0.0, now - written))
        newest[message.origin.topic] = max(written, newest.get(message.origin.topic, 0.0))
    for topic, written in newest.items():
        LAST_MESSAGE.labels(topic).set(now)
        if written > 0:
            DELIVERED_MESSAGE.labels(topic).set(written)
