"""What a worker reads: its share of some topics, as a member of one consumer group.

What is kept of its partitions (paused, read from, committed) is in ``partitions.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Final, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.batch import IncomingMessage, Origin
from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.metrics import OFFSETS_PENDING
from broker.streaming import clients
from broker.streaming.delivery import WorkerFencedError
from broker.streaming.health import Health
from broker.streaming.lost import OUT_OF_RANGE
from broker.streaming.partitions import Partitions, position
from broker.streaming.topics import TopicAdmin
from broker.topic_names import matches

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
_AHEAD: Final = 1000
"""Of what is fetched ahead, at most so much is looked through at once for events."""
_PENDING_S: Final = 30.0
"""After so long without committed offsets a worker is not ready: a rebalance takes less."""


class GroupConsumer:
    """A member of a consumer group, with the partitions that it has at present. For one thread."""

    def __init__(
        self, kafka: KafkaSettings, group_id: str, names: Sequence[str], check: str, topics: TopicAdmin, health: Health
    ) -> None:
        """``names`` are topics or regular expressions; ``check`` is what readiness calls the membership.

        Raises ConfigurationError where librdkafka refuses the settings.
        """
        self.group_id, self.names = group_id, list(names)
        self.consumer: Consumer = clients.consumer(kafka, group_id)
        self.partitions = Partitions(self.consumer, group_id, kafka, topics)
        self.in_flight: Future[object] | None = None
        """The work on a batch of this consumer: revoked partitions wait for its end."""
        self.subscribed = False
        self._kafka, self._check, self._health = kafka, check, health
        self._rejoin: Literal["", "due", "under way", "done"] = ""
        """Of joining the group anew without a predecessor's partitions (``_on_assign``): until the group has answered,
        messages may still be theirs. Once is enough, and more would be for ever where a pattern is read otherwise."""
        self._stop = threading.Event()
        self._pending_since: float | None = None
        """Since when committed offsets cannot be read, by the monotonic clock."""
        OFFSETS_PENDING.labels(check).set(0.0)
        health.report(check, "not joined yet")

    def subscribe(self, stop: threading.Event) -> None:
        """Join the group; ``stop`` ends waiting."""
        self._stop = stop
        self._join()
        self.subscribed = True

    def _join(self) -> None:
        self.consumer.subscribe(self.names, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def close(self) -> None:
        """Leave the group; a static member is waited for."""
        self.consumer.close()

    def topics(self) -> set[str]:
        """Those of which there are partitions here."""
        return self.partitions.names() if self.subscribed else set()

    def take(self, count: int, seconds: float) -> list[Message]:
        """Up to ``count`` messages, within ``seconds``; none of them from partitions that were just assigned."""
        if self.partitions.unpositioned or not self.subscribed:
            return []
        taken = [message for message in self.consumer.consume(count, seconds) if not self._is_event(message)]
        # What comes with the partition itself may be from the wrong place: it is read again from the right one.
        return [] if self.partitions.unpositioned or self._rejoin == "under way" else taken

    def settle(self) -> bool:
        """Whether partitions can be read; new ones are first set to where they are to be read from."""
        return not self.partitions.unpositioned or self.rewind()

    def poll_without_taking(self, seconds: float) -> None:
        """Answer the group for a moment; sets ``partitions.lost`` where the batch in flight can no longer be kept."""
        if not self.subscribed:
            return
        self.partitions.pause()
        message = self.consumer.poll(seconds)
        # Events first: Kafka tells of a topic that may not be read only once.
        if message is not None and not self._is_event(message):
            # Of a partition that was just assigned: rewinding brings it again.
            self.partitions.lost = self.partitions.unpositioned = True

    def rewind(self) -> bool:
        """Take up the partitions of now from what is committed; False where that has to be tried again.

        Raises ConfigurationError where a right is missing, and WorkerFencedError.
        """
        if not self.subscribed:
            return True
        self.partitions.unpositioned = False
        try:
            if self._rejoin == "due":
                self.consumer.unsubscribe()
                self._join()
                self._rejoin = "under way"
                return True
            self.partitions.resume()
            self.partitions.seek_to_committed()
            self._positioned()
            return True
        except (KafkaException, DependencyUnavailableError) as error:
            if isinstance(error, KafkaException):
                _check_fenced(error)
            # Such as a partition that was just assigned, and is not read yet.
            log.info("cannot seek to the committed offsets yet: %s", error)
            self._not_positioned(error)
            self.partitions.unpositioned = True
            for message in self.consumer.consume(_AHEAD, 0):  # messages come again with what follows, events do not
                self._is_event(message)
            return False

    def _not_positioned(self, error: Exception) -> None:
        """Make it known where that lasts: offsets that a transaction holds are read only when it ends (KIP-447)."""
        now = time.monotonic()
        self._pending_since = self._pending_since or now
        OFFSETS_PENDING.labels(self._check).set(now - self._pending_since)
        if now - self._pending_since > _PENDING_S:
            self._health.report(
                self._check,
                f"cannot read the committed offsets for {now - self._pending_since:.0f} s, as where a transaction does "
                f"not end (docs/runbook.md, TrifidOffsetsPending): {error}",
            )

    def _positioned(self) -> None:
        if self._pending_since is not None:
            self._pending_since = None
            OFFSETS_PENDING.labels(self._check).set(0.0)
            self._health.report(self._check, None)

    def passed(self) -> list[TopicPartition]:
        """As ``Partitions.passed``; none where messages were dropped, which come again after them."""
        return [] if self.partitions.unpositioned or self._rejoin == "under way" else self.partitions.passed()

    def lag(self, *, cached: bool) -> int:
        """As ``Partitions.lag``; none before the group is joined."""
        return self.partitions.lag(cached=cached) if self.subscribed else 0

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions assigned: %s", _names(partitions))
        self._health.report(self._check, None)
        self.partitions.unpositioned = self.partitions.unpositioned or bool(partitions)
        # A static member that takes the place of one that read more topics is given that one's partitions, without a
        # rebalance; and the cooperative assignor leaves it what it says it owns. Only who owns nothing starts afresh.
        if self._rejoin == "under way":
            self._rejoin = "done"
        elif not self._rejoin and (others := [p for p in partitions if not self._reads(p.topic)]):
            self._rejoin = "due"
            log.info("assigned partitions of topics not subscribed to: %s; rejoining the group", _names(others))
        self._health.rebalanced()

    def _reads(self, topic: str) -> bool:
        return any(matches(name, topic) for name in self.names)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions revoked: %s", _names(partitions))
        self.partitions.forget_paused(partitions)
        if self.in_flight is not None:
            # Nobody else has these partitions before this returns: no other worker writes the batch's objects.
            self._wait_for(self.in_flight)
        self.partitions.removed(partitions)
        self._health.rebalanced()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("partitions lost: %s", _names(partitions))
        self.partitions.forget_paused(partitions)
        self._health.report(self._check, "removed from the consumer group")
        self.partitions.removed(partitions)
        self._health.rebalanced()

    def _wait_for(self, work: Future[object]) -> None:
        end = time.monotonic() + self._kafka.max_poll_interval_s / 2
        while time.monotonic() < end and not self._stop.is_set() and not wait([work], POLL_S).done:
            self._health.beat()

    def _is_event(self, message: Message) -> bool:
        """Whether this is news of the consumer, such as a topic that is missing, and no alert."""
        error = message.error()
        if error is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:
            self.partitions.reached_end(message)
            return True
        if error.code() in OUT_OF_RANGE:
            self.partitions.ended(message)
            return True
        _check_fenced(KafkaException(error))
        if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
            told = f"group {self.group_id} has members with another assignor or group protocol: stop all of them, or "
            told += "set kafka.group_protocol to theirs (docs/delivery.md, Upgrades)"
            self._health.report(self._check, told)
            log.error("Kafka: %s", told)
            return True
        refused = clients.failure(error, f"topic {message.topic()}" if message.topic() else "")
        if isinstance(refused, ConfigurationError):
            raise refused
        log.warning("Kafka: %s", error)
        return True


def incoming(message: Message, received_mjd: float) -> IncomingMessage:
    """A message as the pipeline takes it."""
    topic, partition, offset = position(message)
    return IncomingMessage(
        message.value() or b"", received_mjd, Origin(topic, partition, offset, message.timestamp()[1])
    )


def _check_fenced(error: KafkaException) -> None:
    if error.args[0].fatal() or error.args[0].code() == KafkaError._FATAL:
        raise WorkerFencedError(
            f"Kafka fenced this worker, as it does when two workers share a kafka.worker_id: {error.args[0].str()}"
        ) from error


def _names(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{p.topic}[{p.partition}]" for p in partitions) or "none"
