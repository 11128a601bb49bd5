"""The demo: every part of the service in one process, on simulated and, where there are any, real alerts.

Kafka is librdkafka's mock and Redis a real one on a free port; the model runs in ONNX Runtime.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import start_http_server
from pydantic import SecretStr

from broker.client import PublishedAnnotation, Subscription
from broker.config import KafkaSettings, PipelineSettings, RedisSettings, Settings, SimilarSettings
from broker.embedded.kafka_mock import PARTITION_BYTES, KafkaMock
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
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
    for alert in simulate_alerts(objects, alerts_per_object, seed, long_rr_lyrae=True):
        yield alert.payload


class Audience(Protocol):
    """Who else looks on, such as a web page."""

    @property
    def database(self) -> str | None:
        """The URL of the index of annotations that it fills, as ``web.database``; None where it fills none."""

    def begin(self, settings: Settings) -> None:
        """Called when all servers of the demo run."""

    def see(self, annotation: PublishedAnnotation) -> None:
        """Called with each annotation that the subscriber reads."""

    def rest(self) -> None:
        """Called again and again from when all of the demo was read, until Ctrl-C."""

    def end(self) -> None:
        """Called at the end in any case."""


def run_demo(
    packets: Iterator[bytes],
    show: Callable[[DemoProgress], None],
    metrics_port: int = 0,
    audience: Audience | None = None,
    keep: Path | None = None,
) -> DemoProgress:
    """Start everything, send ``packets`` through it, and call ``show`` about five times a second.

    Returns when every alert was classified, published and read again by a subscriber. With an ``audience``, or with
    ``keep``, it goes on until KeyboardInterrupt, for what others send and ask, and returns upon that, also while alerts
    are still on their way: ``keep`` is a file that holds, as long as the servers run, the settings by which other
    processes find them. Raises ConfigurationError where that file cannot be written, and KeyboardInterrupt where that
    comes while the servers start, or without both.
    """
    with ExitStack() as stack:
        if audience is not None:
            stack.callback(audience.end)
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
            # Where somebody looks on: an object's page shows them.
            similar=SimilarSettings(enabled=audience is not None or keep is not None),
        )
        topics = OutputTopics(settings.publish.topic_prefix, settings.anomaly.threshold)
        kafka.create_topics([INPUT_TOPIC, settings.kafka.spectra_topic, *topics.every()])
        if keep is not None:
            stack.enter_context(_told(keep, settings, None if audience is None else audience.database))
        if metrics_port:
            server, thread = start_http_server(metrics_port, "127.0.0.1")
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        service = stack.enter_context(worker(settings))
        threads = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(service.stop)
        running = threads.submit(service.run)
        if audience is not None:
            audience.begin(settings)
        stays = audience is not None or keep is not None
        return _watch(service, running, settings, packets, show, audience or _Nobody(), threads, stays)


class _Nobody:
    """An audience that is not there."""

    database = None

    def begin(self, settings: Settings) -> None:
        pass

    def see(self, annotation: PublishedAnnotation) -> None:
        pass

    def rest(self) -> None:
        pass

    def end(self) -> None:
        pass


@contextmanager
def _told(path: Path, settings: Settings, database: str | None) -> Iterator[None]:
    """A file of the settings with which other commands reach the demo's servers, and its index where it has one."""
    kafka = settings.kafka
    told = (
        "# Of a `trifid demo --keep` that runs; the file goes when it ends.\n"
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\ninput_topics = ["{INPUT_TOPIC}"]\n'
        f'delivery = "{kafka.delivery}"\ncreate_topics = false\n'
        f'[redis]\nurl = "{settings.redis.url.get_secret_value()}"\n'
        f"[similar]\nenabled = {json.dumps(settings.similar.enabled)}\n"
        + ("" if database is None else f"[web]\ndatabase = {json.dumps(database)}\n")
    )
    try:
        with path.open("x") as file:  # not in place of somebody's settings
            file.write(told)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already: give another file, or remove it") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _watch(
    service: Service,
    running: Future[Accounting],
    settings: Settings,
    packets: Iterator[bytes],
    show: Callable[[DemoProgress], None],
    audience: Audience,
    threads: ThreadPoolExecutor,
    stays: bool,
) -> DemoProgress:
    progress = DemoProgress(accounting=service.accounting)
    over = threading.Event()
    topics = OutputTopics(settings.publish.topic_prefix, settings.anomaly.threshold).all_alerts()
    subscription = Subscription(topics, settings.kafka.bootstrap_servers, start="earliest", idle_timeout=_SHOW_EVERY_S)
    sending = threads.submit(_send, settings.kafka, packets, progress, over)
    start = time.monotonic()
    complete = False
    try:
        with subscription:
            while stays or not complete:
                shown = time.monotonic()
                before = progress.seen
                for annotation in subscription:
                    progress.add(annotation, settings.anomaly.threshold)
                    audience.see(annotation)
                    if time.monotonic() - shown > _SHOW_EVERY_S:
                        break
                if not complete:
                    progress.seconds = time.monotonic() - start
                    complete = sending.done() and progress.done and service.accounting.messages == progress.sent
                    show(progress)
                elif progress.seen != before:
                    show(progress)
                if complete and stays:
                    audience.rest()
                for part in (running, sending):
                    if part.done():
                        part.result()  # raises what ended it
    except KeyboardInterrupt:
        if not stays:
            raise
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
