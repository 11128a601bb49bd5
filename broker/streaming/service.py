"""The service: batches from Kafka, through the pipeline, and delivered to Kafka, until told to stop.

The thread of ``Service.run`` looks after Kafka; a second one, the work thread, processes. So a batch may take as long
as it likes and the worker still answers the group, its health checks and a request to stop (``waiting``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from confluent_kafka import Message

from broker.batch import BatchResult, IncomingMessage
from broker.config import KafkaSettings, PipelineSettings
from broker.log_fields import Field, log_fields
from broker.metrics import BATCHES_ABANDONED, stage_timer
from broker.publish.messages import Publisher
from broker.streaming import clients
from broker.streaming.accounting import Accounting
from broker.streaming.consumer import POLL_S, GroupConsumer, incoming
from broker.streaming.delivery import (
    AtLeastOnceDelivery,
    Delivery,
    DeliveryTimedOutError,
    ExactlyOnceDelivery,
    TopicMissingError,
)
from broker.streaming.handling import Process, about, handle
from broker.streaming.health import Health
from broker.streaming.kafka_watch import KafkaWatch
from broker.streaming.latency import measure_latency
from broker.streaming.limit import BatchSize, DeadLetterLimit
from broker.streaming.partitions import BatchAbandonedError
from broker.streaming.topics import Asked, TopicAdmin
from broker.streaming.waiting import Waiting
from broker.times import mjd_now
from broker.topic_names import is_pattern

log = logging.getLogger(__name__)

_CHUNK: Final = 32
"""Messages taken at once, after which the size of the batch is looked at."""
_MIB: Final = 1024 * 1024

Traced = Callable[[list[IncomingMessage], Sequence[Message]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Control:
    """What the rest of the process has to do with a worker."""

    health: Health
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to have the worker finish the in-flight batch and leave."""
    accounting: Accounting = field(default_factory=Accounting)


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
        traced: Traced | None = None,
    ) -> None:
        """Set up a worker; it connects when it runs.

        ``prepare`` gives the ``process`` method of a pipeline; it is called again where it raises
        DependencyUnavailableError. ``on_batch`` is told of each batch that was delivered, and ``traced`` is entered
        while one is in flight (``broker.tracing``).
        """
        self.accounting = control.accounting
        self.hangs = False
        """After ``run``: whether a call to Redis or Triton has not come back."""
        self._kafka, self._pacing = kafka, pacing
        self._prepare, self._publisher, self._on_batch = prepare, publisher, on_batch
        self._traced: Traced = traced or (lambda batch, messages: nullcontext())
        self._stop, self._health = control.stop, control.health
        self._limit = DeadLetterLimit(pacing)
        self._size = BatchSize(pacing.batch_size)
        self._topics = TopicAdmin(kafka)
        self._consumers: list[GroupConsumer] = []
        output = publisher.topics.every()[-1:]
        self._watch = KafkaWatch(kafka, self._topics, self._consumers, output, control.health, control.stop)
        self._waiting = Waiting(pacing, self._consumers, self._watch.look, control.health, control.stop)
        self._batch_fields: Mapping[str, Field] = {}
        """What the log says of the batch in flight, or of the one before."""

    def stop(self) -> None:
        """Finish the in-flight batch and leave; safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> Accounting:
        """Work until ``stop`` is called; returns the alert accounting.

        Waits for what is unavailable. Raises ConfigurationError, WorkerFencedError and KafkaUnreachableError as
        ``Delivery.deliver`` does, and DeadLetterLimitError.
        """
        exactly_once = self._kafka.delivery == "exactly-once"
        connect = partial(clients.producer, self._kafka, transactional=exactly_once)
        kind = ExactlyOnceDelivery if exactly_once else AtLeastOnceDelivery
        delivery: Delivery = kind(connect, self._stop, self._health.beat, self._kafka.unreachable_limit_s)
        try:
            self._consumers.append(self._consumer(self._kafka.group_id, self._kafka.input_topics, "group"))
            # A group of its own: in one group a partition of spectra, of which few come, would count as much as one
            # of alerts, and take its place.
            if self._kafka.spectra_topic:
                self._consumers.append(
                    self._consumer(self._kafka.spectra_group_id, [self._kafka.spectra_topic], "spectra")
                )
            with suppress(BatchAbandonedError):
                self._waiting.patiently(self._create_topics)
                process = self._waiting.patiently(lambda: self._waiting.in_work_thread(self._prepare))
                self._health.report("model", None)
                self._waiting.patiently(delivery.start)
                self._waiting.patiently(self._topics.connect)
                self._consumers[0].subscribe(self._stop)
                while not self._stop.is_set():
                    self._watch.look()
                    for source in self._consumers:
                        self._next_batch_of(source, process, delivery)
        finally:
            delivery.close()
            for source in self._consumers:
                source.close()
            self.hangs = not self._waiting.end()
        return self.accounting

    def _consumer(self, group_id: str, names: Sequence[str], check: str) -> GroupConsumer:
        return GroupConsumer(self._kafka, group_id, names, check, self._topics, self._health)

    def _create_topics(self) -> None:
        names: list[str] = []
        if self._kafka.create_topics:
            names += self._publisher.topics.every()
            names += [self._kafka.spectra_topic] if self._kafka.spectra_topic else []
        if self._kafka.create_input_topics:
            names += [name for name in self._kafka.input_topics if not is_pattern(name)]
        if names:
            clients.create_missing_topics(self._kafka, names)

    def _next_batch_of(self, source: GroupConsumer, process: Process, delivery: Delivery) -> None:
        self._health.beat()
        if not source.subscribed:
            return
        if not source.settle():
            self._stop.wait(POLL_S)
            return
        try:
            self._next_batch(source, process, delivery)
        except BatchAbandonedError:
            BATCHES_ABANDONED.inc()
            with log_fields(self._batch_fields):
                log.info("the in-flight batch is abandoned for reprocessing")
            source.rewind()  # or the next time, by then: the other consumer's messages do not wait for it

    def _next_batch(self, source: GroupConsumer, process: Process, delivery: Delivery) -> None:
        source.partitions.lost = False
        messages = self._take(source)
        self._waiting.measure_lag(cached=True)
        if not messages:
            self._commit_passed(source, delivery)
            return
        received = mjd_now()
        batch = [incoming(message, received) for message in messages]
        self._batch_fields = about(batch)
        if source.partitions.lost:
            raise BatchAbandonedError  # some of these may come from before it
        # One message may hold as many alerts as a batch and more: what is processed at once is delivered at once, so
        # that the memory does not depend on what all messages hold together. What a stop leaves here is read again.
        with self._traced(batch, messages):
            while batch and not self._stop.is_set():
                self._batch_fields = about(batch)
                with log_fields(self._batch_fields):
                    count = self._handle_next(source, process, delivery, batch, messages)
                del batch[:count], messages[:count]
        self._size.grow()

    def _commit_passed(self, source: GroupConsumer, delivery: Delivery) -> None:
        """Commit where partitions are read up to beyond their last messages; with no batch in flight."""
        if offsets := source.passed():
            self._waiting.patiently(lambda: delivery.deliver([], offsets, source.consumer), source)
            source.partitions.delivered(offsets)

    def _handle_next(
        self,
        source: GroupConsumer,
        process: Process,
        delivery: Delivery,
        batch: list[IncomingMessage],
        messages: list[Message],
    ) -> int:
        """Process and deliver the first of a batch's messages; how many they were."""
        asked: Asked | None = source.partitions.ask(messages)
        result, outgoing = self._waiting.patiently(
            lambda: self._waiting.in_work_thread(lambda: handle(process, self._publisher, batch), source), source
        )
        self._limit.check(result)
        count = result.messages
        offsets = source.partitions.next_offsets(messages[:count])

        def deliver() -> None:
            nonlocal asked
            asked, about_topics = None, asked or source.partitions.ask(messages)
            try:
                source.partitions.check(self._topics.answer(about_topics))
                delivery.deliver(outgoing, offsets, source.consumer)
            except DeliveryTimedOutError as error:
                self._size.halve()
                log.warning("%s; batches have up to %d messages from now on", error, self._size.now)
                raise BatchAbandonedError from error
            except TopicMissingError:
                self._create_topics()
                raise

        with stage_timer("deliver"):
            self._waiting.patiently(deliver, source)
        source.partitions.delivered(offsets)
        self._limit.add(result)
        self.accounting.add(result, count, sum(len(m.payload) for m in batch[:count]))
        if source is self._consumers[0]:
            measure_latency(batch[:count])
        if self._on_batch is not None:
            self._on_batch(result)
        return count

    def _take(self, source: GroupConsumer) -> list[Message]:
        """The messages of a batch, which is full by number, by size or by time."""
        messages: list[Message] = []
        size = 0
        # Only alerts are waited for; a spectrum that comes meanwhile is taken after them.
        wait_s = self._pacing.batch_wait_s if source is self._consumers[0] else 0.0
        end = time.monotonic() + wait_s
        while len(messages) < self._size.now and size < self._size.share * self._pacing.batch_mib * _MIB:
            left = end - time.monotonic()
            if (left <= 0 and wait_s) or self._stop.is_set():
                break
            taken = source.take(min(_CHUNK, self._size.now - len(messages)), max(0.0, left))
            messages += taken
            size += sum(len(message) for message in taken)
            if source.partitions.lost or source.partitions.unpositioned or not (taken or wait_s):
                break
        return messages
