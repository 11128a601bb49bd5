"""A batch from messages to messages, whatever one of them sets off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.dead_letters import dead_letter, isolate_first
from broker.log_fields import Field
from broker.metrics import stage_timer
from broker.publish.messages import OutgoingMessage, Publisher

log = logging.getLogger(__name__)

_REASONS: Final = 5
"""Reasons of dead letters that are logged of a batch."""

Process = Callable[[Sequence[IncomingMessage]], BatchResult]
"""Handles the first of some messages, as many as it takes at once: ``Pipeline.process_next``."""
Handled = tuple[BatchResult, list[OutgoingMessage]]


def handle(process: Process, publisher: Publisher, messages: Sequence[IncomingMessage]) -> Handled:
    """Process the first of ``messages``, as many as ``process`` takes at once, and make the messages of its result.

    The pipeline makes a dead letter of an alert that a stage fails on; what fails outside of that is found here
    (``broker.dead_letters``). Passes on DependencyUnavailableError and ConfigurationError, which concern all messages
    alike.
    """

    def failed(message: IncomingMessage, error: Exception) -> Handled:
        log.error("message %s cannot be handled", message.origin, exc_info=error, extra=_where(message))
        letter = dead_letter(message, "unknown", error)
        return _publish(BatchResult(1, alerts_in=Counter(unknown=1), dead_letters=[letter]), publisher)

    handled = isolate_first(messages, lambda some: _publish(process(some), publisher), failed)
    _log_dead_letters(handled[0].dead_letters)
    return handled


def _publish(result: BatchResult, publisher: Publisher) -> Handled:
    with stage_timer("publish"):
        return result, list(publisher.messages(result))


def _log_dead_letters(letters: Sequence[DeadLetter]) -> None:
    """One line a batch for each of the most frequent reasons, with its first letter; the dead-letter topic has all."""
    of_reason: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        of_reason.setdefault(letter.reason, []).append(letter)
    for reason, same in sorted(of_reason.items(), key=lambda item: -len(item[1]))[:_REASONS]:
        first = same[0]
        extra = {**_where(first.message), "survey": first.survey, "alert_id": first.alert_id, "dead_letters": len(same)}
        log.warning("%d dead letters, the first from %s: %s", len(same), first.message.origin, reason, extra=extra)


def about(messages: Sequence[IncomingMessage]) -> dict[str, Field]:
    """Fields of structured logs about a batch: where its first message is, and how many there are."""
    return {**_where(messages[0]), "messages": len(messages)}


def _where(message: IncomingMessage) -> dict[str, Field]:
    if (origin := message.origin) is None:
        return {}
    return {"topic": origin.topic, "partition": origin.partition, "offset": origin.offset}
