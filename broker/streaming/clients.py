"""Kafka clients as the service sets them up, and its topics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError

log = logging.getLogger(__name__)

CALL_TIMEOUT: Final = 5.0
"""Seconds to wait for Kafka in one call: short enough to notice a request to stop in time."""
_CREATE_TIMEOUT: Final = 30.0
_REPEAT_S: Final = 30.0
_QUIET: Final[dict[str, Any]] = {
    # What librdkafka itself would write to stderr comes to log_error as well.
    "log_level": 2,
    # A broker that is away is asked again twice a second at first, and not twenty times.
    "reconnect.backoff.ms": 500,
    "reconnect.backoff.max.ms": 5000,
}


class _ErrorLog:
    """Reports what happens to connections, one kind of error at most every _REPEAT_S; librdkafka goes on trying."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._last.get(error.code(), float("-inf")) >= _REPEAT_S:
            self._last[error.code()] = now
            log.warning("Kafka: %s", error.str())


log_error: Final = _ErrorLog()


def consumer(settings: KafkaSettings) -> Consumer:
    """A consumer of the worker's group that commits nothing by itself and reads what is committed only."""
    return Consumer(
        {
            "group.id": settings.group_id,
            "client.id": f"{settings.group_id}-{settings.worker_id}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # Also makes the group wait for offsets of a transaction that is still open (KIP-447).
            "isolation.level": "read_committed",
            # Eager: on each rebalance all partitions start again from what is committed, so that a batch in
            # hand can simply be let go.
            "partition.assignment.strategy": "range",
            "session.timeout.ms": _milliseconds(settings.session_timeout_s),
            "heartbeat.interval.ms": _milliseconds(settings.session_timeout_s / 3),
            "fetch.message.max.bytes": settings.max_message_bytes,
            "error_cb": log_error,
            **_QUIET,
            **settings.client_options(),
        }
    )


def producer(settings: KafkaSettings, *, transactional: bool) -> Producer:
    """An idempotent producer; where ``transactional``, under the worker's own transactional id."""
    options: dict[str, Any] = {
        "client.id": f"{settings.group_id}-{settings.worker_id}",
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": settings.max_message_bytes,
        "error_cb": log_error,
        **_QUIET,
        **settings.client_options(),
    }
    if transactional:
        options["transactional.id"] = f"{settings.group_id}-{settings.worker_id}"
        options["transaction.timeout.ms"] = _milliseconds(settings.transaction_timeout_s)
    return Producer(options)


def create_missing_topics(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Create those of ``names`` that do not exist; raises DependencyUnavailableError where Kafka is away."""
    options: dict[str, Any] = {"error_cb": log_error, **_QUIET, **settings.client_options()}
    admin = AdminClient(options)
    try:
        existing = admin.list_topics(timeout=CALL_TIMEOUT).topics
        missing = [
            NewTopic(name, settings.topic_partitions, settings.replication_factor)
            for name in names
            if name not in existing
        ]
        created = admin.create_topics(missing, request_timeout=_CREATE_TIMEOUT) if missing else {}
    except KafkaException as error:
        raise DependencyUnavailableError(f"Kafka: {error}") from error
    for name, future in created.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                raise DependencyUnavailableError(f"Kafka cannot create topic {name}: {error}") from error
    if created:
        log.info("created %d topics", len(created))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
