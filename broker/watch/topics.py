"""The topics of lists: made with a retention, filled, and deleted with their list."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.cimpl import NewTopic

from broker.config import Settings
from broker.errors import DecodeError, DependencyUnavailableError
from broker.publish.annotation import read
from broker.publish.headers import summary_headers
from broker.streaming import clients
from broker.watch.outbox import Unsent

log = logging.getLogger(__name__)

_FLUSH_S: Final = 30.0
_LOOK_S: Final = 0.5
_ADMIN_S: Final = 30.0
_REFUSALS: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_CONFIG, KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD,
        KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_DELETION_DISABLED,
    }
)  # fmt: skip
"""What waiting for Kafka does not mend, of one topic; the others go on."""


class ListTopics:
    """Makes, fills and deletes; for one thread."""

    def __init__(self, settings: Settings) -> None:
        """Connects when it is first used."""
        self._settings = settings
        self._admin: Any = clients.admin(settings.kafka)
        self._producer: Producer = clients.producer(settings.kafka, transactional=False)
        self._there: set[str] = set()

    def close(self) -> None:
        """Forget what is not acknowledged: it is sent again."""
        self._producer.purge()
        self._producer.flush(1.0)

    def make(self, names: Iterable[str]) -> dict[str, str]:
        """Create topics that do not exist; why one could not be made, by name. Raises DependencyUnavailableError."""
        wanted = set(names) - self._there
        if not wanted:
            return {}
        there = self._listed()
        self._there |= wanted & there
        missing = sorted(wanted - there)
        if not missing:
            return {}
        if not self._settings.kafka.create_topics:
            return dict.fromkeys(missing, "the topic does not exist, and kafka.create_topics is false")
        kafka, notify = self._settings.kafka, self._settings.notify
        config = {"retention.ms": str(round(notify.topic_retention_hours * 3_600_000)), "cleanup.policy": "delete"}
        asked = [NewTopic(name, 1, kafka.replication_factor, config=config) for name in missing]
        return self._answers(
            self._admin.create_topics(asked, request_timeout=_ADMIN_S), KafkaError.TOPIC_ALREADY_EXISTS
        )

    def delete(self, names: Sequence[str]) -> dict[str, str]:
        """Delete topics; why one could not be, by name. Raises DependencyUnavailableError."""
        self._there -= set(names)
        there = self._listed()
        own = [name for name in names if name in there]
        if not own:
            return {}
        asked = self._admin.delete_topics(own, request_timeout=_ADMIN_S)
        refused = self._answers(asked, KafkaError.UNKNOWN_TOPIC_OR_PART)
        self._there -= set(names)
        return refused

    def _listed(self) -> set[str]:
        try:
            return set(self._admin.list_topics(timeout=clients.CALL_TIMEOUT).topics)
        except KafkaException as error:
            clients.poll_events(self._admin)
            raise clients.failure(error.args[0]) from error

    def _answers(self, asked: dict[str, Any], also_right: int) -> dict[str, str]:
        refused = {}
        for name, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                told = error.args[0]
                if told.code() != also_right:
                    if told.code() not in _REFUSALS:
                        raise clients.failure(told, f"topic {name}") from error
                    refused[name] = told.str()
                    continue
            self._there.add(name)
        return refused

    def put(self, matches: Sequence[Unsent], holds: Callable[[], bool]) -> tuple[list[Unsent], dict[int, str]]:
        """Send matches to their topics, and wait until Kafka has them, while ``holds`` says that no other does so.

        Returns those that it has, and why it refused any, by list. Raises DependencyUnavailableError where it does
        not answer; what it has by then is sent again.
        """
        refused_topics = self.make({one.topic for one in matches})
        refused = {one.watch: refused_topics[one.topic] for one in matches if one.topic in refused_topics}
        sent: list[Unsent] = []
        failed: list[tuple[Unsent, KafkaError]] = []
        asked = [one for one in matches if one.topic not in refused_topics]

        def told(one: Unsent) -> Any:
            def hear(error: KafkaError | None, _: Message) -> None:
                if error is None:
                    sent.append(one)
                else:
                    failed.append((one, error))

            return hear

        try:
            for one in asked:
                self._producer.produce(
                    one.topic, one.payload, one.object_id.encode(), headers=_headers(one), on_delivery=told(one)
                )
            end = time.monotonic() + _FLUSH_S
            while self._producer.flush(_LOOK_S) and time.monotonic() < end and holds():
                pass
        except (KafkaException, BufferError) as error:
            self._restart()
            raise DependencyUnavailableError(f"Kafka: topics of lists: {error}") from error
        unavailable: KafkaError | None = None
        for one, why in failed:
            self._there.discard(one.topic)
            if why.code() in _REFUSALS:
                refused[one.watch] = why.str()
            else:
                unavailable = why
        if unavailable is not None or len(sent) + len(failed) < len(asked):
            self._restart()
            if not sent and not refused:
                reason = "no answer" if unavailable is None else unavailable.str()
                raise DependencyUnavailableError(f"Kafka: topics of lists: {reason}")
        return sent, refused

    def _restart(self) -> None:
        """A producer without what it has not sent, which comes again from the database."""
        self.close()
        self._producer = clients.producer(self._settings.kafka, transactional=False)


def _headers(one: Unsent) -> list[tuple[str, str | bytes | None]]:
    """The match's number and label, and what headers tell of the annotation.

    The latter are left out where it cannot be read, so that one damaged row does not hold up all lists' topics.
    """
    told = [("id", one.event), ("label", one.label)]
    try:
        (annotation,) = read(one.payload, one.topic)
        told += summary_headers(annotation, annotation.parent)
    except (DecodeError, ValueError) as error:
        log.warning(
            "list %d: match %s goes into its topic without the annotation's headers: %s",
            one.watch, one.event, error, extra={"list": one.watch, "to": "topic"},
        )  # fmt: skip
    return [(name, text.encode()) for name, text in told]
