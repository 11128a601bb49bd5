"""A consumer's partitions: which are paused, where they are read from, what is committed of them, and their lag.

The consumer itself, its group and its messages are in ``consumer.py``; when a batch is taken, abandoned or delivered
is in ``service.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from broker.config import KafkaSettings
from broker.metrics import CONSUMER_LAG, TOPICS_RECREATED
from broker.streaming import clients
from broker.streaming.topics import Asked, TopicAdmin, TopicIds

log = logging.getLogger(__name__)

_ID: Final = "topic-id="
"""Before a topic's id in the metadata of a committed offset."""


class BatchAbandonedError(Exception):
    """The in-flight batch is abandoned: the service stops, or its partitions may have another worker by now."""


class Partitions:
    """The partitions that a consumer has at present. For one thread."""

    def __init__(self, consumer: Consumer, group_id: str, kafka: KafkaSettings, topics: TopicAdmin) -> None:
        """``topics`` is asked which topics are still those that were read from."""
        self.lost = False
        """Whether partitions went, or messages were passed over, since this was last set to False."""
        self.unpositioned = False
        """Whether partitions were assigned, or a topic was recreated, and where to read from is to be found out."""
        self._consumer, self._group_id, self._kafka, self._topics = consumer, group_id, kafka, topics
        self._paused: list[TopicPartition] = []
        """Only these are resumed: for librdkafka a resume can be a seek."""
        self._ids: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()

    def names(self) -> set[str]:
        """The topics of which there are partitions here."""
        return {p.topic for p in self._consumer.assignment()}

    def pause(self) -> None:
        """Pause those that are read."""
        read = [p for p in self._consumer.assignment() if p not in self._paused]
        self._consumer.pause(read)
        self._paused += read

    def resume(self) -> None:
        """Read on where it was paused."""
        paused, self._paused = self._paused, []
        self._consumer.resume(paused)

    def removed(self, partitions: Sequence[TopicPartition]) -> None:
        """Of partitions that went: another worker may have them, and the batch in flight may hold messages of them."""
        self.lost = True
        for p in partitions:
            with suppress(KeyError):  # its lag was never measured
                CONSUMER_LAG.remove(p.topic, p.partition)

    def forget_paused(self, partitions: Sequence[TopicPartition]) -> None:
        """Of partitions that go: librdkafka remembers that one was paused while another worker has it."""
        paused = [p for p in self._paused if p in partitions]
        self._paused = [p for p in self._paused if p not in partitions]
        with suppress(KafkaException):  # of one that is gone already
            self._consumer.resume(paused)

    def ask(self, messages: Sequence[Message]) -> Asked:
        """Ask whether the topics of messages are still those that they were read from."""
        return self._topics.ask(cast("str", message.topic()) for message in messages)

    def check(self, ids: TopicIds) -> None:
        """Compare topics with those that are read; raises BatchAbandonedError where one was recreated, or is gone.

        Where the answer to a question asked after a message was taken still has the topic's old id, the message is
        of that topic, and its offset may be committed.
        """
        others = {topic: now for topic, now in ids.items() if now is None or (now and self._ids.get(topic, now) != now)}
        for topic, now in others.items():
            log.warning("input topic %s %s", topic, "was deleted" if now is None else "was recreated")
        if others:
            self.lost = self.unpositioned = True
            raise BatchAbandonedError

    def seek_to_committed(self) -> None:
        """Read each on from what is committed of it; raises KafkaException or DependencyUnavailableError."""
        # Rebalances happen within poll and consume only: the partitions stay the same until the end of this.
        if not (assigned := self._consumer.assignment()):
            return
        ids = self._topics.ids(p.topic for p in assigned)
        for start in self._starts(assigned, ids):
            self._consumer.seek(start)
        for topic in ids:
            TOPICS_RECREATED.labels(topic)
        self._ids.update({topic: found for topic, found in ids.items() if found})

    def _starts(self, assigned: list[TopicPartition], ids: TopicIds) -> list[TopicPartition]:
        """Where partitions are to be read from."""
        starts = []
        for p in self._committed(assigned):
            offset, now = p.offset, ids[p.topic]
            written = (p.metadata or "").partition(_ID)[2] or self._ids.get(p.topic)
            if now and written and written != now:
                # librdkafka would go on at the old topic's offset, and pass over as many messages of the new one.
                offset = OFFSET_BEGINNING
                if (p.topic, now) not in self._told:
                    self._told.add((p.topic, now))
                    TOPICS_RECREATED.labels(p.topic).inc()
                    log.warning(
                        "input topic %s was deleted and recreated (id %s, before %s): reading from its beginning",
                        p.topic, now, written,
                    )  # fmt: skip
            starts.append(TopicPartition(p.topic, p.partition, offset if offset >= 0 else OFFSET_BEGINNING))
        return starts

    def _committed(self, assigned: list[TopicPartition]) -> list[TopicPartition]:
        found: list[TopicPartition] = self._consumer.committed(assigned, clients.CALL_TIMEOUT)
        new = [p for p in found if p.offset < 0]
        if self._group_id == self._kafka.group_id or not new:
            return found
        # Workers of 0.1.0 read spectra in the group of the alerts.
        before = self._topics.committed(self._kafka.group_id, new)
        return [p for p in found if p.offset >= 0] + before

    def next_offsets(self, messages: Sequence[Message]) -> list[TopicPartition]:
        """The offset after the last message of each partition; a partition's messages are in order."""
        last = {(topic, partition): offset for topic, partition, offset in map(position, messages)}
        return [
            TopicPartition(topic, partition, offset + 1, f"{_ID}{self._ids[topic]}" if topic in self._ids else "")
            for (topic, partition), offset in last.items()
        ]

    def lag(self, *, cached: bool) -> int:
        """Messages not yet taken; ``cached`` high-water marks are those of the last fetch. Raises KafkaException."""
        total = 0
        for p in self._consumer.position(self._consumer.assignment()):
            marks = self._consumer.get_watermark_offsets(p, timeout=1.0, cached=cached)
            if marks is not None and p.offset >= 0:
                lag = max(0, marks[1] - p.offset)
                total += lag
                CONSUMER_LAG.labels(p.topic, p.partition).set(lag)
        return total


def position(message: Message) -> tuple[str, int, int]:
    """Where a message is from: topic, partition, offset."""
    return cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
