from __future__ import annotations

import re

import pytest

from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.errors import ConfigurationError
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming.deadletter_replay import Letter, LetterFilter, _Progress


def again(progress: _Progress) -> _Progress:
    """As it is read from what was committed."""
    committed = progress.offset()
    pairs = re.findall(r"(\d+)-(\d+)", committed.metadata or "")
    return _Progress("t", 0, [(0, committed.offset), *((int(a), int(b)) for a, b in pairs)])


def tell(progress: _Progress, *letters: tuple[int, bool]) -> None:
    for offset, replayed in letters:
        progress.passed(offset, replayed_now=replayed)


def test_all_in_a_row_are_one_offset() -> None:
    progress = _Progress("t", 0, [(0, 0)])
    tell(progress, (0, True), (2, True), (4, True))  # 1 and 3 are marks of transactions
    assert (progress.offset().offset, progress.offset().metadata) == (5, "")


def test_those_left_out_are_recorded_and_can_follow() -> None:
    progress = _Progress("t", 0, [(0, 0)])
    tell(progress, (0, True), (1, False), (3, True), (5, True), (6, False), (8, True))
    assert (progress.offset().offset, progress.offset().metadata) == (1, "3-6,8-9")
    progress = again(progress)
    assert [progress.has(offset) for offset in (0, 1, 3, 5, 6, 8)] == [True, False, True, True, False, True]
    tell(progress, (0, False), (1, True))
    assert (progress.offset().offset, progress.offset().metadata) == (2, "3-6,8-9")  # interrupted here
    progress = again(progress)
    tell(progress, (0, False), (1, False), (3, False), (5, False), (6, True), (8, False), (9, True))
    assert (progress.offset().offset, progress.offset().metadata) == (10, "")


def test_too_scattered_to_be_recorded() -> None:
    progress = _Progress("t", 0, [(0, 0)])
    tell(progress, *((offset, offset % 2 == 1) for offset in range(2000)))
    with pytest.raises(ConfigurationError, match="too scattered"):
        progress.offset()


def test_letters_as_a_worker_writes_them() -> None:
    message = IncomingMessage(b"x" * 50, 61000.0)
    letters = [DeadLetter(message, "ztf", "\ud800 " + "é" * 9000, 5)]
    (out,) = Publisher(OutputTopics("trifid", 0.9), "Trifid", 20).messages(BatchResult(dead_letters=letters))
    headers = {name: value.decode("utf-8", "replace") for name, value in out.headers}
    assert all(len(value) <= 8100 for _, value in out.headers)
    letter = Letter(out.topic, 0, 0, 0, out.value, headers)
    assert (letter.cut_from, letter.survey, letter.source) == (50, "ztf", None)
    assert letter.reason.startswith("\\ud800 é")
    assert LetterFilter(re.compile("é"), "ztf")(letter)
    assert not LetterFilter(re.compile("nothing"))(letter)
    assert not LetterFilter(survey="lsst")(letter)


def test_a_source_that_is_no_position_is_none() -> None:
    headers = {"source-topic": "alerts", "source-partition": "²", "source-offset": "-1"}
    assert Letter("t", 0, 0, 0, b"", headers).source is None
