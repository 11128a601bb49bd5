"""A consumer's partitions: which are paused, where they are read from, what is committed of them, and their lag.

The consumer itself, its group and its messages are in ``consumer.py``; when a batch is taken, abandoned or delivered
is in ``service.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, Consumer, KafkaException, Message, TopicPartition

from broker.config import KafkaSettings
from broker.metrics import CONSUMER_LAG, INPUT_LOST, TOPICS_RECREATED
from broker.streaming import clients
from broker.streaming.lost import after_lost
from broker.streaming.topics import Asked, TopicAdmin, TopicIds

log = logging.getLogger(__name__)

_ID: Final = "topic-id="
"""Before a topic's id in the metadata of a committed offset."""


_Place = tuple[str, int]
"""Topic and partition."""


class BatchAbandonedError(Exception):
    """The in-flight batch is abandoned: the service stops, or its partitions may have another worker by now."""


class Partitions:
    """The partitions that a consumer has at present. For one thread."""

    def __init__(self, consumer: Consumer, group_id: str, kafka: KafkaSettings, topics: TopicAdmin) -> None:
        """``topics`` is asked which topics are still those that were read from."""
        self.lost = False
        """Whether partitions went, or messages were passed over, since this was last set to False."""
        self.unpositioned = False
        """Whether where to read from is to be found out: partitions were assigned, a topic was recreated, or Kafka has
        not what comes next."""
        self._consumer, self._group_id, self._kafka, self._topics = consumer, group_id, kafka, topics
        self._paused: list[TopicPartition] = []
        """Only these are resumed: for librdkafka a resume can be a seek."""
        self._ids: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._committed_at: dict[_Place, int] = {}
        """What is committed, as far as is known here; negative where nothing is."""
        self._ends: dict[_Place, int] = {}
        """Offsets at which there was nothing more to read, since the partitions were set to what is committed."""
        self._ended: dict[_Place, int] = {}
        """Partitions that librdkafka has ended reading, and the offset it asked for that Kafka did not have; negative
        where nothing is committed, and there was none to ask for."""
        self._instead: dict[_Place, tuple[int, int]] = {}
        """A committed offset that Kafka did not have, and where the partition was read on instead: counted already."""

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
            for of_partition in (self._committed_at, self._ends, self._ended, self._instead):
                of_partition.pop((p.topic, p.partition), None)
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
        self._ends.clear()
        starts = self._starts(assigned, ids)
        if self._ended:
            starts = self._read_on(starts)
        for start in starts:
            self._consumer.seek(start)
        for topic in ids:
            TOPICS_RECREATED.labels(topic)
            INPUT_LOST.labels(topic)
        self._ids.update({topic: found for topic, found in ids.items() if found})

    def _starts(self, assigned: list[TopicPartition], ids: TopicIds) -> list[TopicPartition]:
        """Where partitions are to be read from."""
        starts = []
        for p in self._committed(assigned):
            place, now = (p.topic, p.partition), ids[p.topic]
            committed, instead = self._instead.get(place, (OFFSET_INVALID, OFFSET_INVALID))
            offset = instead if p.offset == committed else p.offset
            self._committed_at[place] = p.offset
            written = (p.metadata or "").partition(_ID)[2] or self._ids.get(p.topic)
            if now and written and written != now:
                # librdkafka would go on at the old topic's offset, and pass over as many messages of the new one.
                offset = self._committed_at[place] = OFFSET_BEGINNING
                if (p.topic, now) not in self._told:
                    self._told.add((p.topic, now))
                    TOPICS_RECREATED.labels(p.topic).inc()
                    log.warning(
                        "input topic %s was deleted and recreated (id %s, before %s): reading from its beginning; what "
                        "of the old one was not read by then is gone with it",
                        p.topic, now, written,
                    )  # fmt: skip
            elif offset < 0:  # nothing is committed: where reading ended, if it had begun
                offset = max(self._ended.get(place, OFFSET_BEGINNING), OFFSET_BEGINNING)
            starts.append(TopicPartition(p.topic, p.partition, offset))
        return starts

    def _read_on(self, starts: list[TopicPartition]) -> list[TopicPartition]:
        """Read partitions on of which Kafka has not what comes next, and count what is lost; the others of ``starts``.

        Raises KafkaException.
        """
        ended = [p for p in starts if (p.topic, p.partition) in self._ended]
        positions = {(p.topic, p.partition): p.offset for p in ended}
        there = after_lost(self._consumer, positions, clients.CALL_TIMEOUT)
        for p in ended:
            place = (p.topic, p.partition)
            p.offset, before = there[place], p.offset
            if p.offset != before:
                self._instead[place] = (self._committed_at[place], p.offset)
            if p.offset > before >= 0:
                INPUT_LOST.labels(p.topic).inc(p.offset - before)
            elif p.offset < before:
                TOPICS_RECREATED.labels(p.topic).inc()
        # librdkafka has ended reading them, and refuses to seek in them.
        if self._kafka.group_protocol == "cooperative":
            self._consumer.incremental_unassign(ended)
            self._consumer.incremental_assign(ended)
            starts = [p for p in starts if p not in ended]
        else:
            self._consumer.assign(starts)
            starts = []
        self._ended.clear()
        return starts

    def _committed(self, assigned: list[TopicPartition]) -> list[TopicPartition]:
        found: list[TopicPartition] = self._consumer.committed(assigned, clients.CALL_TIMEOUT)
        new = [p for p in found if p.offset < 0]
        if self._group_id == self._kafka.group_id or not new:
            return found
        # Workers of 0.1.0 read spectra in the group of the alerts.
        before = self._topics.committed(self._kafka.group_id, new)
        return [p for p in found if p.offset >= 0] + before

    def reached_end(self, event: Message) -> None:
        """Note that there is nothing more to read in a partition at present."""
        topic, partition, offset = position(event)
        self._ends[topic, partition] = offset

    def ended(self, event: Message) -> None:
        """Note that Kafka has not what comes next in a partition, so that it is to be set to what there is.

        A batch in flight is kept: its messages came before. What is lost is counted after it.
        """
        offset = event.offset()
        self._ended[position(event)[:2]] = OFFSET_INVALID if offset is None else offset
        self.unpositioned = True

    def next_offsets(self, messages: Sequence[Message]) -> list[TopicPartition]:
        """The offset after the last message of each partition; a partition's messages are in order."""
        last = {(topic, partition): offset for topic, partition, offset in map(position, messages)}
        return [self._to_commit(place, offset + 1) for place, offset in last.items()]

    def passed(self) -> list[TopicPartition]:
        """Ends of partitions that are beyond what is committed; for when all messages before them are delivered.

        Between are ends of transactions, and messages of aborted ones: with nothing committed behind them, their later
        deletion would look like a loss. And a partition that had no message yet gets its first committed offset, from
        which on a loss can be told.
        """
        beyond = {
            place: end for place, end in self._ends.items() if end > self._committed_at.get(place, OFFSET_INVALID)
        }
        return [self._to_commit(place, end) for place, end in beyond.items()]

    def delivered(self, offsets: Sequence[TopicPartition]) -> None:
        """Of offsets that are committed now."""
        self._committed_at |= {(p.topic, p.partition): p.offset for p in offsets}

    def _to_commit(self, place: _Place, offset: int) -> TopicPartition:
        topic, partition = place
        return TopicPartition(topic, partition, offset, f"{_ID}{self._ids[topic]}" if topic in self._ids else "")

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
