"""A batch from messages to messages, whatever one of them sets off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.isolation import describe, trace
from broker.metrics import STAGE_SECONDS
from broker.publish.messages import OutgoingMessage, Publisher

log = logging.getLogger(__name__)

Process = Callable[[Sequence[IncomingMessage]], BatchResult]
"""Handles the first of some messages, as many as it takes at once: ``Pipeline.process_next``."""
Handled = tuple[BatchResult, list[OutgoingMessage]]


def handle(process: Process, publisher: Publisher, messages: Sequence[IncomingMessage]) -> Handled:
    """Process the first of ``messages``, as many as ``process`` takes at once, and make the messages of its result.

    The pipeline makes a dead letter of an alert that a stage fails on. What fails outside of that (a decoder that
    raises what it should not, an annotation that Avro does not take) is found here: where a batch fails, the first half
    of it is handled, down to the one message to blame. Passes on DependencyUnavailableError and ConfigurationError,
    which concern all messages alike.
    """
    try:
        return _publish(process(messages), publisher)
    except (DependencyUnavailableError, ConfigurationError):
        raise
    except Exception as error:  # whatever one message sets off must not hold up the others
        if len(messages) > 1:
            return handle(process, publisher, messages[: len(messages) // 2])
        log.error("message %s cannot be handled", messages[0].origin, exc_info=error)
        letter = DeadLetter(messages[0], "unknown", describe(error), traceback=trace(error))
        return _publish(BatchResult(1, alerts_in=Counter(unknown=1), dead_letters=[letter]), publisher)


def _publish(result: BatchResult, publisher: Publisher) -> Handled:
    with STAGE_SECONDS.labels("publish").time():
        return result, list(publisher.messages(result))
