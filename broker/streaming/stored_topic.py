"""What a topic holds between two times, read once by nobody in particular: for `trifid state rebuild`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.streaming import clients
from broker.streaming.lost import DELETED, read_on
from broker.streaming.partitions import position

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_SILENCE_S: Final = 30.0
"""After so long without a message or an end, Kafka counts as unavailable."""


@dataclass(slots=True)
class Span:
    """What is to be read of one partition: offsets from ``start`` to before ``end``."""

    start: int
    end: int


class StoredTopic:
    """The messages of a topic, from one time to another or to where it ended when this was made; all partitions at
    once, in no order between them."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        since: datetime | None = None,
        until: datetime | None = None,
        done: Mapping[int, int] | None = None,
        *,
        spans: Mapping[int, Span] | None = None,
    ) -> None:
        """``since`` and ``until`` are times of messages, as Kafka has them; ``done`` are offsets, by partition, up to
        which an earlier reading came. With ``spans`` these are read, and nothing is asked for.

        Raises DependencyUnavailableError, and ConfigurationError where there is no such topic, or no right to read it.
        """
        self.kafka, self.topic = kafka, topic
        self.missed = 0
        """Messages that Kafka deleted before they were read."""
        self._consumer: Consumer = clients.reader(kafka, f"{kafka.group_id}-state-rebuild")
        try:
            if spans is None:
                spans = {p: self._span(p, since, until, done or {}) for p in self._partitions()}
            self.spans = dict(spans)
        except KafkaException as error:
            self.close()
            raise clients.failure(error.args[0], f"topic {topic}") from error
        except BaseException:
            self.close()
            raise

    @property
    def left(self) -> int:
        """Offsets still to be read; some of them may be no messages (the ends of transactions)."""
        return sum(span.end - span.start for span in self.spans.values())

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def read(self, most: int) -> Iterator[list[Message]]:
        """All of it, up to ``most`` messages at a time; raises DependencyUnavailableError, ConfigurationError."""
        open_ = {p: span for p, span in self.spans.items() if span.start < span.end}
        self._consumer.assign([TopicPartition(self.topic, p, span.start) for p, span in open_.items()])
        heard = time.monotonic()
        while open_:
            found = []
            for message in self._consumer.consume(most, _POLL_S):
                partition = message.partition()
                error = message.error()
                if error is not None:
                    if self._failed(error, partition, open_):
                        heard = time.monotonic()
                    continue
                heard = time.monotonic()
                _, number, offset = position(message)
                span = open_.get(number)
                if span is None:
                    continue
                if offset < span.end:
                    found.append(message)
                    span.start = offset + 1
                if offset >= span.end - 1:
                    self._finish(number, open_)
            if found:
                yield found
            elif time.monotonic() - heard > _SILENCE_S:
                raise DependencyUnavailableError(f"Kafka gives nothing of {self.topic}")

    def _finish(self, partition: int, open_: dict[int, Span]) -> None:
        span = open_.pop(partition)
        span.start = span.end
        self._consumer.pause([TopicPartition(self.topic, partition)])

    def _failed(self, error: KafkaError, partition: int | None, open_: dict[int, Span]) -> bool:
        """Whether what came in place of a message is an answer of Kafka's, and no trouble of a connection."""
        if partition in open_ and error.code() == KafkaError._PARTITION_EOF:
            self._finish(partition, open_)
            return True
        if partition in open_ and error.code() in DELETED:
            span = open_[partition]
            low = read_on(self._consumer, self.topic, partition, span.start)
            self.missed += min(low, span.end) - span.start
            span.start = low
            if span.start >= span.end:
                self._finish(partition, open_)
            else:
                self._consumer.incremental_unassign([TopicPartition(self.topic, partition)])
                self._consumer.incremental_assign([TopicPartition(self.topic, partition, low)])
            return True
        refused = clients.failure(error, f"topic {self.topic}")
        if isinstance(refused, ConfigurationError):
            raise refused
        log.warning("Kafka: %s", error.str())
        return False

    def _partitions(self) -> list[int]:
        found = self._consumer.list_topics(self.topic, timeout=clients.CALL_TIMEOUT).topics[self.topic]
        if found.error is not None:
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise ConfigurationError(f"topic {self.topic} does not exist")
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def _span(self, partition: int, since: datetime | None, until: datetime | None, done: Mapping[int, int]) -> Span:
        place = TopicPartition(self.topic, partition)
        low, high = self._consumer.get_watermark_offsets(place, timeout=clients.CALL_TIMEOUT)
        if until is not None:
            high = min(high, self._at(partition, until, high))
        start = low if since is None else self._at(partition, since, high)
        reached = done.get(partition, low)
        self.missed += max(0, min(low, high) - reached)
        start = max(start, reached, low)
        return Span(min(start, high), high)

    def _at(self, partition: int, time_: datetime, high: int) -> int:
        """The offset of the first message from a time on; ``high`` where there is none."""
        asked = TopicPartition(self.topic, partition, round(time_.timestamp() * 1000))
        (found,) = self._consumer.offsets_for_times([asked], timeout=clients.CALL_TIMEOUT)
        if found.error is not None:
            raise KafkaException(found.error)
        return found.offset if found.offset >= 0 else high
