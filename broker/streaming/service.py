"""The service: batches from Kafka, through the pipeline, and delivered to Kafka, until told to stop.

The thread of ``Service.run`` looks after Kafka; a second one, its hands, processes. So a batch may take as long as it
likes and the worker still answers the group, its health checks and a request to stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.batch import BatchResult, IncomingMessage, Origin
from broker.config import KafkaSettings, PipelineSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.health import Health
from broker.metrics import BATCHES_GIVEN_UP, CONSUMER_LAG, STAGE_SECONDS
from broker.publish.annotation import mjd_now
from broker.publish.messages import Publisher
from broker.streaming import clients
from broker.streaming.books import Books
from broker.streaming.delivery import AtLeastOnceDelivery, Delivery, ExactlyOnceDelivery, WorkerFencedError
from broker.streaming.handling import Process, handle
from broker.streaming.hands import Hands
from broker.streaming.limit import DeadLetterLimit

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_LONG_S: Final = 5.0
"""Work that takes longer is waited for with the consumer paused and polled: pausing drops what was fetched ahead, and
so is not done for every batch."""
_CHUNK: Final = 32
"""Messages taken at once, after which the size of the batch is looked at."""
_MIB: Final = 1024 * 1024

R = TypeVar("R")


class _GivenUpError(Exception):
    """The batch in hand is let go: the service stops, or its partitions may have another worker by now."""


@dataclass(frozen=True)
class Control:
    """What the rest of the process has to do with a worker."""

    health: Health
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to have the worker finish the batch in hand and leave."""
    books: Books = field(default_factory=Books)


class Service:
    """One worker of the consumer group."""

    def __init__(
        self,
        kafka: KafkaSettings,
        pacing: PipelineSettings,
        prepare: Callable[[], Process],
        publisher: Publisher,
        control: Control,
        on_batch: Callable[[BatchResult], None] | None = None,
    ) -> None:
        """Set up a worker; it connects when it runs.

        ``prepare`` gives the ``process`` method of a pipeline; it is called again where it raises
        DependencyUnavailableError. ``on_batch`` is told of each batch that was delivered.
        """
        self.books = control.books
        self.hangs = False
        """After ``run``: whether a call to Redis or Triton has not come back."""
        self._kafka, self._pacing = kafka, pacing
        self._prepare, self._publisher, self._on_batch = prepare, publisher, on_batch
        self._stop, self._health = control.stop, control.health
        self._limit = DeadLetterLimit(pacing)
        self._hands = Hands()
        self._in_hand: Future[object] | None = None
        self._lost_partitions = False
        self._paused: list[TopicPartition] = []
        """Only these are resumed: for librdkafka a resume can be a seek."""

    def stop(self) -> None:
        """Finish the batch in hand and leave; safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> Books:
        """Work until ``stop`` is called; returns the books.

        Waits for what is away. Raises ConfigurationError and WorkerFencedError as ``Delivery.deliver`` does, and
        DeadLetterLimitError.
        """
        consumer = clients.consumer(self._kafka)
        exactly_once = self._kafka.delivery == "exactly-once"
        producer = clients.producer(self._kafka, transactional=exactly_once)
        kind = ExactlyOnceDelivery if exactly_once else AtLeastOnceDelivery
        delivery: Delivery = kind(producer, self._stop, self._health.beat)
        try:
            with suppress(_GivenUpError):
                if self._kafka.create_topics:
                    self._patiently(consumer, self._create_topics)
                process = self._patiently(consumer, lambda: self._with_hands(consumer, self._prepare))
                self._health.report("model", None)
                self._patiently(consumer, delivery.start)
                consumer.subscribe(
                    [*self._kafka.input_topics, *self._spectra_topic],
                    on_assign=self._on_assign,
                    on_revoke=self._on_revoke,
                    on_lost=self._on_lost,
                )
                while not self._stop.is_set():
                    try:
                        self._next_batch(consumer, process, delivery)
                    except _GivenUpError:
                        BATCHES_GIVEN_UP.inc()
                        log.info("the batch in hand is given back")
                        self._rewind(consumer)
        finally:
            delivery.close()
            consumer.close()
            self.hangs = not self._hands.let_go(_POLL_S)
        return self.books

    def _create_topics(self) -> None:
        clients.create_missing_topics(self._kafka, [*self._publisher.topics.every(), *self._spectra_topic])

    @property
    def _spectra_topic(self) -> list[str]:
        return [self._kafka.spectra_topic] if self._kafka.spectra_topic else []

    def _next_batch(self, consumer: Consumer, process: Process, delivery: Delivery) -> None:
        self._health.beat()
        self._lost_partitions = False
        messages = self._take(consumer)
        self._measure_lag(consumer, cached=True)
        if not messages:
            return
        if self._lost_partitions:
            raise _GivenUpError  # some of these may come from before it
        received = mjd_now()
        batch = [_incoming(message, received) for message in messages]
        # One message may hold as many alerts as a batch and more: what is processed at once is delivered at once, so
        # that the memory does not depend on what all messages hold together. What a stop leaves here is read again.
        while batch and not self._stop.is_set():
            self._handle_next(consumer, process, delivery, batch, messages)

    def _handle_next(
        self,
        consumer: Consumer,
        process: Process,
        delivery: Delivery,
        batch: list[IncomingMessage],
        messages: list[Message],
    ) -> None:
        """Process and deliver the first of a batch's messages, and take them out of ``batch`` and ``messages``."""
        result, outgoing = self._patiently(
            consumer, lambda: self._with_hands(consumer, lambda: handle(process, self._publisher, batch))
        )
        self._limit.check(result)
        count = result.messages
        with STAGE_SECONDS.labels("deliver").time():
            offsets = _next_offsets(messages[:count])
            self._patiently(consumer, lambda: delivery.deliver(outgoing, offsets, consumer))
        self._limit.add(result)
        self.books.add(result, count, sum(len(m.payload) for m in batch[:count]))
        del batch[:count], messages[:count]
        if self._on_batch is not None:
            self._on_batch(result)

    def _take(self, consumer: Consumer) -> list[Message]:
        """The messages of a batch, which is full by number, by size or by time."""
        messages: list[Message] = []
        size = 0
        end = time.monotonic() + self._pacing.batch_wait_s
        while len(messages) < self._pacing.batch_size and size < self._pacing.batch_mib * _MIB:
            left = end - time.monotonic()
            if left <= 0 or self._stop.is_set():
                break
            taken = consumer.consume(min(_CHUNK, self._pacing.batch_size - len(messages)), left)
            alerts = [message for message in taken if not _is_event(message)]
            messages += alerts
            size += sum(len(message) for message in alerts)
            if self._lost_partitions:
                break
        return messages

    def _patiently(self, consumer: Consumer, action: Callable[[], R]) -> R:
        """Do something, again and again with growing pauses while a dependency is away.

        Raises _GivenUpError where the service stops, or the partitions may have gone to another worker.
        """
        pause = self._pacing.first_backoff_s
        while True:
            try:
                done = action()
                self._health.report("work", None)
                return done
            except DependencyUnavailableError as error:
                log.warning("waiting %.1f s: %s", pause, error)
                self._health.report("work", f"waits: {error}")
            self._wait(consumer, pause)
            if self._stop.is_set():
                raise _GivenUpError
            pause = min(2 * pause, self._pacing.max_backoff_s)

    def _wait(self, consumer: Consumer, seconds: float) -> None:
        """Wait without taking alerts, but polling, so that the group does not take this worker for dead."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop.is_set():
            self._poll_without_taking(consumer)
        self._measure_lag(consumer, cached=False)
        self._resume(consumer)

    def _with_hands(self, consumer: Consumer, action: Callable[[], R]) -> R:
        """Have something done by the other thread; what it raises is raised here.

        Raises _GivenUpError where it takes too long after a request to stop, or partitions go meanwhile. It may go
        on then: what the pipeline writes to Redis may be written twice.
        """
        began = time.monotonic()
        asked_to_stop: float | None = None
        paused = False
        future = self._hands.do(action)
        self._in_hand = cast("Future[object]", future)
        self._health.begin()
        try:
            while not wait([future], _POLL_S).done:
                self._health.beat()
                now = time.monotonic()
                if self._stop.is_set():
                    asked_to_stop = asked_to_stop or now
                    if now - asked_to_stop > self._pacing.stop_timeout_s / 2:
                        raise _GivenUpError
                elif now - began > _LONG_S:
                    paused = True
                    self._poll_without_taking(consumer)
            if paused:
                self._resume(consumer)
            return future.result()
        finally:
            self._in_hand = None
            self._health.end()

    def _poll_without_taking(self, consumer: Consumer) -> None:
        """Answer the group for a moment; raises _GivenUpError where the batch in hand can no longer be kept."""
        self._health.beat()
        assigned = consumer.assignment()
        if not assigned:
            # Before it subscribed, the consumer has no group to answer, and polling does not wait.
            self._stop.wait(_POLL_S)
        came = [p for p in assigned if p not in self._paused]
        consumer.pause(came)
        self._paused += came
        message = consumer.poll(_POLL_S if assigned else 0)
        # Events first: Kafka tells of a topic that may not be read only once.
        taken = message is not None and not _is_event(message)
        if taken or self._lost_partitions:
            raise _GivenUpError  # a message is of a partition that came just now: rewinding brings it again

    def _resume(self, consumer: Consumer) -> None:
        """Read on where it was paused."""
        paused, self._paused = self._paused, []
        consumer.resume(paused)

    def _forget_paused(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Of partitions that go: librdkafka remembers that one was paused while another worker has it."""
        paused = [p for p in self._paused if p in partitions]
        self._paused = [p for p in self._paused if p not in partitions]
        with suppress(KafkaException):  # of one that is gone already
            consumer.resume(paused)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions that come: %s", _names(partitions))
        self._health.report("group", None)
        self._partitions_changed()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions that go: %s", _names(partitions))
        self._forget_paused(consumer, partitions)
        if self._in_hand is not None:
            # Nobody else has these partitions before this returns: the batch's objects are written in peace.
            self._wait_for_hands(self._in_hand)
        self._lost_partitions = True
        self._partitions_changed()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("partitions that are lost: %s", _names(partitions))
        self._forget_paused(consumer, partitions)
        self._lost_partitions = True
        self._health.report("group", "put out of the group")
        self._partitions_changed()

    def _partitions_changed(self) -> None:
        CONSUMER_LAG.clear()
        self._health.rebalanced()

    def _wait_for_hands(self, work: Future[object]) -> None:
        end = time.monotonic() + self._kafka.max_poll_interval_s / 2
        while time.monotonic() < end and not self._stop.is_set() and not wait([work], _POLL_S).done:
            self._health.beat()

    def _rewind(self, consumer: Consumer) -> None:
        """Take up the partitions of now again from what is committed."""
        while not self._stop.is_set():
            self._health.beat()
            try:
                assigned = consumer.assignment()
                self._resume(consumer)
                # Rebalances happen within poll and consume only: the partitions stay the same until the end of this.
                for p in consumer.committed(assigned, clients.CALL_TIMEOUT) if assigned else []:
                    offset = p.offset if p.offset >= 0 else OFFSET_BEGINNING
                    consumer.seek(TopicPartition(p.topic, p.partition, offset))
                return
            except KafkaException as error:
                _check_fenced(error)
                # Such as a partition that came just now, and is not read yet.
                log.info("cannot go back to the committed offsets yet: %s", error)
                consumer.poll(0)  # a message that this gives comes again with what follows
                self._stop.wait(_POLL_S)

    def _measure_lag(self, consumer: Consumer, *, cached: bool) -> None:
        """Update the metric; ``cached`` high-water marks are those of the last fetch."""
        total = 0
        try:
            for p in consumer.position(consumer.assignment()):
                marks = consumer.get_watermark_offsets(p, timeout=1.0, cached=cached)
                if marks is not None and p.offset >= 0:
                    lag = max(0, marks[1] - p.offset)
                    total += lag
                    CONSUMER_LAG.labels(p.topic, p.partition).set(lag)
            self._health.lag(total)
        except KafkaException as error:
            log.info("no lag to be had: %s", error)


def _check_fenced(error: KafkaException) -> None:
    if error.args[0].fatal() or error.args[0].code() == KafkaError._FATAL:
        raise WorkerFencedError(
            f"Kafka shut this worker out, as it does where two workers have one kafka.worker_id: {error.args[0].str()}"
        ) from error


def _is_event(message: Message) -> bool:
    """Whether this is news of the consumer, such as a topic that is missing, and no alert."""
    error = message.error()
    if error is None:
        return False
    _check_fenced(KafkaException(error))
    refused = clients.failure(error, f"topic {message.topic()}" if message.topic() else "")
    if isinstance(refused, ConfigurationError):
        raise refused
    log.warning("Kafka: %s", error)
    return True


def _names(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{p.topic}[{p.partition}]" for p in partitions) or "none"


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
