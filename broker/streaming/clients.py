"""Kafka clients as the service sets them up, and its topics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_TIMEOUT: Final = 5.0
"""Seconds to wait for Kafka in one call: short enough to notice a request to stop in time."""
_HEARTBEAT_S: Final = 1.0
_CREATE_TIMEOUT: Final = 30.0
_REPEAT_S: Final = 30.0
_KEPT_ERRORS: Final = 20
_RIGHTS: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "inputs need Read, outputs Write, and Create where kafka.create_topics",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "kafka.group_id, and the same with -spectra, need Read",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "ids that begin with kafka.group_id and - need Write",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the user has no right at the cluster",
}
"""Errors of the authorizer, and what is missing."""
_STRATEGIES: Final = {
    # Partitions that stay are read on during a rebalance (KIP-429).
    "cooperative": "cooperative-sticky",
    "eager": "range,roundrobin",
}
_MANUAL: Final[dict[str, Any]] = {
    # Offsets go with the messages of their batch.
    "enable.auto.commit": False,
    # Also makes the group wait for offsets of a transaction that is still open (KIP-447).
    "isolation.level": "read_committed",
}
_DEFAULTS: Final[dict[str, Any]] = {
    # What librdkafka itself would write to stderr comes to log_error as well.
    "log_level": 2,
    # A broker that is unavailable is asked again twice a second at first, and not twenty times.
    "reconnect.backoff.ms": 500,
    "reconnect.backoff.max.ms": 5000,
    # librdkafka's own choice, to forget all brokers when none answers, can leave a transaction waiting for ever for
    # one that it forgot (confluentinc/librdkafka issues 5456 and 5511; seen in tests/faults).
    "metadata.recovery.strategy": "none",
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


def consumer(settings: KafkaSettings, group_id: str | None = None) -> Consumer:
    """A member of ``group_id``, else of the worker's group, that commits nothing by itself and reads what is committed
    only."""
    return _client(
        Consumer,
        settings,
        {
            **_MANUAL,
            "group.id": group_id or settings.group_id,
            # What Kafka deleted before it was read is told, and not passed over (partitions.py).
            "auto.offset.reset": "error",
            # The ends of partitions: what lies between the last message and one of these is no message.
            "enable.partition.eof": True,
            "partition.assignment.strategy": _STRATEGIES[settings.group_protocol],
            **({"group.instance.id": settings.worker_id} if settings.static_membership else {}),
            "session.timeout.ms": _milliseconds(settings.session_timeout_s),
            # Members learn of a rebalance with the answer to their next heartbeat, and a cooperative one takes two.
            "heartbeat.interval.ms": _milliseconds(min(_HEARTBEAT_S, settings.session_timeout_s / 3)),
            "max.poll.interval.ms": _milliseconds(settings.max_poll_interval_s),
            **_bounds(settings),
        },
    )


def reader(settings: KafkaSettings, group_id: str) -> Consumer:
    """A consumer for partitions that are assigned by hand; it does not join the group, whose offsets it may read."""
    return _client(
        Consumer,
        settings,
        {
            **_MANUAL,
            "group.id": group_id,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            **_bounds(settings),
        },
    )


def admin(settings: KafkaSettings, on_error: Callable[[KafkaError], None] = log_error) -> AdminClient:
    """A client for questions about topics; ``on_error`` is told of the connection's errors when it is polled."""
    return _client(AdminClient, settings, {"error_cb": on_error})


def producer(settings: KafkaSettings, *, transactional: bool) -> Producer:
    """An idempotent producer; where ``transactional``, under the worker's own transactional id."""
    options: dict[str, Any] = {
        "enable.idempotence": True,
        "message.max.bytes": settings.max_message_bytes,
        # By default there is room for 1 GiB.
        "queue.buffering.max.kbytes": max(settings.producer_queue_mib * 1024, 2 * settings.max_message_bytes // 1024),
    }
    if transactional:
        options["transactional.id"] = f"{settings.group_id}-{settings.worker_id}"
        options["transaction.timeout.ms"] = _milliseconds(settings.transaction_timeout_s)
        # A transaction whose messages are not taken in time is aborted by this worker, which can send fewer then, and
        # not by Kafka, which would shut the worker out.
        options["message.timeout.ms"] = _milliseconds(settings.transaction_timeout_s / 2)
    return _client(Producer, settings, options)


def failure(error: KafkaError, what: str = "") -> TrifidError:
    """Kafka's refusal as ours; ``what`` names what was refused.

    A missing right is a ConfigurationError: waiting would not bring it. A login that is refused is waited for, since
    passwords are changed on one side first.
    """
    told = f"{what}: {error.str()}" if what else error.str()
    if error.code() in _RIGHTS:
        return ConfigurationError(f"Kafka does not allow it: {told}; {_RIGHTS[error.code()]} (docs/security.md)")
    return DependencyUnavailableError(f"Kafka: {told}")


def has_controller(cluster: ClusterMetadata) -> bool:
    """Whether a cluster is one of Kafka's: librdkafka's mock, that of the demo, names no controller."""
    return cluster.controller_id in cluster.brokers


def poll_events(client: AdminClient | Producer) -> None:
    """Have log_error told what a client knows of its connection, such as a refused login: nobody polls it otherwise."""
    with suppress(KafkaException):  # a fatal error, which the caller has already
        client.poll(0)


def probe(settings: KafkaSettings, ask: Callable[[AdminClient], object]) -> Callable[[], str | None]:
    """What asks Kafka something, and says why there was no answer; None where there was.

    Asks through a client of its own: a consumer's may be closed meanwhile.
    """
    heard: list[KafkaError] = []
    client = admin(settings, heard.append)

    def asked() -> str | None:
        try:
            ask(client)
        except KafkaException as error:
            poll_events(client)
            # Why there is no connection says more than that there is none.
            why = [e for e in heard if e.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)] or [error.args[0]]
            del heard[:-_KEPT_ERRORS]
            return str(why[-1].str())
        heard.clear()
        return None

    return asked


def create_missing_topics(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Create those of ``names`` that do not exist; raises DependencyUnavailableError where Kafka is unavailable."""
    client = admin(settings)
    try:
        existing = client.list_topics(timeout=CALL_TIMEOUT).topics
        missing = [
            NewTopic(name, settings.topic_partitions, settings.replication_factor)
            for name in names
            if name not in existing
        ]
        created = client.create_topics(missing, request_timeout=_CREATE_TIMEOUT) if missing else {}
    except KafkaException as error:
        poll_events(client)
        raise failure(error.args[0]) from error
    for name, future in created.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                raise failure(error.args[0], f"creating topic {name}") from error
    if created:
        log.info("created %d topics", len(created))


def _client(kind: Callable[[dict[str, Any]], T], settings: KafkaSettings, needed: dict[str, Any]) -> T:
    """A client with what all have in common; ``kafka.options`` win over the defaults, and ``needed`` over them."""
    defaults: dict[str, Any] = {
        "client.id": f"{settings.group_id}-{settings.worker_id}",
        "error_cb": log_error,
        "topic.metadata.refresh.interval.ms": _milliseconds(settings.metadata_refresh_s),
        **_DEFAULTS,
    }
    if kind is Producer:
        defaults |= {"compression.type": "lz4", "linger.ms": 5}
    try:
        return kind({**defaults, **settings.client_options(), **needed})
    except KafkaException as error:  # values that do not go together
        raise ConfigurationError(f"settings of Kafka: {error.args[0].str()}") from error


def _bounds(settings: KafkaSettings) -> dict[str, Any]:
    """Memory stays bounded whatever the lag: by default there is room for 64 MiB, and a fetch of 50 more."""
    return {
        "fetch.message.max.bytes": settings.max_message_bytes,
        "queued.max.messages.kbytes": settings.consumer_queue_mib * 1024,
        "fetch.max.bytes": max(settings.consumer_queue_mib * 1024 * 1024, settings.max_message_bytes),
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
