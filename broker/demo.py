"""The demo: every part of the service in one process, on simulated and, where there are any, real alerts.

Kafka is librdkafka's mock and Redis a real one on a free port; the model runs in ONNX Runtime.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import start_http_server
from pydantic import SecretStr

from broker.client import PublishedAnnotation, Subscription
from broker.config import KafkaSettings, PipelineSettings, RedisSettings, Settings
from broker.embedded.kafka_mock import PARTITION_BYTES, KafkaMock
from broker.embedded.redis import RedisServer
from broker.publish.topics import OutputTopics
from broker.sources import iter_packets
from broker.streaming.accounting import Accounting
from broker.streaming.replay import Replay
from broker.streaming.service import Service
from broker.streaming.worker import worker
from broker.surveys.simulator import simulate_alerts

log = logging.getLogger(__name__)

INPUT_TOPIC: Final = "alerts.demo"
_MAX_BYTES_AHEAD: Final = PARTITION_BYTES
"""How far the replay may be ahead of the service: the mock drops what nobody has read in time."""
_MAX_ALERTS_UNSEEN: Final = 1000
"""How far the service may be ahead of the subscriber, for the same reason."""
_SHOW_EVERY_S: Final = 0.2


@dataclass(slots=True)
class ClassTally:
    """What the subscriber saw of one class."""

    alerts: int = 0
    probability: float = 0.0
    """Sum of the probabilities of the class, of those alerts for which it is the most probable."""
    anomalies: int = 0


@dataclass(slots=True)
class DemoProgress:
    """The state of the demo, for a display."""

    sent: int = 0
    seen: int = 0
    seconds: float = 0.0
    """Since the first alert was sent."""
    classes: dict[str, ClassTally] = field(default_factory=dict)
    surveys: Counter[str] = field(default_factory=Counter)
    strangest: list[PublishedAnnotation] = field(default_factory=list)
    """The annotations with the highest anomaly distances."""
    accounting: Accounting = field(default_factory=Accounting)

    @property
    def rate(self) -> float:
        """Alerts a second, from the first one sent to the last one seen."""
        return self.seen / self.seconds if self.seconds else 0.0

    @property
    def done(self) -> bool:
        """Whether each alert that was delivered was seen, too."""
        return self.seen == self.accounting.classified + self.accounting.not_classified

    def add(self, annotation: PublishedAnnotation, threshold: float) -> None:
        """Count one annotation that the subscriber read."""
        self.seen += 1
        self.surveys[annotation.survey] += 1
        tally = self.classes.setdefault(annotation.best_class, ClassTally())
        tally.alerts += 1
        tally.probability += annotation.best_probability
        if annotation.anomaly_score is not None:
            tally.anomalies += annotation.anomaly_score >= threshold
            ranked = sorted([*self.strangest, annotation], key=lambda a: -(a.anomaly_distance or 0.0))
            self.strangest = ranked[:3]


def demo_packets(real_alerts: Path | None, objects: int, alerts_per_object: int, seed: int) -> Iterator[bytes]:
    """Payloads of the demo: simulated alerts, after those of ``real_alerts`` where that folder is given."""
    if real_alerts is not None:
        # ELAsTiCC is simulated as well, and more than all others together.
        folders = [folder for folder in sorted(real_alerts.iterdir()) if folder.name != "elasticc"]
        for packet in iter_packets(folders, lambda remark: log.warning("%s", remark)):
            yield packet.payload
    for alert in simulate_alerts(objects, alerts_per_object, seed):
        yield alert.payload


class Audience(Protocol):
    """Who else looks on, such as a web page."""

    def begin(self, settings: Settings) -> None:
        """Called when all servers of the demo run."""

    def see(self, annotation: PublishedAnnotation) -> None:
        """Called with each annotation that the subscriber reads."""

    def stay(self) -> None:
        """Called when all were read; the demo's Redis runs until it returns."""

    def end(self) -> None:
        """Called at the end in any case."""


def run_demo(
    packets: Iterator[bytes],
    show: Callable[[DemoProgress], None],
    metrics_port: int = 0,
    audience: Audience | None = None,
) -> DemoProgress:
    """Start everything, send ``packets`` through it, and call ``show`` about five times a second.

    Returns when every alert was classified, published and read again by a subscriber, and the audience has gone.
    """
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaMock())
        redis = stack.enter_context(RedisServer())
        settings = Settings(
            kafka=KafkaSettings(
                bootstrap_servers=kafka.bootstrap,
                input_topics=(INPUT_TOPIC,),
                # The mock has no transactions, and makes topics by itself.
                delivery="at-least-once",
                create_topics=False,
            ),
            # No larger than what the replay may be ahead, so that batches are full.
            pipeline=PipelineSettings(batch_size=64, batch_wait_s=0.1),
            redis=RedisSettings(url=SecretStr(redis.url)),
        )
        topics = OutputTopics(settings.publish.topic_prefix, settings.anomaly.threshold)
        kafka.create_topics([INPUT_TOPIC, settings.kafka.spectra_topic, *topics.every()])
        if metrics_port:
            server, thread = start_http_server(metrics_port, "127.0.0.1")
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        service = stack.enter_context(worker(settings))
        threads = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(service.stop)
        running = threads.submit(service.run)
        see: Callable[[PublishedAnnotation], None] = lambda _: None  # noqa: E731 - no more than a default
        if audience is not None:
            stack.callback(audience.end)
            audience.begin(settings)
            see = audience.see
        progress = _watch(service, running, settings, packets, show, see, threads)
        if audience is not None:
            audience.stay()
        return progress


def _watch(
    service: Service,
    running: Future[Accounting],
    settings: Settings,
    packets: Iterator[bytes],
    show: Callable[[DemoProgress], None],
    see: Callable[[PublishedAnnotation], None],
    threads: ThreadPoolExecutor,
) -> DemoProgress:
    progress = DemoProgress(accounting=service.accounting)
    over = threading.Event()
    topics = OutputTopics(settings.publish.topic_prefix, settings.anomaly.threshold).all_alerts()
    subscription = Subscription(topics, settings.kafka.bootstrap_servers, start="earliest", idle_timeout=_SHOW_EVERY_S)
    sending = threads.submit(_send, settings.kafka, packets, progress, over)
    start = time.monotonic()
    try:
        with subscription:
            while not (sending.done() and progress.done and service.accounting.messages == progress.sent):
                shown = time.monotonic()
                for annotation in subscription:
                    progress.add(annotation, settings.anomaly.threshold)
                    see(annotation)
                    if time.monotonic() - shown > _SHOW_EVERY_S:
                        break
                progress.seconds = time.monotonic() - start
                show(progress)
                for part in (running, sending):
                    if part.done():
                        part.result()  # raises what ended it
    finally:
        over.set()
        service.stop()
    running.result()
    return progress


def _send(kafka: KafkaSettings, packets: Iterator[bytes], progress: DemoProgress, over: threading.Event) -> None:
    """Send packets no faster than they are processed."""
    sent_bytes = 0
    with Replay(kafka, INPUT_TOPIC) as replay:
        for payload in packets:
            sent_bytes += len(payload)
            while (
                sent_bytes - progress.accounting.payload_bytes > _MAX_BYTES_AHEAD
                or progress.accounting.classified + progress.accounting.not_classified - progress.seen
                > _MAX_ALERTS_UNSEEN
            ):
                if over.wait(0.02):
                    return
            replay.send(payload)
            progress.sent = replay.sent
