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
Handled = tuple[BatchResult, list[OutgoingMessage]]


def handle(process: Process, publisher: Publisher, messages: Sequence[IncomingMessage]) -> Handled:
    """Process a batch and make the messages of its result.

    The pipeline makes a dead letter of an alert that a stage fails on. What fails outside of that (a decoder that
    raises what it should not, an annotation that Avro does not take) is found here, by halving the batch. Passes on
    DependencyUnavailableError and ConfigurationError, which concern all messages alike.
    """
    try:
        result = process(messages)
        with STAGE_SECONDS.labels("publish").time():
            return result, list(publisher.messages(result))
    except (DependencyUnavailableError, ConfigurationError):
        raise
    except Exception as error:  # one message must not hold up the stream
        if len(messages) == 1:
            log.exception("message %s cannot be handled", messages[0].origin)
            letter = DeadLetter(messages[0], "unknown", describe(error), traceback=trace(error))
            result = BatchResult(alerts_in=Counter(unknown=1), dead_letters=[letter])
            return result, list(publisher.messages(result))
        middle = len(messages) // 2
        first, first_messages = handle(process, publisher, messages[:middle])
        second, second_messages = handle(process, publisher, messages[middle:])
        return _together(first, second), first_messages + second_messages


def _together(first: BatchResult, second: BatchResult) -> BatchResult:
    return BatchResult(
        alerts_in=first.alerts_in + second.alerts_in,
        spectra_in=first.spectra_in + second.spectra_in,
        spectra_stored=first.spectra_stored + second.spectra_stored,
        annotations=first.annotations + second.annotations,
        dead_letters=first.dead_letters + second.dead_letters,
    )
