"""Sends stored packets to a topic at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaError, KafkaException, Message

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError, InputFileError
from broker.streaming import clients

_FLUSH_TIMEOUT: Final = 60.0
_TOO_LARGE: Final = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)
"""What the client or a broker says of one message, which concerns no other."""


class Replay:
    """Sends messages while the context lasts; at its end all of them are with Kafka."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        rate: float | None = None,
        refused: Callable[[str, str], None] | None = None,
    ) -> None:
        """``rate`` is in messages a second, None for as fast as Kafka takes them.

        ``refused`` gets the name and the reason of a message that is too large for Kafka, and the others go on;
        without it, that raises InputFileError.
        """
        self.sent = 0
        """Messages given to the producer, and not refused."""
        self._refused, self._too_large = refused, ""
        self._kafka, self._topic, self._rate = kafka, topic, rate
        self._failure: KafkaError | None = None

    def __enter__(self) -> Self:
        if self._kafka.create_topics:
            clients.create_missing_topics(self._kafka, [self._topic])
        self._producer = clients.producer(self._kafka, transactional=False)
        self._start = time.monotonic()
        return self

    def send(self, payload: bytes, name: str = "") -> None:
        """Send one packet, of this name in messages, when its time has come; raises as leaving the context does."""
        if self._rate is not None:
            time.sleep(max(0.0, self._start + self.sent / self._rate - time.monotonic()))
        name = name or f"packet {self.sent + 1}"
        self.sent += 1
        while True:
            try:
                self._producer.produce(self._topic, payload, on_delivery=partial(self._delivered, name))
                break
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() not in _TOO_LARGE:
                    raise DependencyUnavailableError(f"Kafka: {name}: {error.args[0].str()}") from error
                self._refuse(name, error.args[0])
                break
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

    def _delivered(self, name: str, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in _TOO_LARGE:
            self._refuse(name, error)
        else:
            self._failure = self._failure or error

    def _refuse(self, name: str, error: KafkaError) -> None:
        self.sent -= 1
        if self._refused is not None:
            self._refused(name, error.str())
        else:
            self._too_large = self._too_large or f"{name}: {error.str()}"

    def _check(self) -> None:
        if self._too_large:
            raise InputFileError(self._too_large)
        if self._failure is not None:
            raise DependencyUnavailableError(f"Kafka: {self._failure.str()}")
