"""The way through: decode, remember, assemble, encode and classify, score, annotate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import score
from broker.assemble import assemble
from broker.batch import BatchResult, DeadLetter, IncomingMessage
from broker.errors import DecodeError, DependencyUnavailableError
from broker.inference import Engine
from broker.inference.manifest import Manifest
from broker.isolation import describe, isolate
from broker.metrics import BATCH_SIZE, DEPENDENCY_WAITS, STAGE_SECONDS
from broker.publish.annotate import annotate
from broker.records import Alert, Annotation, ObjectState
from broker.state import Store
from broker.surveys import Decoder


@dataclass(frozen=True, slots=True)
class Received:
    """One alert and the message it came in."""

    alert: Alert
    message: IncomingMessage


_DEPENDENCY: Final = {"remember": "redis", "infer": "triton"}
"""What a stage waits for, as the metric names it."""


@contextmanager
def _stage(name: str) -> Iterator[None]:
    with STAGE_SECONDS.labels(name).time():
        try:
            yield
        except DependencyUnavailableError:
            DEPENDENCY_WAITS.labels(_DEPENDENCY.get(name, name)).inc()
            raise


class Pipeline:
    """Takes messages in batches and annotates each alert in them."""

    def __init__(
        self, decoder: Decoder, store: Store, engine: Engine, manifest: Manifest, reference: ReferenceSet
    ) -> None:
        self._decoder, self._store, self._engine = decoder, store, engine
        self._manifest, self._reference = manifest, reference

    def process(self, messages: Sequence[IncomingMessage]) -> BatchResult:
        """Annotate every alert of a batch; what cannot be decoded or handled becomes a dead letter.

        Raises DependencyUnavailableError where the store or the engine is away; the same batch may be given
        again, since remembering an alert twice changes nothing.
        """
        result = BatchResult()
        with _stage("decode"):
            received = self._decode(messages, result)
        BATCH_SIZE.observe(len(received))

        def failed(item: Received, error: Exception) -> list[Annotation]:
            letter = DeadLetter(item.message, item.alert.survey, describe(error), item.alert.alert_id)
            result.dead_letters.append(letter)
            return []

        result.annotations = isolate(received, self.annotate, failed)
        return result

    def annotate(self, received: Sequence[Received]) -> list[Annotation]:
        """Remember alerts and annotate each from all that is known of its object."""
        with _stage("remember"):
            states = self._store.remember([r.alert for r in received])
        return self.annotate_states(received, states)

    def annotate_states(self, received: Sequence[Received], states: Sequence[ObjectState]) -> list[Annotation]:
        """Annotate each alert from the state of its object."""
        with _stage("assemble"):
            inputs = assemble(states)
        with _stage("infer"):
            predictions = self._engine.predict(inputs)
        with _stage("score"):
            anomalies = score(self._reference, predictions.embeddings)
        with _stage("annotate"):
            alerts, mjds = [r.alert for r in received], [r.message.received_mjd for r in received]
            return annotate(alerts, mjds, inputs, predictions, anomalies, self._manifest)

    def _decode(self, messages: Sequence[IncomingMessage], result: BatchResult) -> list[Received]:
        received: list[Received] = []
        for message in messages:
            try:
                alerts = self._decoder.decode(message.payload)
                if not alerts:
                    raise DecodeError("the message holds no alert")
            except Exception as error:  # bytes from outside: whatever they set off concerns this message only
                result.alerts_in["unknown"] += 1
                result.dead_letters.append(DeadLetter(message, "unknown", describe(error)))
                continue
            result.alerts_in.update(alert.survey for alert in alerts)
            received.extend(Received(alert, message) for alert in alerts)
        return received
