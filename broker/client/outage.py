"""What a subscriber is told of an outage of Kafka."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from broker.client.positions import CALL_S

log = logging.getLogger(__name__)

_ASK_AGAIN_S: Final = 5.0
"""Pause between two questions whether Kafka answers again."""
_VAGUE: Final = (
    KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._WAIT_COORD,
    KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR, KafkaError._RESOLVE,
)  # fmt: skip
"""What follows from an outage that is known."""


class Outage:
    """Reports what is wrong with the connection: one line when it begins, one for each new cause, one at the end."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._codes: set[int] = set()
        self._asked = 0.0
        self.text = ""
        """What is wrong, "" for nothing."""
        self.ended = 0.0
        """When the last one was over, monotonic seconds."""

    def report(self, error: KafkaError) -> None:
        """Something is wrong; librdkafka goes on trying."""
        # The cause comes first, and its consequences say less.
        vague = error.code() in _VAGUE
        if error.code() in self._codes or (vague and self._codes):
            return
        self._codes.add(error.code())
        self.text = error.str() or ""
        self._asked = time.monotonic()
        log.warning("Kafka at %s: %s", self._servers, self.text)

    def committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """What became of positions that were committed."""
        if error is not None and error.code() != KafkaError._NO_OFFSET:
            self.report(error)

    def over(self) -> None:
        """Kafka has answered."""
        if self._codes:
            self.ended = time.monotonic()
            self._codes.clear()
            self.text = ""
            log.warning("Kafka at %s answers again", self._servers)

    def ask_again(self, consumer: Consumer) -> None:
        """See whether it is over, now and then."""
        if self._codes and time.monotonic() - self._asked > _ASK_AGAIN_S:
            self._asked = time.monotonic()
            with suppress(KafkaException):
                consumer.list_topics(timeout=CALL_S)
                self.over()
