"""What Kafka says of a consumer group's members, asked again while the group's coordinator is not there."""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, MemberDescription

_NOT_YET: Final = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError._UNSUPPORTED_FEATURE,  # librdkafka has no connection to it (broker/streaming/topics.py)
    KafkaError._TIMED_OUT,
)
_PATIENCE_S: Final = 120.0


def members_of(bootstrap: str, group_id: str) -> list[MemberDescription]:
    """The members at present; raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            members: list[MemberDescription] = admin.describe_consumer_groups([group_id])[group_id].result().members
            return members
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET or time.monotonic() > end:
                raise
        time.sleep(0.1)
