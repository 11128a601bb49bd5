"""Kafka clients as the service sets them up, and its topics."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError

log = logging.getLogger(__name__)

_ADMIN_TIMEOUT: Final = 30.0


def log_error(error: KafkaError) -> None:
    """Report what happens to connections; librdkafka itself goes on trying."""
    log.warning("Kafka: %s", error)


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
        **settings.client_options(),
    }
    if transactional:
        options["transactional.id"] = f"{settings.group_id}-{settings.worker_id}"
        options["transaction.timeout.ms"] = _milliseconds(settings.transaction_timeout_s)
    return Producer(options)


def create_missing_topics(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Create those of ``names`` that do not exist; raises DependencyUnavailableError where Kafka is away."""
    admin = AdminClient(settings.client_options())
    try:
        existing = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        missing = [
            NewTopic(name, settings.topic_partitions, settings.replication_factor)
            for name in names
            if name not in existing
        ]
        created = admin.create_topics(missing, request_timeout=_ADMIN_TIMEOUT) if missing else {}
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
