"""Positions of a subscription: where it begins in each partition, and where it is after a message."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from broker.streaming import clients

Position = tuple[str, int]
"""Topic and partition."""
Start = Literal["earliest", "latest"] | datetime
"""Where to begin in a topic without a position; a time with a zone: with the first message that Kafka got from then on.
"""
Rebalanced = Callable[[Consumer, list[TopicPartition]], None]
CALL_S: Final = 2.0
"""Longest call of librdkafka that cannot be interrupted: Ctrl-C waits for it."""


def starting_points(
    consumer: Consumer,
    partitions: Sequence[TopicPartition],
    positions: Mapping[Position, int] | None,
    start: Start,
    known: Collection[str],
) -> tuple[dict[Position, int], set[str]]:
    """The next offset to read of each partition, and the topics that may be seen now.

    ``positions`` are those so far of a reader without a group; None for a group, whose committed ones count, and which
    is given one in each partition where it has none. ``start`` is where to begin in topics that were ``known`` when the
    subscription began. Raises KafkaException where Kafka does not answer.
    """
    topics = {p.topic for p in partitions}
    cluster = consumer.list_topics(timeout=CALL_S)
    there = cluster.topics
    places = {(p.topic, p.partition) for p in partitions}
    places |= {(topic, number) for topic in topics & there.keys() for number in there[topic].partitions}
    every = [TopicPartition(topic, number) for topic, number in sorted(places)]
    found: Mapping[Position, int]
    if positions is None:
        found = {(p.topic, p.partition): p.offset for p in _answered(consumer.committed(every, CALL_S))}
    else:
        found = positions
    at = {(p.topic, p.partition): found.get((p.topic, p.partition), -1) for p in every}
    begun = {topic for (topic, _), offset in at.items() if offset >= 0}
    new = []
    for p in every:
        if at[p.topic, p.partition] < 0:
            # A topic that came later, or a partition of one whose other partitions have a position, is all new.
            is_old = p.topic in known and p.topic not in begun
            at_end = start == "latest" and is_old
            if isinstance(start, datetime) and is_old:
                p.offset = _offset_at(consumer, p, start, knows_times=clients.has_controller(cluster))
            elif positions is None or at_end:
                low, high = consumer.get_watermark_offsets(p, timeout=CALL_S)
                p.offset = high if at_end else low
            else:
                p.offset = OFFSET_BEGINNING  # librdkafka finds it, and waits for partitions that are being made
            at[p.topic, p.partition] = p.offset
            new.append(p)
    if new and positions is None:
        # Of all partitions at once: members that come in the next moment begin at the same positions.
        _answered(consumer.commit(offsets=new, asynchronous=False) or [])
    return at, set(there)


def _offset_at(consumer: Consumer, partition: TopicPartition, time: datetime, *, knows_times: bool) -> int:
    """The offset of the first message from ``time`` on; where there is none, that of the next one.

    librdkafka's mock, that of the demo, which is told by having no controller, knows no times: there that of the first
    one.
    """
    asked = TopicPartition(partition.topic, partition.partition, round(time.timestamp() * 1000))
    (found,) = _answered(consumer.offsets_for_times([asked], timeout=CALL_S))
    if found.offset >= 0:
        return found.offset
    low, high = consumer.get_watermark_offsets(partition, timeout=CALL_S)
    return high if knows_times else low


def _answered(partitions: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
    """Partitions of an answer; raises KafkaException where one has an error."""
    for p in partitions:
        if p.error is not None:
            raise KafkaException(p.error)
    return partitions


def weakly(method: Rebalanced) -> Rebalanced:
    """A callback that does not keep its subscription: one that is dropped leaves the group at once."""
    weak = weakref.WeakMethod(method)

    def call(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = weak()
        if found is not None:
            found(consumer, partitions)

    return call


def place_of(message: Message) -> tuple[str, int, int]:
    """Topic, partition and offset of a message that was read."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset


def after(message: Message) -> TopicPartition:
    """The position after a message."""
    topic, partition, offset = place_of(message)
    return TopicPartition(topic, partition, offset + 1)
