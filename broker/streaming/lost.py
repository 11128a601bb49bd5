"""Where reading goes on in partitions of which Kafka has not what was to be read next, and how much is lost by that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from broker.errors import ConfigurationError
from broker.streaming import clients

log = logging.getLogger(__name__)

OUT_OF_RANGE: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION)
"""What librdkafka says where ``auto.offset.reset`` is ``error``. It has ended reading the partition then, and refuses
to seek in it: it is to be assigned anew."""
DELETED: Final = (*OUT_OF_RANGE, KafkaError.OFFSET_OUT_OF_RANGE)
"""The same, and what Kafka itself says."""


def after_lost(
    consumer: Consumer, positions: Mapping[tuple[str, int], int], timeout_s: float
) -> dict[tuple[str, int], int]:
    """The next offset of each partition of ``positions`` that Kafka has, and say where that is not the one given.

    Reading then goes on with the oldest message there is: offsets between are lost where it is later than the one
    given, and the topic is another, or was cut off, where it is earlier. Raises KafkaException where Kafka does not
    answer within ``timeout_s`` a partition.
    """
    there = dict(positions)
    for (topic, partition), offset in positions.items():
        if offset < 0:  # a logical one, such as OFFSET_BEGINNING
            continue
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
        if offset < low or offset > high:
            there[topic, partition] = low
        if offset < low:
            log.warning("%s[%d]: what came from offset %d on, %d messages, was deleted before it was read; going on at "
                        "offset %d (how long Kafka keeps messages is the topic's retention.ms and retention.bytes)",
                        topic, partition, offset, low - offset, low)  # fmt: skip
        elif offset > high:
            log.warning("%s[%d]: ends at offset %d, before the position %d: was the topic made anew? Going on at its "
                        "beginning, offset %d", topic, partition, high, offset, low)  # fmt: skip
    return there


def read_on(reader: Consumer, topic: str, partition: int, offset: int) -> int:
    """The offset at which a stored topic is read on, where Kafka has deleted what was to be read at ``offset``.

    Raises DependencyUnavailableError where Kafka does not answer, and ConfigurationError where the topic is another
    one by now, which begins at a lower offset.
    """
    try:
        there = after_lost(reader, {(topic, partition): offset}, clients.CALL_TIMEOUT)[topic, partition]
    except KafkaException as error:
        raise clients.failure(error.args[0], f"topic {topic}") from error
    if there < offset:
        raise ConfigurationError(f"topic {topic} was made anew while it was read: begin again")
    return there
