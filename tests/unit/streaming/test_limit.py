from __future__ import annotations

from collections import Counter

import pytest

from broker.batch import BatchResult, DeadLetter, IncomingMessage, Origin
from broker.config import PipelineSettings
from broker.errors import DeadLetterLimitError
from broker.streaming.limit import DeadLetterLimit


def batch(alerts: int, dead: int, reason: str = "rubbish") -> BatchResult:
    message = IncomingMessage(b"x", 61000.0, Origin("alerts.ztf", 2, 77, 1234))
    return BatchResult(
        alerts_in=Counter(ztf=alerts), dead_letters=[DeadLetter(message, "unknown", reason) for _ in range(dead)]
    )


def limit(**settings: float) -> DeadLetterLimit:
    return DeadLetterLimit(PipelineSettings.model_validate({"dead_letter_window": 100, **settings}))


def deliver(counter: DeadLetterLimit, *batches: BatchResult) -> None:
    for result in batches:
        counter.check(result)
        counter.add(result)


def test_a_few_among_many_are_let_through() -> None:
    deliver(limit(), *[batch(50, 25)] * 20)


def test_too_many_are_not_and_the_error_says_why() -> None:
    counter = limit()
    deliver(counter, batch(60, 0))
    with pytest.raises(DeadLetterLimitError) as error:
        counter.check(batch(70, 70, "no schema"))
    text = str(error.value)
    assert "70 of the latest 130" in text
    assert "'no schema' (70 times, first alerts.ztf[2] at 77)" in text


def test_a_batch_that_was_refused_is_not_counted() -> None:
    counter = limit()
    with pytest.raises(DeadLetterLimitError):
        counter.check(batch(100, 100))
    deliver(counter, batch(100, 50))


def test_few_alerts_are_not_judged() -> None:
    deliver(limit(dead_letter_min_alerts=100), batch(50, 50), batch(49, 49))
    with pytest.raises(DeadLetterLimitError):
        deliver(limit(dead_letter_min_alerts=100), batch(50, 50), batch(50, 50))


def test_what_is_long_ago_is_forgotten() -> None:
    counter = limit()
    deliver(counter, batch(1000, 0), batch(50, 0), batch(50, 0))  # the thousand are out of the window of 100
    with pytest.raises(DeadLetterLimitError):
        counter.check(batch(110, 110))


def test_one_is_never() -> None:
    deliver(limit(max_dead_letter_ratio=1.0), *[batch(200, 200)] * 5)


def test_several_alerts_of_spectra_count_too() -> None:
    result = batch(0, 100)
    result.spectra_in = 100
    with pytest.raises(DeadLetterLimitError):
        limit().check(result)
