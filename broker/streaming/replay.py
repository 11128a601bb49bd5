"""Sends stored packets to a topic at a steady rate."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaError, KafkaException, Message

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError, InputFileError
from broker.streaming import clients

_FLUSH_TIMEOUT: Final = 60.0


class Replay:
    """Sends messages while the context lasts; at its end all of them are with Kafka."""

    def __init__(self, kafka: KafkaSettings, topic: str, rate: float | None = None) -> None:
        """``rate`` is in messages a second, None for as fast as Kafka takes them."""
        self.sent = 0
        """Messages given to the producer."""
        self._kafka, self._topic, self._rate = kafka, topic, rate
        self._failure: KafkaError | None = None

    def __enter__(self) -> Self:
        if self._kafka.create_topics:
            clients.create_missing_topics(self._kafka, [self._topic])
        self._producer = clients.producer(self._kafka, transactional=False)
        self._start = time.monotonic()
        return self

    def send(self, payload: bytes) -> None:
        """Send one packet when its time has come; raises as leaving the context does."""
        if self._rate is not None:
            time.sleep(max(0.0, self._start + self.sent / self._rate - time.monotonic()))
        while True:
            try:
                self._producer.produce(self._topic, payload, on_delivery=self._delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise InputFileError(f"packet {self.sent + 1}: {error.args[0].str()}") from error
        self.sent += 1
        self._producer.poll(0)
        self._check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._producer.flush(_FLUSH_TIMEOUT)
        if error is None:
            self._check()
            if left:
                raise DependencyUnavailableError(f"Kafka did not take {left} of {self.sent} messages")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise DependencyUnavailableError(f"Kafka: {self._failure.str()}")
