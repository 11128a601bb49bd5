"""A batch from messages to messages, whatever one of them sets off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from broker.batch import BatchResult, IncomingMessage
from broker.dead_letters import dead_letter, isolate_first
from broker.metrics import stage_timer
from broker.publish.messages import OutgoingMessage, Publisher

log = logging.getLogger(__name__)

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
        log.error("message %s cannot be handled", message.origin, exc_info=error)
        letter = dead_letter(message, "unknown", error)
        return _publish(BatchResult(1, alerts_in=Counter(unknown=1), dead_letters=[letter]), publisher)

    return isolate_first(messages, lambda some: _publish(process(some), publisher), failed)


def _publish(result: BatchResult, publisher: Publisher) -> Handled:
    with stage_timer("publish"):
        return result, list(publisher.messages(result))
