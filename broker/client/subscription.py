"""Read annotations from Trifid's topics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Literal, Self
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException

from broker.publish.annotation import PublishedAnnotation, read

log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_REFUSED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


class Subscription:
    """Annotations as they are published: ``for annotation in Subscription("trifid.ztf.rrab"): ...``.

    Only transactions that were committed are read. With a ``group_id``, a program that was interrupted goes
    on where it was: an annotation counts as read when the next one is asked for.
    """

    def __init__(
        self,
        topics: str | Sequence[str],
        bootstrap_servers: str = "localhost:9092",
        *,
        group_id: str | None = None,
        start: Literal["earliest", "latest"] = "latest",
        idle_timeout: float | None = None,
        options: dict[str, str | int | float | bool] | None = None,
    ) -> None:
        """Subscribe to one or several topics; one that begins with ``^`` is a regular expression.

        ``start`` is where to begin without a position of the group; after ``idle_timeout`` seconds without an
        annotation the iteration ends, with None never. ``options`` are further librdkafka properties, such as
        those for TLS and passwords.
        """
        self._idle_timeout = idle_timeout
        self._commits = group_id is not None
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": group_id or f"trifid-subscriber-{uuid4()}",
                "auto.offset.reset": start,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "error_cb": lambda error: log.warning("Kafka: %s", error.str()),
                **(options or {}),
            }
        )
        self._consumer.subscribe([topics] if isinstance(topics, str) else list(topics))

    def __iter__(self) -> Iterator[PublishedAnnotation]:
        """Annotations in the order of each partition.

        Raises DecodeError on a message that is none, and KafkaException where the topic may not be read.
        """
        heard = time.monotonic()
        while self._idle_timeout is None or time.monotonic() - heard < self._idle_timeout:
            message = self._consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.fatal() or error.code() in _REFUSED:
                    raise KafkaException(error)
                log.warning("Kafka: %s", error.str())  # librdkafka goes on trying
                continue
            yield from read(message.value() or b"", message.topic() or "")
            if self._commits:
                self._consumer.commit(message=message, asynchronous=True)
            heard = time.monotonic()

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
