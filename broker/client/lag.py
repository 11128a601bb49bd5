"""Where a consumer group is in its topics: how far behind the end, and how it is moved elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from broker.client.arguments import check_start, consumer_options, no_topic
from broker.client.positions import CALL_S, Position, Start, starting_points
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.topic_names import is_pattern, matches


@dataclass(frozen=True, slots=True)
class Lag:
    """One partition as a consumer group has it."""

    topic: str
    partition: int
    position: int | None
    """Offset of the next message to read; None where the group has none yet."""
    end: int
    """Offset behind the last message of a committed transaction."""
    messages: int
    """Between the two, marks of transactions among them; all that Kafka has where there is no position."""


def behind(
    consumer: Consumer, servers: str, partitions: Sequence[TopicPartition], positions: Mapping[Position, int]
) -> dict[Position, int]:
    """Messages behind each position, or in the partition where it has none; raises DependencyUnavailableError."""
    found: dict[Position, int] = {}
    for p in partitions:
        first, end = _ends(consumer, servers, p)
        found[p.topic, p.partition] = max(0, end - max(first, positions.get((p.topic, p.partition), first)))
    return found


def group_lag(
    topics: Sequence[str], bootstrap_servers: str, group_id: str, options: Mapping[str, Any] | None = None
) -> list[Lag]:
    """Each partition of ``topics``, of which those that begin with ``^`` are regular expressions, for one group.

    Reads nothing and joins no group. Raises ConfigurationError where a topic does not exist or ``options`` of
    librdkafka cannot be meant, DependencyUnavailableError where Kafka does not answer.
    """
    consumer = _consumer(bootstrap_servers, group_id, options)
    try:
        every = _partitions(consumer, bootstrap_servers, topics)
        committed = consumer.committed(every, 5 * CALL_S) if every else []
        found = []
        for p in committed:
            position = p.offset if p.offset >= 0 else None
            first, end = _ends(consumer, bootstrap_servers, p)
            messages = max(0, end - max(first, first if position is None else position))
            found.append(Lag(p.topic, p.partition, position, end, messages))
        return found
    except KafkaException as error:
        raise DependencyUnavailableError(f"Kafka at {bootstrap_servers}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def move_group(
    topics: Sequence[str],
    bootstrap_servers: str,
    group_id: str,
    start: Start,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Have a group go on at ``start`` in each partition of ``topics``, wherever it was: as ``Subscription`` has both.

    Raises ConfigurationError where the group has members, which go by their own positions, where a topic does not
    exist, or where an argument cannot be meant; DependencyUnavailableError where Kafka does not answer.
    """
    check_start(start)
    consumer = _consumer(bootstrap_servers, group_id, options)
    try:
        if not (every := _partitions(consumer, bootstrap_servers, topics)):
            return
        at, _ = starting_points(consumer, every, {}, start, {p.topic for p in every})
        moved = [TopicPartition(*place, offset) for place, offset in at.items()]
        for p in moved:
            if p.offset < 0:  # the beginning, which is no offset that can be committed
                p.offset = _ends(consumer, bootstrap_servers, p)[0]
        consumer.commit(offsets=moved, asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION):
            raise ConfigurationError(
                f"group {group_id} has members, or had them until a moment ago: end them before it is moved"
            ) from error
        raise DependencyUnavailableError(f"Kafka at {bootstrap_servers}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _consumer(servers: str, group_id: str, options: Mapping[str, Any] | None) -> Consumer:
    try:
        return Consumer(consumer_options(options or {}, servers, group_id))
    except KafkaException as error:
        raise ConfigurationError(f"options of Kafka: {error.args[0].str()}") from error


def _partitions(consumer: Consumer, servers: str, topics: Sequence[str]) -> list[TopicPartition]:
    """All partitions of topics, some of which are regular expressions; raises KafkaException, ConfigurationError."""
    there = consumer.list_topics(timeout=5 * CALL_S).topics
    if missing := [topic for topic in topics if not is_pattern(topic) and topic not in there]:
        raise no_topic(servers, missing, there)
    names = sorted(name for name in there if any(matches(topic, name) for topic in topics))
    return [TopicPartition(name, number) for name in names for number in there[name].partitions]


def _ends(consumer: Consumer, servers: str, partition: TopicPartition) -> tuple[int, int]:
    """The first offset that Kafka has, and that behind the last committed message."""
    try:
        ends = consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.partition), 5 * CALL_S)
    except KafkaException as error:
        raise DependencyUnavailableError(f"Kafka at {servers}: {error.args[0].str()}") from error
    if ends is None:
        raise DependencyUnavailableError(
            f"Kafka at {servers}: no answer about {partition.topic}[{partition.partition}]"
        )
    return ends
