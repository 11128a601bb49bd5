"""Reads dead letters, and sends them back to where they came from.

What was sent back is recorded in Kafka alone, as the committed offsets of a group: everything before the offset, and
what the offset's metadata name of what comes after it. They are committed in one transaction with the messages, so
that an interruption neither repeats nor loses a dead letter, and letters that a filter left out can be replayed later.
"""

from __future__ import annotations

import heapq
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.config import KafkaSettings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.publish.messages import CUT_FROM, OutgoingMessage
from broker.streaming import clients
from broker.streaming.delivery import AtLeastOnceDelivery, Delivery, ExactlyOnceDelivery
from broker.streaming.lost import DELETED, read_on

log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_SILENCE_S: Final = 30.0
"""After so long without a message or an end, Kafka counts as unavailable."""
_TRANSACTION_LETTERS: Final = 100
_TRANSACTION_BYTES: Final = 16_000_000
_MAX_METADATA: Final = 4000
"""Kafka's own limit is 4096 by default (``offset.metadata.max.bytes``)."""
_FIRST_SPAN: Final = 2
"""Offsets looked at for each letter wanted: the mark at the end of a transaction takes one, too."""

REPLAYED: Final = "replayed"
"""Header of a message that was a dead letter: ``topic/partition/offset`` of that."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """When it was written, milliseconds since 1970, UTC."""
    payload: bytes
    headers: dict[str, str]

    @property
    def reason(self) -> str:
        """Why the alert could not be handled."""
        return self.headers.get("reason", "")

    @property
    def survey(self) -> str:
        """Where the alert is of; ``unknown`` where it could not be decoded."""
        return self.headers.get("survey", "")

    @property
    def cut_from(self) -> int | None:
        """The payload's size before it was cut, bytes; None where it is whole."""
        return _number(self.headers.get(CUT_FROM))

    @property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the message it was."""
        topic = self.headers.get("source-topic")
        partition, offset = (_number(self.headers.get(f"source-{name}")) for name in ("partition", "offset"))
        return None if not topic or partition is None or offset is None else (topic, partition, offset)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant."""

    reason: re.Pattern[str] | None = None
    """Found anywhere in the reason."""
    survey: str | None = None

    def __call__(self, letter: Letter) -> bool:
        """Whether this one is."""
        return (self.survey is None or letter.survey == self.survey) and (
            self.reason is None or self.reason.search(letter.reason) is not None
        )


@dataclass(slots=True)
class ReplayCounts:
    """What became of the dead letters that were there when a replay began."""

    replayed: int = 0
    earlier: int = 0
    """Replayed before."""
    left_out: int = 0
    """By the filter."""
    not_replayable: int = 0
    """Cut, and the source no longer has the message; or without a source."""
    deleted: int = 0
    """Offsets that Kafka deleted before they were read: of letters, and of ends of transactions."""

    def __str__(self) -> str:
        read = (
            f"dead letters {self.replayed + self.earlier + self.left_out + self.not_replayable} = replayed "
            f"{self.replayed} + replayed before {self.earlier} + left out {self.left_out} + not replayable "
            f"{self.not_replayable}"
        )
        return f"{read}; up to {self.deleted} more were deleted by Kafka meanwhile" if self.deleted else read


class DeadLetters:
    """The dead-letter topic, from its beginning to where it ended when this was made."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        """Connect; raises DependencyUnavailableError, and ConfigurationError without the topic."""
        self.topic = topic
        self.group_id: Final = f"{kafka.group_id}-deadletter-replay"
        self.deleted = 0
        """Offsets that Kafka deleted after this was made and before they were read."""
        self._kafka = kafka
        self.reader = clients.reader(kafka, self.group_id)
        try:
            metadata = self.reader.list_topics(topic, timeout=clients.CALL_TIMEOUT).topics[topic]
            if metadata.error is not None and metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise ConfigurationError(
                    f"topic {topic} does not exist on Kafka at {kafka.bootstrap_servers}: the service makes it when it "
                    "starts; is publish.topic_prefix the service's?"
                )
            if metadata.error is not None:
                raise ConfigurationError(f"topic {topic}: {metadata.error.str()}")
            self.bounds = {
                p: self.reader.get_watermark_offsets(TopicPartition(topic, p), clients.CALL_TIMEOUT)
                for p in sorted(metadata.partitions)
            }
        except KafkaException as error:
            self.reader.close()
            raise DependencyUnavailableError(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}") from error
        except ConfigurationError:
            self.reader.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self.reader.close()

    def read(self, partition: int, start: int = 0) -> Iterator[Letter]:
        """Letters of one partition, oldest first; what Kafka deletes meanwhile is counted and left out.

        Raises DependencyUnavailableError, and ConfigurationError where the topic is made anew meanwhile.
        """
        low, high = self.bounds[partition]
        for message in _messages(self.reader, self.topic, partition, max(low, start), high, self._count_deleted):
            yield _letter(message)

    def _count_deleted(self, offsets: int) -> None:
        self.deleted += offsets

    def first(self, wanted: LetterFilter) -> Iterator[Letter]:
        """All letters, partition by partition."""
        for partition in self.bounds:
            yield from filter(wanted, self.read(partition))

    def latest(self, wanted: LetterFilter, limit: int) -> list[Letter]:
        """Up to ``limit`` letters with the latest times, oldest first."""
        span = _FIRST_SPAN * limit
        while True:
            letters = (
                letter for p, (_, high) in self.bounds.items() for letter in self.read(p, high - span) if wanted(letter)
            )
            found = heapq.nlargest(limit, letters, key=_time)
            if len(found) == limit or all(high - span <= low for low, high in self.bounds.values()):
                return sorted(found, key=_time)
            span *= 4

    def replay(self, wanted: LetterFilter, limit: int | None = None, to_topic: str | None = None) -> ReplayCounts:
        """Send letters back, each for good only once, whenever this is interrupted and by whoever it is called.

        Raises DependencyUnavailableError, WorkerFencedError where another replay takes over, and
        ConfigurationError where Kafka refuses a message or too many scattered letters would have to be recorded.
        """
        return _Replay(self._kafka, self, wanted, limit, to_topic).run()


class _Replay:
    def __init__(
        self, kafka: KafkaSettings, letters: DeadLetters, wanted: LetterFilter, limit: int | None, to_topic: str | None
    ) -> None:
        self._letters, self._wanted, self._limit, self._to_topic = letters, wanted, limit, to_topic
        # One name for every replay of the group: a second one fences the first one.
        named = kafka.model_copy(update={"group_id": kafka.group_id, "worker_id": "deadletter-replay"})
        transactional = kafka.delivery == "exactly-once"
        connect = partial(clients.producer, named, transactional=transactional)
        stop = threading.Event()
        self._delivery: Delivery = (
            ExactlyOnceDelivery(connect, stop, as_member=False) if transactional else AtLeastOnceDelivery(connect, stop)
        )
        self._sources = clients.reader(kafka, letters.group_id)
        self._counts = ReplayCounts()

    def run(self) -> ReplayCounts:
        try:
            # First of all: what an earlier replay left open is aborted, and no other can commit from here on.
            self._delivery.start()
            for partition in self._letters.bounds:
                self._replay_partition(partition)
            self._counts.deleted = self._letters.deleted
        finally:
            self._delivery.close()
            self._sources.close()
        return self._counts

    def _replay_partition(self, partition: int) -> None:
        progress = _Progress.committed(self._letters.reader, self._letters.topic, partition)
        pending: list[OutgoingMessage] = []
        for letter in self._letters.read(partition):
            message = None
            if progress.has(letter.offset):
                self._counts.earlier += 1
            elif not self._wanted(letter) or self._full(pending):
                self._counts.left_out += 1
            elif (message := self._message(letter)) is None:
                self._counts.not_replayable += 1
            else:
                pending.append(message)
            progress.passed(letter.offset, replayed_now=message is not None)
            if len(pending) >= _TRANSACTION_LETTERS or sum(len(m.value) for m in pending) >= _TRANSACTION_BYTES:
                self._send(pending, progress)
        self._send(pending, progress)

    def _full(self, pending: list[OutgoingMessage]) -> bool:
        return self._limit is not None and self._counts.replayed + len(pending) >= self._limit

    def _send(self, pending: list[OutgoingMessage], progress: _Progress) -> None:
        if pending:
            self._delivery.deliver(pending, [progress.offset()], self._letters.reader)
            self._counts.replayed += len(pending)
            pending.clear()

    def _message(self, letter: Letter) -> OutgoingMessage | None:
        """What is sent for a letter; None where it cannot be."""
        payload, key, source = letter.payload, None, letter.source
        if source is None and self._to_topic is None:
            return None
        if letter.cut_from is not None:
            original = None if source is None else self._original(*source)
            if original is None or len(original.value() or b"") != letter.cut_from:
                return None
            payload, key = original.value() or b"", original.key()
        # To the partition that it came from: that of its object, where the stream is keyed by object.
        topic, partition = (self._to_topic, None) if self._to_topic or source is None else source[:2]
        mark = f"{letter.topic}/{letter.partition}/{letter.offset}".encode()
        return OutgoingMessage(topic or "", payload, key, ((REPLAYED, mark),), partition)

    def _original(self, topic: str, partition: int, offset: int) -> Message | None:
        """The message a letter was, where its topic still has it."""
        try:
            low, high = self._sources.get_watermark_offsets(TopicPartition(topic, partition), clients.CALL_TIMEOUT)
        except KafkaException as error:
            if error.args[0].code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART,
                                        KafkaError._UNKNOWN_PARTITION):  # fmt: skip
                return None
            raise DependencyUnavailableError(f"Kafka: {error.args[0].str()}") from error
        if not low <= offset < high:
            return None
        found = next(_messages(self._sources, topic, partition, offset, offset + 1), None)
        return found if found is not None and found.offset() == offset else None


@dataclass(slots=True)
class _Progress:
    """Which letters of one partition were replayed, told letter by letter from the first one on."""

    topic: str
    partition: int
    before: list[tuple[int, int]]
    """Ranges of offsets that were replayed earlier, the end excluded."""
    ranges: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """The same, as far as letters were told of, and with those of now. The first range begins at 0."""
    position: int = 0
    unbroken: bool = True
    """Whether the letter before this one was replayed, too: then one range has both, and what lies between them."""

    @staticmethod
    def committed(reader: Consumer, topic: str, partition: int) -> _Progress:
        try:
            (found,) = reader.committed([TopicPartition(topic, partition)], clients.CALL_TIMEOUT)
        except KafkaException as error:
            raise DependencyUnavailableError(f"Kafka: {error.args[0].str()}") from error
        pairs = re.findall(r"(\d+)-(\d+)", found.metadata or "")
        later = [(int(start), int(end)) for start, end in pairs]
        return _Progress(topic, partition, [(0, max(0, found.offset)), *later])

    def has(self, offset: int) -> bool:
        """Whether a letter was replayed earlier."""
        return any(start <= offset < end for start, end in self.before)

    def passed(self, offset: int, *, replayed_now: bool) -> None:
        """Go on to the next letter."""
        replayed = replayed_now or self.has(offset)
        if replayed and self.unbroken:
            self.ranges[-1] = (self.ranges[-1][0], offset + 1)
        elif replayed:
            self.ranges.append((offset, offset + 1))
        self.unbroken, self.position = replayed, offset + 1

    def offset(self) -> TopicPartition:
        """What is to be committed."""
        ahead = [(max(start, self.position), end) for start, end in self.before if end > self.position]
        first, *later = [*self.ranges, *ahead]
        metadata = ",".join(f"{start}-{end}" for start, end in later)
        if len(metadata) > _MAX_METADATA:
            raise ConfigurationError(
                f"the replayed letters of {self.topic}[{self.partition}] are too scattered to be recorded: replay "
                "with a wider --reason first"
            )
        return TopicPartition(self.topic, self.partition, first[1], metadata)


def _messages(
    reader: Consumer,
    topic: str,
    partition: int,
    start: int,
    end: int,
    deleted: Callable[[int], None] = lambda _: None,
) -> Iterator[Message]:
    """Committed messages of a partition with offsets from ``start`` to before ``end``.

    ``deleted`` is told of offsets that Kafka deleted before they were read. Raises DependencyUnavailableError, and
    ConfigurationError where the topic is made anew meanwhile.
    """
    if start >= end:
        return
    reader.assign([TopicPartition(topic, partition, start)])
    heard = time.monotonic()
    while time.monotonic() - heard < _SILENCE_S:
        message = reader.poll(_POLL_S)
        if message is None:
            continue
        error = message.error()
        if error is None:
            heard = time.monotonic()
            offset = message.offset()
            if offset is None or offset >= end:
                return
            yield message
            start = offset + 1
            if start == end:
                return
        elif error.code() == KafkaError._PARTITION_EOF:
            return
        elif error.code() in DELETED:
            there = min(read_on(reader, topic, partition, start), end)
            deleted(there - start)
            start = there
            if start == end:
                return
            reader.assign([TopicPartition(topic, partition, start)])
            heard = time.monotonic()
        else:
            log.warning("Kafka: %s", error.str())
    raise DependencyUnavailableError(f"Kafka gives nothing of {topic}[{partition}]")


def _letter(message: Message) -> Letter:
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in pairs}
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return Letter(topic, partition, offset, message.timestamp()[1], message.value() or b"", headers)


def _time(letter: Letter) -> tuple[int, int, int]:
    return letter.timestamp_ms, letter.partition, letter.offset


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
