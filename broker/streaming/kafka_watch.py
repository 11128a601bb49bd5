"""Looking, now and then, whether Kafka answers, topics are still the same, and the group of spectra can be joined."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError
from broker.streaming.consumer import GroupConsumer
from broker.streaming.delivery import KafkaUnreachableError
from broker.streaming.health import Health
from broker.streaming.partitions import BatchAbandonedError
from broker.streaming.topics import Asked, TopicAdmin

log = logging.getLogger(__name__)

_UNDECIDED_S: Final = 0.5
"""Until spectra are asked for again, while the group of alerts is being joined: a worker is not ready before."""


class KafkaWatch:
    """What one worker finds out of Kafka beside its batches. For one thread."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: TopicAdmin,
        consumers: Sequence[GroupConsumer],
        output: Sequence[str],
        health: Health,
        stop: threading.Event,
    ) -> None:
        """``consumers`` may become more; ``output`` are topics to ask for while these have none."""
        self._kafka, self._topics, self._consumers, self._output = kafka, topics, consumers, output
        self._health, self._stop = health, stop
        self._asked: Asked = {}
        self._next_look = 0.0

    def look(self) -> None:
        """See, now and then, whether Kafka answers, topics are the same, and spectra can be read.

        Raises KafkaUnreachableError.
        """
        now = time.monotonic()
        if all(future.done() for future in self._asked.values()) and now >= self._next_look:
            settled = True
            try:
                ids = self._topics.answer(self._asked)
                for source in self._consumers:
                    with suppress(BatchAbandonedError):
                        own = source.topics()
                        source.partitions.check({topic: found for topic, found in ids.items() if topic in own})
                settled = self._join_for_spectra()
            except DependencyUnavailableError as error:
                log.info("%s", error)
            topics = {topic for source in self._consumers for topic in source.topics()}
            self._asked = self._topics.ask(topics or self._output)
            self._next_look = now + (self._kafka.metadata_refresh_s if settled else _UNDECIDED_S)
        if self._topics.silent_s > self._kafka.unreachable_limit_s:
            raise KafkaUnreachableError(
                f"Kafka has not answered for {self._topics.silent_s:.0f} s (kafka.unreachable_limit_s): a new process "
                "asks kafka.bootstrap_servers again"
            )

    def _join_for_spectra(self) -> bool:
        """Join the group of spectra where it may be; False where that cannot be known yet."""
        settled = True
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
                else:
                    settled = False
        return settled
