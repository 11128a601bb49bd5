"""The service: batches from Kafka, through the pipeline, and delivered to Kafka, until told to stop.

The thread of ``Service.run`` looks after Kafka; a second one, the work thread, processes. So a batch may take as long
as it likes and the worker still answers the group, its health checks and a request to stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar, cast

from confluent_kafka import KafkaException, Message

from broker.batch import BatchResult, IncomingMessage
from broker.config import KafkaSettings, PipelineSettings
from broker.errors import DependencyUnavailableError
from broker.metrics import ALERT_LATENCY, BATCHES_ABANDONED, LAST_MESSAGE, stage_timer
from broker.publish.messages import Publisher
from broker.streaming import clients
from broker.streaming.accounting import Accounting
from broker.streaming.consumer import POLL_S, GroupConsumer, incoming
from broker.streaming.delivery import (
    AtLeastOnceDelivery,
    Delivery,
    DeliveryTimedOutError,
    ExactlyOnceDelivery,
    KafkaUnreachableError,
    TopicMissingError,
)
from broker.streaming.handling import Process, handle
from broker.streaming.health import Health
from broker.streaming.limit import BatchSize, DeadLetterLimit
from broker.streaming.partitions import BatchAbandonedError
from broker.streaming.topics import Asked, TopicAdmin
from broker.streaming.work_thread import WorkThread
from broker.times import mjd_now
from broker.topic_names import is_pattern

log = logging.getLogger(__name__)

_LONG_S: Final = 5.0
"""Work that takes longer is waited for with the consumer paused and polled: pausing drops what was fetched ahead, and
so is not done for every batch."""
_CHUNK: Final = 32
"""Messages taken at once, after which the size of the batch is looked at."""
_MIB: Final = 1024 * 1024

R = TypeVar("R")


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
    ) -> None:
        """Set up a worker; it connects when it runs.

        ``prepare`` gives the ``process`` method of a pipeline; it is called again where it raises
        DependencyUnavailableError. ``on_batch`` is told of each batch that was delivered.
        """
        self.accounting = control.accounting
        self.hangs = False
        """After ``run``: whether a call to Redis or Triton has not come back."""
        self._kafka, self._pacing = kafka, pacing
        self._prepare, self._publisher, self._on_batch = prepare, publisher, on_batch
        self._stop, self._health = control.stop, control.health
        self._limit = DeadLetterLimit(pacing)
        self._size = BatchSize(pacing.batch_size)
        self._work_thread = WorkThread()
        self._topics = TopicAdmin(kafka)
        self._asked: Asked = {}
        self._next_look = 0.0
        self._consumers: list[GroupConsumer] = []

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
                self._patiently(self._create_topics)
                process = self._patiently(lambda: self._in_work_thread(self._prepare))
                self._health.report("model", None)
                self._patiently(delivery.start)
                self._patiently(self._topics.connect)
                self._consumers[0].subscribe(self._stop)
                while not self._stop.is_set():
                    self._look()
                    for source in self._consumers:
                        self._next_batch_of(source, process, delivery)
        finally:
            delivery.close()
            for source in self._consumers:
                source.close()
            self.hangs = not self._work_thread.end(POLL_S)
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
            log.info("the in-flight batch is abandoned for reprocessing")
            while not self._stop.is_set() and not source.rewind():
                self._health.beat()
                self._look()
                self._stop.wait(POLL_S)

    def _next_batch(self, source: GroupConsumer, process: Process, delivery: Delivery) -> None:
        source.partitions.lost = False
        messages = self._take(source)
        self._measure_lag(cached=True)
        if not messages:
            return
        if source.partitions.lost:
            raise BatchAbandonedError  # some of these may come from before it
        received = mjd_now()
        batch = [incoming(message, received) for message in messages]
        # One message may hold as many alerts as a batch and more: what is processed at once is delivered at once, so
        # that the memory does not depend on what all messages hold together. What a stop leaves here is read again.
        while batch and not self._stop.is_set():
            count = self._handle_next(source, process, delivery, batch, messages)
            del batch[:count], messages[:count]
        self._size.grow()

    def _handle_next(
        self,
        source: GroupConsumer,
        process: Process,
        delivery: Delivery,
        batch: list[IncomingMessage],
        messages: list[Message],
    ) -> int:
        """Process and deliver the first of a batch's messages; how many they were."""
        asked = source.partitions.ask(messages)
        result, outgoing = self._patiently(
            lambda: self._in_work_thread(lambda: handle(process, self._publisher, batch), source), source
        )
        self._limit.check(result)
        count = result.messages
        offsets = source.partitions.next_offsets(messages[:count])

        def deliver() -> None:
            nonlocal asked
            try:
                source.partitions.check(self._topics.answer(asked))
                delivery.deliver(outgoing, offsets, source.consumer)
            except DeliveryTimedOutError as error:
                self._size.halve()
                log.warning("%s; batches have up to %d messages from now on", error, self._size.now)
                raise BatchAbandonedError from error
            except TopicMissingError:
                self._create_topics()
                raise
            except DependencyUnavailableError:
                asked = source.partitions.ask(messages)
                raise

        with stage_timer("deliver"):
            self._patiently(deliver, source)
        self._limit.add(result)
        self.accounting.add(result, count, sum(len(m.payload) for m in batch[:count]))
        if source is self._consumers[0]:
            _measure_latency(batch[:count])
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
            if source.partitions.lost or not (taken or wait_s):
                break
        return messages

    def _look(self) -> None:
        """See, now and then, whether Kafka answers, topics are the same, and spectra can be read.

        Raises KafkaUnreachableError.
        """
        now = time.monotonic()
        if all(future.done() for future in self._asked.values()) and now >= self._next_look:
            try:
                ids = self._topics.answer(self._asked)
                for source in self._consumers:
                    with suppress(BatchAbandonedError):
                        own = source.topics()
                        source.partitions.check({topic: found for topic, found in ids.items() if topic in own})
                self._join_for_spectra()
            except DependencyUnavailableError as error:
                log.info("%s", error)
            topics = {topic for source in self._consumers for topic in source.topics()}
            self._asked = self._topics.ask(topics or self._publisher.topics.every()[-1:])
            self._next_look = now + self._kafka.metadata_refresh_s
        if self._topics.silent_s > self._kafka.unreachable_limit_s:
            raise KafkaUnreachableError(
                f"Kafka has not answered for {self._topics.silent_s:.0f} s (kafka.unreachable_limit_s): a new process "
                "asks kafka.bootstrap_servers again"
            )

    def _join_for_spectra(self) -> None:
        for source in self._consumers:
            # Workers of 0.1.0 read spectra as members of the group of the alerts.
            if not source.subscribed:
                taken = self._topics.is_assigned(self._kafka.group_id, self._kafka.spectra_topic)
                if taken:
                    # Ready all the same: a rolling upgrade waits for this worker before it ends the next old one.
                    self._health.report("spectra", None)
                    log.info("workers of version 0.1.0 read %s: waiting for their end", self._kafka.spectra_topic)
                elif taken is False:
                    source.subscribe(self._stop)

    def _patiently(self, action: Callable[[], R], source: GroupConsumer | None = None) -> R:
        """Do something, again and again with growing pauses while a dependency is unavailable.

        Raises BatchAbandonedError where the service stops, or the partitions of a batch of ``source`` may have gone to
        another worker.
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
            self._wait(pause, source)
            if self._stop.is_set():
                raise BatchAbandonedError
            pause = min(2 * pause, self._pacing.max_backoff_s)

    def _wait(self, seconds: float, source: GroupConsumer | None) -> None:
        """Wait without taking alerts, but polling, so that the group does not evict this worker."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop.is_set():
            self._poll_without_taking(source)
        self._measure_lag(cached=False)
        self._resume()

    def _in_work_thread(self, action: Callable[[], R], source: GroupConsumer | None = None) -> R:
        """Have something done by the work thread; what it raises is raised here.

        Raises BatchAbandonedError where it takes too long after a request to stop, or partitions of ``source`` go
        meanwhile. It may go on then: what the pipeline writes to Redis may be written twice.
        """
        began = time.monotonic()
        asked_to_stop: float | None = None
        paused = False
        future = self._work_thread.submit(action)
        if source is not None:
            source.in_flight = cast("Future[object]", future)
        self._health.begin()
        try:
            while not wait([future], POLL_S).done:
                self._health.beat()
                now = time.monotonic()
                if self._stop.is_set():
                    asked_to_stop = asked_to_stop or now
                    if now - asked_to_stop > self._pacing.stop_timeout_s / 2:
                        raise BatchAbandonedError
                elif now - began > _LONG_S:
                    paused = True
                    self._poll_without_taking(source)
            if paused:
                self._resume()
            return future.result()
        finally:
            if source is not None:
                source.in_flight = None
            self._health.end()

    def _poll_without_taking(self, source: GroupConsumer | None) -> None:
        """Answer the groups for a moment; raises BatchAbandonedError where the batch of ``source`` cannot be kept."""
        self._health.beat()
        if any(each.subscribed for each in self._consumers):
            self._look()
        end = time.monotonic() + POLL_S
        for each in self._consumers:
            each.poll_without_taking(POLL_S / len(self._consumers))
        # Polling does not wait where there is nothing to wait for.
        self._stop.wait(max(0.0, end - time.monotonic()))
        if source is not None and source.partitions.lost:
            raise BatchAbandonedError

    def _resume(self) -> None:
        for each in self._consumers:
            if each.subscribed:
                each.partitions.resume()

    def _measure_lag(self, *, cached: bool) -> None:
        try:
            self._health.lag(sum(source.lag(cached=cached) for source in self._consumers))
        except KafkaException as error:
            log.info("no lag to be had: %s", error)


def _measure_latency(batch: Sequence[IncomingMessage]) -> None:
    """From each message's own time on: what it waited in Kafka counts, too."""
    now = time.time()
    for message in batch:
        if message.origin is not None and message.origin.timestamp_ms > 0:
            ALERT_LATENCY.observe(max(0.0, now - message.origin.timestamp_ms / 1000))
    for topic in {message.origin.topic for message in batch if message.origin is not None}:
        LAST_MESSAGE.labels(topic).set(now)
