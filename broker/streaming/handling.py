"""A batch from messages to messages, whatever one of them sets off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.isolation import describe, isolate, trace
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

    def handle_all(batch: Sequence[IncomingMessage]) -> list[Handled]:
        return [_publish(process(batch), publisher)]

    def failed(message: IncomingMessage, error: Exception) -> list[Handled]:
        log.error("message %s cannot be handled", message.origin, exc_info=error)
        letter = DeadLetter(message, "unknown", describe(error), traceback=trace(error))
        return [_publish(BatchResult(alerts_in=Counter(unknown=1), dead_letters=[letter]), publisher)]

    parts = isolate(messages, handle_all, failed)
    return reduce(_together, (r for r, _ in parts), BatchResult()), [m for _, outgoing in parts for m in outgoing]


def _publish(result: BatchResult, publisher: Publisher) -> Handled:
    with STAGE_SECONDS.labels("publish").time():
        return result, list(publisher.messages(result))


def _together(first: BatchResult, second: BatchResult) -> BatchResult:
    return BatchResult(
        alerts_in=first.alerts_in + second.alerts_in,
        points_left_out=first.points_left_out + second.points_left_out,
        spectra_in=first.spectra_in + second.spectra_in,
        spectra_stored=first.spectra_stored + second.spectra_stored,
        annotations=first.annotations + second.annotations,
        dead_letters=first.dead_letters + second.dead_letters,
    )
