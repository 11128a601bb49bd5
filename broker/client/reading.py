"""From a message of a subscribed topic to its annotations."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Literal

from confluent_kafka import Consumer, Message, TopicPartition

from broker.client.foreign import ForeignMessage
from broker.client.positions import place_of
from broker.errors import DecodeError, DependencyUnavailableError
from broker.publish.annotation import PublishedAnnotation, Schemas, read

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.5


class Reader:
    """Reads the messages of one consumer."""

    def __init__(
        self,
        consumer: Consumer,
        schemas: Schemas | None,
        on_foreign: Literal["warn", "raise"] | Callable[[ForeignMessage], None],
        timeout: float,
    ) -> None:
        """``timeout`` bounds, in seconds, the wait for a schema registry; the others as ``Subscription`` has them."""
        self._consumer, self._schemas, self._on_foreign, self._timeout = consumer, schemas, on_foreign, timeout
        self.skipped = 0
        """Messages so far that were no annotations."""

    def __call__(self, message: Message) -> list[PublishedAnnotation]:
        """The annotations of a message; none where it is foreign, which is dealt with as asked for.

        Where the registry stays unavailable, the message comes again and DependencyUnavailableError is raised.
        """
        payload = message.value() or b""
        try:
            return self._patiently(message, payload)
        except DecodeError as error:
            topic, partition, offset = place_of(message)
            foreign = ForeignMessage(topic, partition, offset, str(error), payload)
        self.skipped += 1
        if callable(self._on_foreign):
            self._on_foreign(foreign)
        elif self._on_foreign == "raise":
            raise DecodeError(str(foreign))
        else:
            log.warning("skipped %s", foreign)
        return []

    def _patiently(self, message: Message, payload: bytes) -> list[PublishedAnnotation]:
        end = time.monotonic() + self._timeout
        waiting = False
        while True:
            try:
                return read(payload, message.topic() or "", self._schemas)
            except DependencyUnavailableError as error:
                if time.monotonic() >= end:
                    self._consumer.seek(TopicPartition(*place_of(message)))
                    raise
                if not waiting:
                    log.warning("%s", error)
                waiting = True
                time.sleep(_RETRY_S)
