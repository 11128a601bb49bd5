"""Dead letters as Kafka gives them: which there are, what they say, what becomes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from broker.config import KafkaSettings
from broker.embedded.kafka_mock import KafkaMock
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.publish.messages import OutgoingMessage
from broker.streaming import clients, deadletter_replay
from broker.streaming.deadletter_replay import (
    DeadLetters,
    Letter,
    LetterFilter,
    ReplayCounts,
    _letter,
    _messages,
    _Progress,
    _Replay,
)
from broker.streaming.delivery import AtLeastOnceDelivery, ExactlyOnceDelivery


@dataclass
class Message:
    at: int
    code: int | None = None
    when: int = 0
    reason: str = "why"
    partition_: int = 0
    headers_: Any = None

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code, "said Kafka")

    def offset(self) -> int:
        return self.at

    def topic(self) -> str:
        return "letters"

    def partition(self) -> int:
        return self.partition_

    def timestamp(self) -> tuple[int, int]:
        return 1, self.when

    def value(self) -> bytes | None:
        return b"payload %d" % self.at

    def headers(self) -> Any:
        return self.headers_ or [("reason", self.reason.encode()), ("survey", b"ztf")]


@dataclass
class Reader:
    """Gives what it is told to, partition by partition; None where nothing came in time."""

    of: dict[int, list[Message | None]]
    assigned: list[tuple[int, int]] = field(default_factory=list)
    left: list[Message | None] = field(default_factory=list)
    ends: tuple[int, int] | None = None

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        assert 0 < timeout < 60
        if self.ends is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, "away"))
        return self.ends

    def assign(self, partitions: list[TopicPartition]) -> None:
        (one,) = partitions
        assert one.topic == "letters"
        self.assigned.append((one.partition, one.offset))
        self.left = [
            m for m in self.of[one.partition]
            if m is None or m.at >= one.offset or (m.code is not None and one.offset == self.assigned[0][1])
        ]  # fmt: skip

    def poll(self, seconds: float) -> Message | None:
        assert 0 < seconds <= 0.5  # so that silence is noticed, which a poll without end would not
        return self.left.pop(0) if self.left else None


def read(messages: list[Message | None], start: int, end: int) -> list[int]:
    return [m.offset() or 0 for m in _messages(cast(Any, Reader({0: messages})), "letters", 0, start, end)]


def test_messages_from_one_offset_to_before_another() -> None:
    there: list[Message | None] = [Message(at) for at in (0, 2, 3, 5, 8)]
    assert read(there, 0, 9) == [0, 2, 3, 5, 8]
    assert read(there, 2, 6) == [2, 3, 5]
    assert read(there, 1, 4) == [2, 3]
    assert read(there, 6, 8) == []  # 8 is beyond
    assert read(there, 4, 4) == []
    assert read([None, Message(0), None, Message(1)], 0, 2) == [0, 1]


def test_an_end_that_comes_sooner() -> None:
    assert read([Message(0), Message(-1, KafkaError._PARTITION_EOF), Message(1)], 0, 2) == [0]


@pytest.mark.parametrize(
    "code", [KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE]
)
@pytest.mark.parametrize(("low", "end", "gets", "told"), [(4, 6, [0, 4, 5], 3), (6, 6, [0], 5), (9, 6, [0], 5)])
def test_what_kafka_deletes_meanwhile_is_counted_and_the_rest_is_read(
    code: int, low: int, end: int, gets: list[int], told: int
) -> None:
    """It ended the partition, silently."""
    reader = Reader({0: [Message(0), Message(-1, code), *map(Message, range(low, 8))]})
    reader.ends = (low, 10)
    deleted: list[int] = []
    found = [m.offset() for m in _messages(cast(Consumer, reader), "letters", 0, 0, end, deleted.append)]
    assert (found, sum(deleted)) == (gets, told)


def test_a_topic_that_is_another_one_by_now_is_no_more_read() -> None:
    reader = Reader({0: [Message(0), Message(1), Message(-1, KafkaError._AUTO_OFFSET_RESET), Message(0)]})
    reader.ends = (0, 1)
    with pytest.raises(ConfigurationError, match="letters was made anew while it was read"):
        list(_messages(cast(Consumer, reader), "letters", 0, 0, 6))
    reader = Reader({0: [Message(-1, KafkaError._AUTO_OFFSET_RESET)]})  # and Kafka does not answer
    with pytest.raises(DependencyUnavailableError, match="topic letters"):
        list(_messages(cast(Consumer, reader), "letters", 0, 0, 6))


def test_other_errors_are_waited_through_and_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read([Message(-1, KafkaError._TRANSPORT), Message(0)], 0, 1) == [0]
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(deadletter_replay.time, "monotonic", lambda: float(next(now)))
    with pytest.raises(DependencyUnavailableError, match=r"nothing of letters\[0\]"):
        read([Message(0)], 0, 5)


def test_what_a_letter_says() -> None:
    headers = [
        ("reason", "é".encode()), ("survey", b"lsst"), ("source-topic", b"alerts"), ("source-partition", b"3"),
        ("source-offset", b"17"), ("cut-from-bytes", b"5000"), ("odd", None), ("broken", b"\xff"),
    ]  # fmt: skip
    letter = _letter(cast(Any, Message(5, when=1234, partition_=2, headers_=headers)))
    assert (letter.topic, letter.partition, letter.offset, letter.timestamp_ms) == ("letters", 2, 5, 1234)
    assert letter.payload == b"payload 5"
    assert (letter.reason, letter.survey, letter.source, letter.cut_from) == ("é", "lsst", ("alerts", 3, 17), 5000)
    assert (letter.headers["odd"], letter.headers["broken"]) == ("", "\ufffd")
    bare = Letter("t", 0, 0, 0, b"", {})
    assert (bare.reason, bare.survey, bare.source, bare.cut_from) == ("", "", None, None)
    for missing in ("source-topic", "source-partition", "source-offset"):
        assert Letter("t", 0, 0, 0, b"", {n: v for n, v in letter.headers.items() if n != missing}).source is None


def test_which_letters_are_meant() -> None:
    letter = Letter("t", 0, 0, 0, b"", {"reason": "no schema 17", "survey": "ztf"})
    assert LetterFilter()(letter)
    assert LetterFilter(re.compile(r"schema \d+"), "ztf")(letter)
    assert not LetterFilter(re.compile(r"schema \d+"), "lsst")(letter)
    assert not LetterFilter(re.compile("^schema"), "ztf")(letter)


def letters_of(partitions: dict[int, list[Message | None]], bounds: dict[int, tuple[int, int]]) -> DeadLetters:
    found = object.__new__(DeadLetters)
    found.deleted = 0
    reader: Any = Reader(partitions)
    found.topic, found.bounds, found.reader = "letters", bounds, reader
    return found


def test_the_latest_letters_of_all_partitions_oldest_first() -> None:
    first: list[Message | None] = [Message(at, when=10 * at) for at in range(40)]
    second: list[Message | None] = [Message(at, when=385 + at, partition_=1) for at in range(3)]
    letters = letters_of({0: first, 1: second}, {0: (0, 40), 1: (0, 3)})
    found = [(letter.partition, letter.offset) for letter in letters.latest(LetterFilter(), 4)]
    # Times 380, 385, 386, 387 and 390: the last four of these.
    assert found == [(1, 0), (1, 1), (1, 2), (0, 39)]
    assert cast(Any, letters.reader).assigned == [(0, 32), (1, 0)]  # no more than twice as many of each
    assert len(letters.latest(LetterFilter(), 100)) == 43
    assert [letter.offset for letter in letters.first(LetterFilter())] == [*range(40), 0, 1, 2]
    assert [letter.offset for letter in letters.read(0, 38)] == [38, 39]


def test_letters_that_are_far_back_are_looked_for() -> None:
    there: list[Message | None] = [Message(at, when=at, reason="rare" if at in (1, 3) else "why") for at in range(100)]
    letters = letters_of({0: there}, {0: (0, 100)})
    assert [letter.offset for letter in letters.latest(LetterFilter(re.compile("rare")), 2)] == [1, 3]
    assert [start for _, start in cast(Any, letters.reader).assigned] == [96, 84, 36, 0]
    assert [letter.offset for letter in letters.first(LetterFilter(re.compile("rare")))] == [1, 3]


def test_every_letter_is_accounted_for() -> None:
    assert str(ReplayCounts(replayed=1, earlier=2, left_out=3, not_replayable=4)) == (
        "dead letters 10 = replayed 1 + replayed before 2 + left out 3 + not replayable 4"
    )
    assert str(ReplayCounts(replayed=1, deleted=5)).endswith(
        "not replayable 0; up to 5 more were deleted by Kafka meanwhile"
    )


def test_what_was_replayed_is_read_from_what_is_committed() -> None:
    @dataclass
    class Group:
        found: TopicPartition | KafkaException

        def committed(self, partitions: list[TopicPartition], seconds: float) -> list[TopicPartition]:
            assert (partitions[0].topic, partitions[0].partition) == ("t", 3)
            if isinstance(self.found, KafkaException):
                raise self.found
            return [self.found]

    def progress(found: TopicPartition | KafkaException) -> _Progress:
        return _Progress.committed(cast(Any, Group(found)), "t", 3)

    assert progress(TopicPartition("t", 3, 7, "9-11,20-21")).before == [(0, 7), (9, 11), (20, 21)]
    assert progress(TopicPartition("t", 3, -1001)).before == [(0, 0)]
    with pytest.raises(DependencyUnavailableError, match="Kafka: said Kafka"):
        progress(KafkaException(KafkaError(KafkaError._TRANSPORT, "said Kafka")))
    found = progress(TopicPartition("t", 3, 7, "9-11"))
    assert [found.has(offset) for offset in (6, 7, 8, 9, 10, 11)] == [True, False, False, True, True, False]
    assert (found.offset().topic, found.offset().partition) == ("t", 3)


@dataclass
class Sources(Reader):
    """The topic ``letters`` as if it were that of the alerts, too: what a letter was is there at its own offset."""

    def get_watermark_offsets(self, partition: TopicPartition, seconds: float) -> tuple[int, int]:
        assert partition.topic == "letters"
        return 10, 20


@dataclass
class Original(Message):
    def value(self) -> bytes | None:
        return b"x" * (100 + self.at)

    def key(self) -> bytes | None:
        return b"ZTF18a"


class Committed(Reader):
    def committed(self, partitions: list[TopicPartition], seconds: float) -> list[TopicPartition]:
        return [TopicPartition("letters", 0, 1)]


@dataclass
class Sent:
    batches: list[tuple[list[OutgoingMessage], list[TopicPartition]]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.calls.append("start")

    def deliver(self, messages: list[OutgoingMessage], offsets: list[TopicPartition], consumer: object) -> None:
        self.batches.append((list(messages), offsets))

    def close(self) -> None:
        self.calls.append("close")


def of(at: int, source: int | None, cut: int | None = None, reason: str = "why") -> Message:
    headers = [("reason", reason.encode()), ("survey", b"ztf")]
    if source is not None:
        headers += [("source-topic", b"letters"), ("source-partition", b"0"), ("source-offset", b"%d" % source)]
    return Message(at, headers_=headers + ([("cut-from-bytes", b"%d" % cut)] if cut else []))


def replay(
    limit: int | None = None, to_topic: str | None = None, sources: Sources | None = None
) -> tuple[ReplayCounts, Sent]:
    """Of letters of which the first was replayed before, and what each of the others is stands beside it."""
    there: list[Message | None] = [
        of(0, 11), of(1, 11, reason="other"), of(2, 11), of(3, 12, cut=112),
        of(4, 12, cut=113),  # the message at 12 has 112 bytes: another one by now
        of(5, None),  # nobody knows where from
        of(6, 30, cut=130),  # its topic no longer has it
    ]  # fmt: skip
    letters = letters_of({0: there}, {0: (0, 7)})
    reader: Any = Committed({0: there})
    letters.reader = reader
    sent, one = Sent(), object.__new__(_Replay)
    sources = sources or Sources({0: [Original(at) for at in range(10, 20)]})
    one._letters, one._wanted, one._limit, one._to_topic = letters, LetterFilter(re.compile("why")), limit, to_topic
    one._delivery, one._sources, one._counts = cast(Any, sent), cast(Any, sources), ReplayCounts()
    cast(Any, sources).close = lambda: sent.calls.append("sources closed")
    return one.run(), sent


def test_letters_go_back_to_where_they_came_from_and_each_is_accounted_for() -> None:
    counts, sent = replay()
    assert (counts.replayed, counts.earlier, counts.left_out, counts.not_replayable) == (2, 1, 1, 3)
    ((messages, offsets),) = sent.batches
    assert messages == [
        OutgoingMessage("letters", b"payload 2", None, (("replayed", b"letters/0/2"),), 0),
        OutgoingMessage("letters", b"x" * 112, b"ZTF18a", (("replayed", b"letters/0/3"),), 0),
    ]
    assert [(o.topic, o.partition, o.offset, o.metadata) for o in offsets] == [("letters", 0, 1, "2-4")]
    assert sent.calls == ["start", "close", "sources closed"]


def test_a_limit_leaves_the_rest_and_another_topic_takes_what_has_no_source() -> None:
    counts, sent = replay(limit=1)
    assert (counts.replayed, counts.earlier, counts.left_out) == (1, 1, 5)
    assert sent.batches[0][1][0].metadata == "2-3"
    counts, sent = replay(to_topic="elsewhere")
    assert (counts.replayed, counts.not_replayable) == (3, 2)
    assert [(m.topic, m.partition, m.value[:9]) for m in sent.batches[0][0]] == [
        ("elsewhere", None, b"payload 2"), ("elsewhere", None, b"xxxxxxxxx"), ("elsewhere", None, b"payload 5"),
    ]  # fmt: skip


def test_letters_are_sent_in_transactions_of_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter_replay, "_TRANSACTION_LETTERS", 1)
    counts, sent = replay()
    assert counts.replayed == 2
    assert [(len(messages), offsets[0].metadata) for messages, offsets in sent.batches] == [(1, "2-3"), (1, "2-4")]


def test_a_transaction_is_full_by_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter_replay, "_TRANSACTION_BYTES", 10)
    _, sent = replay()  # of 9 and 112 bytes
    assert [[len(m.value) for m in messages] for messages, _ in sent.batches] == [[9, 112]]
    monkeypatch.setattr(deadletter_replay, "_TRANSACTION_BYTES", 9)
    _, sent = replay()
    assert [[len(m.value) for m in messages] for messages, _ in sent.batches] == [[9], [112]]


@pytest.mark.parametrize(
    "there",
    [
        [Message(-1, KafkaError._PARTITION_EOF)],  # the end comes sooner than the offset
        [Original(13)],  # the message was compacted away, and the next one comes in its place
        [],
    ],
)
def test_what_the_source_no_longer_has_is_not_replayed(
    there: list[Message | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        counts, sent = replay(sources=Sources({0: there}))
        assert (counts.replayed, counts.earlier, counts.left_out, counts.not_replayable) == (1, 1, 1, 4)
        assert [m.value for m in sent.batches[0][0]] == [b"payload 2"]
    else:
        monkeypatch.setattr(deadletter_replay, "_SILENCE_S", 0.05)
        with pytest.raises(DependencyUnavailableError, match=r"Kafka gives nothing of letters\[0\]"):
            replay(sources=Sources({0: there}))


@pytest.mark.parametrize(
    ("code", "waits"),
    [
        (KafkaError._UNKNOWN_TOPIC, False),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, False),
        (KafkaError._UNKNOWN_PARTITION, False),
        (KafkaError._TRANSPORT, True),
    ],
)
def test_a_source_that_is_gone_and_one_that_is_unavailable(code: int, waits: bool) -> None:
    class Refuses(Sources):
        def get_watermark_offsets(self, partition: TopicPartition, seconds: float) -> tuple[int, int]:
            assert (partition.topic, partition.partition) == ("letters", 0)
            raise KafkaException(KafkaError(code, "said Kafka"))

    if waits:
        with pytest.raises(DependencyUnavailableError, match=r"^Kafka: said Kafka$"):
            replay(sources=Refuses({0: []}))
    else:
        counts, _ = replay(sources=Refuses({0: []}))
        assert (counts.replayed, counts.not_replayable) == (1, 4)


LETTERS = "trifid.deadletter"


def settings_of(kafka: KafkaMock, delivery: Literal["exactly-once", "at-least-once"]) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap, group_id="g", delivery=delivery, unreachable_limit_s=20.0)


def test_letters_are_read_and_sent_back_by_librdkafka() -> None:
    """To its own mock of a cluster, which has everything but transactions."""
    with KafkaMock() as kafka:
        kafka.create_topics([LETTERS, "alerts"])
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        for number in range(3):
            headers = [("reason", b"why"), ("survey", b"ztf"), ("source-topic", b"alerts"), ("source-partition", b"2")]
            headers += [("source-offset", b"%d" % number)]
            producer.produce(LETTERS, b"letter %d" % number, partition=1, headers=headers)
        assert producer.flush(120) == 0
        settings = settings_of(kafka, "at-least-once")
        for expected in ((2, 0, 1), (1, 2, 0)):
            letters = DeadLetters(settings, LETTERS)
            try:
                assert (letters.topic, letters.group_id) == (LETTERS, "g-deadletter-replay")
                assert letters.bounds == {0: (0, 0), 1: (0, 3), 2: (0, 0), 3: (0, 0)}
                assert [letter.payload for letter in letters.latest(LetterFilter(), 2)] == [b"letter 1", b"letter 2"]
                counts = letters.replay(LetterFilter(), limit=2)
                assert (counts.replayed, counts.earlier, counts.left_out) == expected
            finally:
                letters.close()
        source = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "t", "enable.partition.eof": True})
        source.assign([TopicPartition("alerts", 2, 0)])
        found = []
        while (message := source.poll(30)) is not None and message.error() is None:
            found.append((message.value(), message.headers()))
        source.close()
    assert found == [(b"letter %d" % n, [("replayed", b"trifid.deadletter/1/%d" % n)]) for n in range(3)]


def test_a_topic_that_is_not_there_is_named() -> None:
    class Reader:
        closed = False

        def list_topics(self, topic: str, timeout: float) -> Any:
            assert (topic, timeout) == ("letters", clients.CALL_TIMEOUT)
            if isinstance(self.error, KafkaException):
                raise self.error
            return SimpleNamespace(topics={"letters": SimpleNamespace(error=self.error, partitions={})})

        def close(self) -> None:
            self.closed = True

        def __init__(self, error: KafkaError | KafkaException) -> None:
            self.error = error

    with pytest.MonkeyPatch.context() as patch:
        unknown, refused = KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED
        down = KafkaException(KafkaError(KafkaError._TRANSPORT, "down"))
        for error, kind, told in (
            (KafkaError(unknown), ConfigurationError, "topic letters does not exist on Kafka at h:1:"),
            (KafkaError(refused, "no right"), ConfigurationError, "^topic letters: no right$"),
            (down, DependencyUnavailableError, "^Kafka at h:1: down$"),
        ):
            reader = Reader(error)
            patch.setattr(clients, "reader", lambda settings, group, reader=reader: reader)
            with pytest.raises(kind, match=told):
                DeadLetters(KafkaSettings(bootstrap_servers="h:1"), "letters")
            assert reader.closed


def test_replays_of_a_group_share_one_transactional_id() -> None:
    with KafkaMock() as kafka, pytest.MonkeyPatch.context() as patch:
        made: list[tuple[str, str, bool]] = []
        build = clients.producer

        def producer(settings: KafkaSettings, *, transactional: bool) -> Producer:
            made.append((settings.group_id, settings.worker_id, transactional))
            return build(settings, transactional=transactional)

        patch.setattr(clients, "producer", producer)
        kafka.create_topics([LETTERS])
        for delivery, kind in (("exactly-once", ExactlyOnceDelivery), ("at-least-once", AtLeastOnceDelivery)):
            letters = DeadLetters(settings_of(kafka, delivery), LETTERS)  # type: ignore[arg-type]
            one = _Replay(settings_of(kafka, delivery), letters, LetterFilter(), None, None)  # type: ignore[arg-type]
            assert type(one._delivery) is kind
            one._sources.close()
            letters.close()
            if isinstance(one._delivery, ExactlyOnceDelivery):
                assert not one._delivery._as_member  # it reads without being in the group
        assert made == [("g", "deadletter-replay", True), ("g", "deadletter-replay", False)]
