"""Dead letters as Kafka gives them: which there are, what they say, what becomes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from broker.errors import DependencyUnavailableError
from broker.publish.messages import OutgoingMessage
from broker.streaming import deadletter_replay
from broker.streaming.deadletter_replay import (
    Counts,
    DeadLetters,
    Filter,
    Letter,
    _letter,
    _messages,
    _Progress,
    _Replay,
)


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

    def assign(self, partitions: list[TopicPartition]) -> None:
        (one,) = partitions
        assert one.topic == "letters"
        self.assigned.append((one.partition, one.offset))
        self.left = [m for m in self.of[one.partition] if m is None or m.code is not None or m.at >= one.offset]

    def poll(self, seconds: float) -> Message | None:
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


@pytest.mark.parametrize(
    "code", [KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE]
)
def test_an_end_that_comes_sooner(code: int) -> None:
    assert read([Message(0), Message(-1, code), Message(1)], 0, 2) == [0]


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
    assert Filter()(letter)
    assert Filter(re.compile(r"schema \d+"), "ztf")(letter)
    assert not Filter(re.compile(r"schema \d+"), "lsst")(letter)
    assert not Filter(re.compile("^schema"), "ztf")(letter)


def letters_of(partitions: dict[int, list[Message | None]], bounds: dict[int, tuple[int, int]]) -> DeadLetters:
    found = object.__new__(DeadLetters)
    reader: Any = Reader(partitions)
    found.topic, found.bounds, found.reader = "letters", bounds, reader
    return found


def test_the_latest_letters_of_all_partitions_oldest_first() -> None:
    first: list[Message | None] = [Message(at, when=10 * at) for at in range(40)]
    second: list[Message | None] = [Message(at, when=385 + at, partition_=1) for at in range(3)]
    letters = letters_of({0: first, 1: second}, {0: (0, 40), 1: (0, 3)})
    found = [(letter.partition, letter.offset) for letter in letters.latest(Filter(), 4)]
    # Times 380, 385, 386, 387 and 390: the last four of these.
    assert found == [(1, 0), (1, 1), (1, 2), (0, 39)]
    assert cast(Any, letters.reader).assigned == [(0, 32), (1, 0)]  # no more than twice as many of each
    assert len(letters.latest(Filter(), 100)) == 43
    assert [letter.offset for letter in letters.first(Filter())] == [*range(40), 0, 1, 2]
    assert [letter.offset for letter in letters.read(0, 38)] == [38, 39]


def test_letters_that_are_far_back_are_looked_for() -> None:
    there: list[Message | None] = [Message(at, when=at, reason="rare" if at in (1, 3) else "why") for at in range(100)]
    letters = letters_of({0: there}, {0: (0, 100)})
    assert [letter.offset for letter in letters.latest(Filter(re.compile("rare")), 2)] == [1, 3]
    assert [start for _, start in cast(Any, letters.reader).assigned] == [96, 84, 36, 0]
    assert [letter.offset for letter in letters.first(Filter(re.compile("rare")))] == [1, 3]


def test_every_letter_is_accounted_for() -> None:
    assert str(Counts(replayed=1, earlier=2, left_out=3, not_replayable=4)) == (
        "dead letters 10 = replayed 1 + replayed before 2 + left out 3 + not replayable 4"
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


def replay(limit: int | None = None, to_topic: str | None = None) -> tuple[Counts, Sent]:
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
    sources: Any = Sources({0: [Original(at) for at in range(10, 20)]})
    one._letters, one._wanted, one._limit, one._to_topic = letters, Filter(re.compile("why")), limit, to_topic
    one._delivery, one._sources, one._counts = cast(Any, sent), sources, Counts()
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
