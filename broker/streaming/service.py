"""The service: batches from Kafka, through the pipeline, and delivered to Kafka, until told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from broker.batch import BatchResult, IncomingMessage, Origin
from broker.config import KafkaSettings, PipelineSettings
from broker.errors import DependencyUnavailableError
from broker.metrics import CONSUMER_LAG, STAGE_SECONDS
from broker.publish.annotation import mjd_now
from broker.publish.messages import Publisher
from broker.streaming import clients
from broker.streaming.books import Books
from broker.streaming.delivery import AtLeastOnceDelivery, Delivery, ExactlyOnceDelivery

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1

R = TypeVar("R")
Process = Callable[[Sequence[IncomingMessage]], BatchResult]


class _GivenUpError(Exception):
    """The batch in hand is let go: the service stops, or its partitions may have another worker by now."""


class Service:
    """One worker of the consumer group."""

    def __init__(
        self,
        kafka: KafkaSettings,
        pacing: PipelineSettings,
        prepare: Callable[[], Process],
        publisher: Publisher,
        on_batch: Callable[[BatchResult], None] | None = None,
    ) -> None:
        """Set up a worker; it connects when it runs.

        ``prepare`` gives the ``process`` method of a pipeline; it is called again where it raises
        DependencyUnavailableError. ``on_batch`` is told of each batch that was delivered.
        """
        self.books = Books()
        self._kafka, self._pacing = kafka, pacing
        self._prepare, self._publisher, self._on_batch = prepare, publisher, on_batch
        self._stop = threading.Event()
        self._rebalanced = False

    def stop(self) -> None:
        """Finish the batch in hand and leave; safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> Books:
        """Work until ``stop`` is called; returns the books.

        Waits for what is away. Raises ConfigurationError and WorkerFencedError as ``Delivery.deliver`` does.
        """
        consumer = clients.consumer(self._kafka)
        exactly_once = self._kafka.delivery == "exactly-once"
        producer = clients.producer(self._kafka, transactional=exactly_once)
        kind = ExactlyOnceDelivery if exactly_once else AtLeastOnceDelivery
        delivery: Delivery = kind(producer, self._stop)
        try:
            with suppress(_GivenUpError):
                if self._kafka.create_topics:
                    self._patiently(consumer, self._create_topics)
                process = self._patiently(consumer, self._prepare)
                self._patiently(consumer, delivery.start)
                consumer.subscribe(
                    [*self._kafka.input_topics, *self._spectra_topic],
                    on_assign=self._on_rebalance,
                    on_revoke=self._on_rebalance,
                    on_lost=self._on_rebalance,
                )
                while not self._stop.is_set():
                    try:
                        self._next_batch(consumer, process, delivery)
                    except _GivenUpError:
                        self._rewind(consumer)
        finally:
            delivery.close()
            consumer.close()
        return self.books

    def _create_topics(self) -> None:
        clients.create_missing_topics(self._kafka, [*self._publisher.topics.every(), *self._spectra_topic])

    @property
    def _spectra_topic(self) -> list[str]:
        return [self._kafka.spectra_topic] if self._kafka.spectra_topic else []

    def _next_batch(self, consumer: Consumer, process: Process, delivery: Delivery) -> None:
        self._rebalanced = False
        taken = consumer.consume(self._pacing.batch_size, self._pacing.batch_wait_s)
        if self._rebalanced:
            raise _GivenUpError  # some of these may come from before it
        messages = [message for message in taken if not _is_event(message)]
        if not messages:
            return
        received = mjd_now()
        batch = [_incoming(message, received) for message in messages]
        result = self._patiently(consumer, lambda: process(batch))
        with STAGE_SECONDS.labels("publish").time():
            outgoing = list(self._publisher.messages(result))
        with STAGE_SECONDS.labels("deliver").time():
            offsets = _next_offsets(messages)
            self._patiently(consumer, lambda: delivery.deliver(outgoing, offsets, consumer))
        self.books.add(result, len(batch), sum(len(m.payload) for m in batch))
        self._measure_lag(consumer, cached=True)
        if self._on_batch is not None:
            self._on_batch(result)

    def _patiently(self, consumer: Consumer, action: Callable[[], R]) -> R:
        """Do something, again and again with growing pauses while a dependency is away.

        Raises _GivenUpError where the service stops, or the partitions may have gone to another worker.
        """
        pause = self._pacing.first_backoff_s
        while not self._stop.is_set():
            try:
                return action()
            except DependencyUnavailableError as error:
                log.warning("waiting %.1f s: %s", pause, error)
            self._wait(consumer, pause)
            pause = min(2 * pause, self._pacing.max_backoff_s)
        raise _GivenUpError

    def _wait(self, consumer: Consumer, seconds: float) -> None:
        """Wait without taking alerts, but polling, so that the group does not take this worker for dead."""
        paused = consumer.assignment()
        if not paused:
            self._stop.wait(seconds)
            return
        consumer.pause(paused)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop.is_set():
            consumer.poll(_POLL_S)
            if self._rebalanced:
                raise _GivenUpError
        self._measure_lag(consumer, cached=False)
        consumer.resume(paused)

    def _on_rebalance(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalanced = True
        log.info("rebalance: %s", ", ".join(f"{p.topic}[{p.partition}]" for p in partitions) or "nothing")
        CONSUMER_LAG.clear()

    def _rewind(self, consumer: Consumer) -> None:
        """Take up again from what is committed."""
        while not self._stop.is_set():
            try:
                consumer.resume(consumer.assignment())
                for p in consumer.committed(consumer.assignment(), clients.CALL_TIMEOUT):
                    offset = p.offset if p.offset >= 0 else OFFSET_BEGINNING
                    consumer.seek(TopicPartition(p.topic, p.partition, offset))
                return
            except KafkaException as error:
                log.warning("cannot go back to the committed offsets yet: %s", error)
                consumer.poll(0)
                self._stop.wait(self._pacing.first_backoff_s)

    def _measure_lag(self, consumer: Consumer, *, cached: bool) -> None:
        """Update the metric; ``cached`` high-water marks are those of the last fetch."""
        try:
            for p in consumer.position(consumer.assignment()):
                marks = consumer.get_watermark_offsets(p, timeout=1.0, cached=cached)
                if marks is not None and p.offset >= 0:
                    CONSUMER_LAG.labels(p.topic, p.partition).set(max(0, marks[1] - p.offset))
        except KafkaException as error:
            log.info("no lag to be had: %s", error)


def _is_event(message: Message) -> bool:
    """Whether this is news of the consumer, such as a topic that is missing, and no alert."""
    error = message.error()
    if error is None:
        return False
    if error.fatal():
        raise KafkaException(error)
    log.warning("Kafka: %s", error)
    return True


def _incoming(message: Message, received_mjd: float) -> IncomingMessage:
    topic, partition, offset = _position(message)
    origin = Origin(topic, partition, offset, message.timestamp()[1])
    return IncomingMessage(message.value() or b"", received_mjd, origin)


def _next_offsets(messages: Sequence[Message]) -> list[TopicPartition]:
    """The offset after the last message of each partition; a partition's messages are in order."""
    last = {(topic, partition): offset for topic, partition, offset in map(_position, messages)}
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in last.items()]


def _position(message: Message) -> tuple[str, int, int]:
    return cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
