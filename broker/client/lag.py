"""How far a subscription, or a consumer group, is behind the end of its topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from broker.client.arguments import consumer_options, no_topic
from broker.client.positions import CALL_S, Position
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
    try:
        consumer = Consumer(consumer_options(options or {}, bootstrap_servers, group_id))
    except KafkaException as error:
        raise ConfigurationError(f"options of Kafka: {error.args[0].str()}") from error
    try:
        there = consumer.list_topics(timeout=5 * CALL_S).topics
        if missing := [topic for topic in topics if not is_pattern(topic) and topic not in there]:
            raise no_topic(bootstrap_servers, missing, there)
        names = sorted(name for name in there if any(matches(topic, name) for topic in topics))
        every = [TopicPartition(name, number) for name in names for number in there[name].partitions]
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
