"""Doing what takes long, or has to be tried again, while Kafka is polled, so that no group evicts the worker.

A batch that cannot be kept is abandoned: where the service stops, or its partitions go to another worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final, TypeVar, cast

from confluent_kafka import KafkaException

from broker.config import PipelineSettings
from broker.errors import DependencyUnavailableError
from broker.pauses import jittered
from broker.streaming.consumer import POLL_S, GroupConsumer
from broker.streaming.health import Health
from broker.streaming.partitions import BatchAbandonedError
from broker.streaming.work_thread import WorkThread

log = logging.getLogger(__name__)

_LONG_S: Final = 5.0
"""Work that takes longer is waited for with the consumer paused and polled: pausing drops what was fetched ahead, and
so is not done for every batch."""

R = TypeVar("R")


class Waiting:
    """Has things done by the work thread, or again later, and looks after the consumers until they are."""

    def __init__(
        self,
        pacing: PipelineSettings,
        consumers: Sequence[GroupConsumer],
        look: Callable[[], None],
        health: Health,
        stop: threading.Event,
    ) -> None:
        """Start the work thread. ``consumers`` may become more; ``look`` is ``KafkaWatch.look``."""
        self._pacing, self._consumers, self._look = pacing, consumers, look
        self._health, self._stop = health, stop
        self._work_thread = WorkThread()

    def end(self) -> bool:
        """End the work thread; whether it has ended, and so no call to Redis or Triton hangs."""
        return self._work_thread.end(POLL_S)

    def patiently(self, action: Callable[[], R], source: GroupConsumer | None = None) -> R:
        """Do something, again and again with growing pauses while a dependency is unavailable.

        Raises BatchAbandonedError where the service stops, or the partitions of a batch of ``source`` may have gone to
        another worker.
        """
        try:
            return self._until_done(action, source)
        except BatchAbandonedError:
            # Without partitions there may be nothing more to do, and nothing that would say that it went well.
            self._health.report("work", None)
            raise

    def _until_done(self, action: Callable[[], R], source: GroupConsumer | None) -> R:
        pause = self._pacing.first_backoff_s
        while True:
            try:
                done = action()
                self._health.report("work", None)
                return done
            except DependencyUnavailableError as error:
                # Workers of a group see the same server fail at the same time.
                waiting = jittered(pause)
                log.warning("waiting %.1f s: %s", waiting, error)
                self._health.report("work", f"waits: {error}")
            self._wait(waiting, source)
            if self._stop.is_set():
                raise BatchAbandonedError
            pause = min(2 * pause, self._pacing.max_backoff_s)

    def in_work_thread(self, action: Callable[[], R], source: GroupConsumer | None = None) -> R:
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
            return future.result()
        finally:
            if paused:
                self._resume()
            if source is not None:
                source.in_flight = None
            self._health.end()

    def measure_lag(self, *, cached: bool) -> None:
        """Report the lag of all consumers; with ``cached`` without asking Kafka."""
        try:
            self._health.lag(sum(source.lag(cached=cached) for source in self._consumers))
        except KafkaException as error:
            log.info("no lag to be had: %s", error)

    def _wait(self, seconds: float, source: GroupConsumer | None) -> None:
        """Wait without taking alerts, but polling, so that the group does not evict this worker."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and not self._stop.is_set():
                self._poll_without_taking(source)
            self.measure_lag(cached=False)
        finally:
            self._resume()

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
        """Read on, also where the batch of one consumer is abandoned: the partitions of the others stay theirs."""
        for each in self._consumers:
            if each.subscribed:
                each.partitions.resume()
