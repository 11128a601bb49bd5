"""Dead letters as Kafka gives them: which there are, what they say, what becomes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from broker.errors import DependencyUnavailableError
from broker.streaming import deadletters
from broker.streaming.deadletters import Counts, DeadLetters, Filter, Letter, _letter, _messages, _Progress


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
    monkeypatch.setattr(deadletters.time, "monotonic", lambda: float(next(now)))
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
