"""What a worker reads: its share of some topics, as a member of one consumer group."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Final, Literal, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.batch import IncomingMessage, Origin
from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.health import Health
from broker.metrics import CONSUMER_LAG, TOPICS_RECREATED
from broker.streaming import clients
from broker.streaming.delivery import WorkerFencedError
from broker.streaming.topics import Asked, TopicIds, Topics
from broker.topic_names import matches

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
_ID: Final = "topic-id="
"""Before a topic's id in the metadata of a committed offset."""


class GivenUpError(Exception):
    """The batch in flight is abandoned: the service stops, or its partitions may have another worker by now."""


class Input:
    """A consumer, with the partitions that it has at present. For one thread."""

    def __init__(
        self, kafka: KafkaSettings, group_id: str, names: Sequence[str], check: str, topics: Topics, health: Health
    ) -> None:
        """``names`` are topics or regular expressions; ``check`` is what readiness calls the membership.

        Raises ConfigurationError where librdkafka refuses the settings.
        """
        self.group_id, self.names = group_id, list(names)
        self.consumer: Consumer = clients.consumer(kafka, group_id)
        self.in_flight: Future[object] | None = None
        """The work on a batch of this input: partitions are not given away meanwhile."""
        self.lost = False
        """Whether partitions went, or messages were passed over, since this was last set to False."""
        self.subscribed = False
        self._kafka, self._check, self._topics, self._health = kafka, check, topics, health
        self._rejoin: Literal["", "due", "under way", "done"] = ""
        """Of joining the group anew without a predecessor's partitions (``_on_assign``): until the group has answered,
        messages may still be theirs. Once is enough, and more would be for ever where a pattern is read otherwise."""
        self._came = False
        """Whether partitions came, or a topic was recreated, and where to read them from is to be found out."""
        self._paused: list[TopicPartition] = []
        """Only these are resumed: for librdkafka a resume can be a seek."""
        self._ids: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._stop = threading.Event()
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
        return {p.topic for p in self.consumer.assignment()} if self.subscribed else set()

    def take(self, count: int, seconds: float) -> list[Message]:
        """Up to ``count`` messages, within ``seconds``; none of them from partitions that came just now."""
        if self._came or not self.subscribed:
            return []
        taken = [message for message in self.consumer.consume(count, seconds) if not self._is_event(message)]
        # What comes with the partition itself may be from the wrong place: it is read again from the right one.
        return [] if self._came or self._rejoin == "under way" else taken

    def settle(self) -> bool:
        """Whether partitions can be read; where some came, they are set to where they are to be read from first."""
        return not self._came or self.rewind()

    def poll_without_taking(self, seconds: float) -> None:
        """Answer the group for a moment; sets ``lost`` where the batch in flight can no longer be kept."""
        if not self.subscribed:
            return
        assigned = self.consumer.assignment()
        came = [p for p in assigned if p not in self._paused]
        self.consumer.pause(came)
        self._paused += came
        message = self.consumer.poll(seconds)
        # Events first: Kafka tells of a topic that may not be read only once.
        if message is not None and not self._is_event(message):
            self.lost = self._came = True  # of a partition that came just now: rewinding brings it again

    def resume(self) -> None:
        """Read on where it was paused."""
        paused, self._paused = self._paused, []
        self.consumer.resume(paused)

    def ask(self, messages: Sequence[Message]) -> Asked:
        """Ask whether the topics of messages are still those that they were read from."""
        return self._topics.ask(cast("str", message.topic()) for message in messages)

    def check(self, ids: TopicIds) -> None:
        """Compare topics with those that are read; raises GivenUpError where one was recreated, or is gone.

        Where the answer to a question asked after a message was taken still has the topic's old id, the message is
        of that topic, and its offset may be committed.
        """
        others = {topic: now for topic, now in ids.items() if now is None or (now and self._ids.get(topic, now) != now)}
        for topic, now in others.items():
            log.warning("input topic %s %s", topic, "is gone" if now is None else "was recreated")
        if others:
            self.lost = self._came = True
            raise GivenUpError

    def rewind(self) -> bool:
        """Take up the partitions of now from what is committed; False where that has to be tried again.

        Raises ConfigurationError where a right is missing, and WorkerFencedError.
        """
        if not self.subscribed:
            return True
        self._came = False
        try:
            if self._rejoin == "due":
                self.consumer.unsubscribe()
                self._join()
                self._rejoin = "under way"
                return True
            self.resume()
            # Rebalances happen within poll and consume only: the partitions stay the same until the end of this.
            if assigned := self.consumer.assignment():
                ids = self._topics.ids(p.topic for p in assigned)
                for start in self._starts(assigned, ids):
                    self.consumer.seek(start)
                for topic in ids:
                    TOPICS_RECREATED.labels(topic)
                self._ids.update({topic: found for topic, found in ids.items() if found})
            return True
        except (KafkaException, DependencyUnavailableError) as error:
            if isinstance(error, KafkaException):
                _check_fenced(error)
            # Such as a partition that came just now, and is not read yet.
            log.info("cannot seek to the committed offsets yet: %s", error)
            self._came = True
            self.consumer.poll(0)  # a message that this gives comes again with what follows
            return False

    def _starts(self, assigned: list[TopicPartition], ids: TopicIds) -> list[TopicPartition]:
        """Where partitions are to be read from."""
        starts = []
        for p in self._committed(assigned):
            offset, now = p.offset, ids[p.topic]
            written = (p.metadata or "").partition(_ID)[2] or self._ids.get(p.topic)
            if now and written and written != now:
                # librdkafka would go on at the old topic's offset, and pass over as many messages of the new one.
                offset = OFFSET_BEGINNING
                if (p.topic, now) not in self._told:
                    self._told.add((p.topic, now))
                    TOPICS_RECREATED.labels(p.topic).inc()
                    log.warning(
                        "input topic %s was deleted and recreated (id %s, before %s): reading from its beginning",
                        p.topic, now, written,
                    )  # fmt: skip
            starts.append(TopicPartition(p.topic, p.partition, offset if offset >= 0 else OFFSET_BEGINNING))
        return starts

    def _committed(self, assigned: list[TopicPartition]) -> list[TopicPartition]:
        found: list[TopicPartition] = self.consumer.committed(assigned, clients.CALL_TIMEOUT)
        new = [p for p in found if p.offset < 0]
        if self.group_id == self._kafka.group_id or not new:
            return found
        # Workers of 0.1.0 read spectra in the group of the alerts.
        before = self._topics.committed(self._kafka.group_id, new)
        return [p for p in found if p.offset >= 0] + before

    def next_offsets(self, messages: Sequence[Message]) -> list[TopicPartition]:
        """The offset after the last message of each partition; a partition's messages are in order."""
        last = {(topic, partition): offset for topic, partition, offset in map(_position, messages)}
        return [
            TopicPartition(topic, partition, offset + 1, f"{_ID}{self._ids[topic]}" if topic in self._ids else "")
            for (topic, partition), offset in last.items()
        ]

    def lag(self, *, cached: bool) -> int:
        """Messages not yet taken; ``cached`` high-water marks are those of the last fetch. Raises KafkaException."""
        total = 0
        for p in self.consumer.position(self.consumer.assignment()) if self.subscribed else []:
            marks = self.consumer.get_watermark_offsets(p, timeout=1.0, cached=cached)
            if marks is not None and p.offset >= 0:
                lag = max(0, marks[1] - p.offset)
                total += lag
                CONSUMER_LAG.labels(p.topic, p.partition).set(lag)
        return total

    def _forget_paused(self, partitions: list[TopicPartition]) -> None:
        """Of partitions that go: librdkafka remembers that one was paused while another worker has it."""
        paused = [p for p in self._paused if p in partitions]
        self._paused = [p for p in self._paused if p not in partitions]
        with suppress(KafkaException):  # of one that is gone already
            self.consumer.resume(paused)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions assigned: %s", _names(partitions))
        self._health.report(self._check, None)
        self._came = self._came or bool(partitions)
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
        self._forget_paused(partitions)
        if self.in_flight is not None:
            # Nobody else has these partitions before this returns: the batch's objects are written in peace.
            self._wait_for(self.in_flight)
        self._partitions_went(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("partitions lost: %s", _names(partitions))
        self._forget_paused(partitions)
        self._health.report(self._check, "removed from the consumer group")
        self._partitions_went(partitions)

    def _partitions_went(self, partitions: list[TopicPartition]) -> None:
        self.lost = True
        for p in partitions:
            with suppress(KeyError):  # its lag was never measured
                CONSUMER_LAG.remove(p.topic, p.partition)
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
    topic, partition, offset = _position(message)
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


def _position(message: Message) -> tuple[str, int, int]:
    return cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
