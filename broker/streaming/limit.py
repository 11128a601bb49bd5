"""Limits: on the share of dead letters, and on the messages of a batch."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from broker.batch import BatchResult, DeadLetter
from broker.config import PipelineSettings
from broker.errors import DeadLetterLimitError
from broker.metrics import BATCH_LIMIT, DEAD_LETTER_RATIO

_REASONS: Final = 3
_REASON_LENGTH: Final = 200
_GROWTH: Final = 0.05
"""By which share of the largest batch the next one may be larger."""


class DeadLetterLimit:
    """Counts dead letters among the latest alerts, a batch at a time."""

    def __init__(self, settings: PipelineSettings) -> None:
        """See ``pipeline.max_dead_letter_ratio``, ``dead_letter_window`` and ``dead_letter_min_alerts``."""
        self._ratio, self._window = settings.max_dead_letter_ratio, settings.dead_letter_window
        self._least = settings.dead_letter_min_alerts
        self._batches: deque[tuple[int, int]] = deque()
        """Alerts and dead letters of delivered batches, oldest first."""
        self._alerts = self._dead = 0

    def check(self, result: BatchResult) -> None:
        """Raise DeadLetterLimitError where delivering a batch would break the limit; nothing is counted."""
        alerts, dead = (count + more for count, more in zip((self._alerts, self._dead), _counts(result), strict=True))
        if alerts >= self._least and dead > self._ratio * alerts:
            raise DeadLetterLimitError(
                f"{dead} of the latest {alerts} alerts would be dead letters, more than "
                f"pipeline.max_dead_letter_ratio = {self._ratio:g} allows. The in-flight batch is neither published "
                f"nor committed. Its reasons: {_reasons(result.dead_letters)}. How to go on: docs/operations.md"
            )

    def add(self, result: BatchResult) -> None:
        """Count a batch that was delivered, and forget what is no longer among the latest."""
        alerts, dead = _counts(result)
        self._batches.append((alerts, dead))
        self._alerts += alerts
        self._dead += dead
        while self._alerts - self._batches[0][0] >= self._window:
            alerts, dead = self._batches.popleft()
            self._alerts -= alerts
            self._dead -= dead
        DEAD_LETTER_RATIO.set(self._dead / self._alerts if self._alerts else 0.0)


def _counts(result: BatchResult) -> tuple[int, int]:
    return result.alerts_in.total() + result.spectra_in, len(result.dead_letters)


def _reasons(letters: list[DeadLetter]) -> str:
    """The most frequent ones, each with the first message that it concerns."""
    first: dict[str, DeadLetter] = {}
    for letter in letters:
        first.setdefault(letter.reason, letter)
    told = []
    for reason, count in Counter(letter.reason for letter in letters).most_common(_REASONS):
        origin = first[reason].message.origin
        where = "" if origin is None else f", first {origin.topic}[{origin.partition}] at {origin.offset}"
        told.append(f"{reason[:_REASON_LENGTH]!r} ({count} times{where})")
    return "; ".join(told)


class BatchSize:
    """How many messages a batch may have: fewer while Kafka does not take as many in time, as under a quota."""

    def __init__(self, largest: int) -> None:
        """``largest`` messages where nothing stands in the way."""
        self._largest = largest
        self.share = 1.0
        """Of ``largest``."""
        BATCH_LIMIT.set(largest)

    @property
    def now(self) -> int:
        """Messages of the next batch, one at least."""
        return max(1, int(self.share * self._largest))

    def halve(self) -> None:
        """A batch did not get through."""
        self.share = max(self.share / 2, 1 / self._largest)
        BATCH_LIMIT.set(self.now)

    def grow(self) -> None:
        """A batch got through."""
        if self.share < 1:
            self.share = min(1.0, self.share + _GROWTH)
            BATCH_LIMIT.set(self.now)
