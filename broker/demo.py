"""The demo: every part of the service in one process, on simulated and, where there are any, real alerts.

Kafka is librdkafka's mock and Redis a real one on a free port; the model runs in ONNX Runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from broker.client import PublishedAnnotation
from broker.embedded.kafka_mock import PARTITION_BYTES
from broker.sources import iter_packets
from broker.streaming.books import Books

INPUT_TOPIC: Final = "alerts.demo"
_MAX_BYTES_AHEAD: Final = PARTITION_BYTES // 2
"""How far the replay may be ahead of the service: the mock drops what nobody has read in time."""
_MAX_ALERTS_UNSEEN: Final = 1000
"""How far the service may be ahead of the subscriber, for the same reason."""


@dataclass(slots=True)
class ClassTally:
    """What the subscriber saw of one class."""

    alerts: int = 0
    probability: float = 0.0
    """Sum of the probabilities of the class, of those alerts for which it is the most probable."""
    anomalies: int = 0


@dataclass(slots=True)
class Progress:
    """The state of the demo, for a display."""

    sent: int = 0
    seen: int = 0
    seconds: float = 0.0
    """Since the first alert was sent."""
    classes: dict[str, ClassTally] = field(default_factory=dict)
    surveys: Counter[str] = field(default_factory=Counter)
    strangest: list[PublishedAnnotation] = field(default_factory=list)
    """The annotations with the highest anomaly distances."""
    books: Books = field(default_factory=Books)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Alerts a second, from the first one sent to the last one seen."""
        return self.seen / self.seconds if self.seconds else 0.0

    def add(self, annotation: PublishedAnnotation, threshold: float) -> None:
        """Count one annotation that the subscriber read."""
        self.seen += 1
        self.surveys[annotation.survey] += 1
        tally = self.classes.setdefault(annotation.best_class, ClassTally())
        tally.alerts += 1
        tally.probability += max(annotation.probabilities)
        if annotation.anomaly_score is not None:
            tally.anomalies += annotation.anomaly_score >= threshold
            ranked = sorted([*self.strangest, annotation], key=lambda a: -(a.anomaly_distance or 0.0))
            self.strangest = ranked[:3]


def demo_packets(real_alerts: Path | None, count: int) -> Iterator[bytes]:
    """Payloads of about ``count`` alerts: simulated ones and, where there is a folder of them, as many real ones."""
    real = [] if real_alerts is None else [real_alerts]
    for path in real:
        yield from (packet.payload for packet in islice(iter_packets([path]), count // 2))
