"""From a message of a subscribed topic to the annotations in it that are wanted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

from confluent_kafka import Consumer, Message, TopicPartition

from broker.client.expression import Expression
from broker.client.filters import Filter
from broker.client.foreign import ForeignMessage
from broker.client.headers import FIELDS_IN_HEADERS, summary
from broker.client.positions import place_of
from broker.errors import DecodeError, DependencyUnavailableError
from broker.publish.annotation import PublishedAnnotation, Schemas, read

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.5
Condition = Callable[[PublishedAnnotation], bool]
"""Whether an annotation is wanted."""


class Reader:
    """Reads the messages of one consumer."""

    def __init__(
        self,
        consumer: Consumer,
        schemas: Schemas | None,
        on_foreign: Literal["warn", "raise"] | Callable[[ForeignMessage], None],
        timeout: float,
        conditions: Sequence[Condition] = (),
    ) -> None:
        """``timeout`` bounds, in seconds, the wait for a schema registry; the others as ``Subscription`` has them.

        Each of ``conditions`` has to be true of an annotation that is wanted.
        """
        self._consumer, self._schemas, self._on_foreign, self._timeout = consumer, schemas, on_foreign, timeout
        self._conditions = conditions
        self._of_headers = [c for c in conditions if isinstance(c, Filter | Expression)
                            and c.fields and c.fields <= FIELDS_IN_HEADERS]  # fmt: skip
        self.skipped = 0
        """Messages so far that were no annotations."""

    def __call__(self, message: Message, own: Condition) -> tuple[list[PublishedAnnotation], bool]:
        """The annotations of a message that are ``own`` and wanted, and whether it has any at all.

        Conditions are asked of those that are ``own`` alone: once of an annotation that is in several topics. What the
        headers tell to be unwanted is not read at all. Where the registry stays unavailable, the message comes again
        and DependencyUnavailableError is raised.
        """
        if self._of_headers and (values := summary(message)) is not None:
            for condition in self._of_headers:
                if not condition.holds(values):
                    return [], True
        payload = message.value() or b""
        try:
            found = self._patiently(message, payload)
            wanted = [a for a in found if own(a) and all(condition(a) for condition in self._conditions)]
            return wanted, bool(found)
        except DecodeError as error:
            topic, partition, offset = place_of(message)
            foreign = ForeignMessage(topic, partition, offset, str(error), payload)
        self.skipped += 1
        if callable(self._on_foreign):
            self._on_foreign(foreign)
        elif self._on_foreign == "raise":
            raise DecodeError(str(foreign))
        else:
            log.warning("skipped %s", foreign, extra={"topic": topic, "partition": partition, "offset": offset})
        return [], False

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
