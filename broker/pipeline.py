"""The flow of one batch: decode, update state, assemble, encode and classify, score anomalies, annotate."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibration import Scorer
from broker.anomaly.combine import Combined, combine
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import score
from broker.anomaly.statistics import Objects
from broker.anomaly.strata import strata_of_inputs
from broker.assemble import ModelInputs, assemble, assemble_with_searches
from broker.assemble import warm_up as assemble_warm_up
from broker.batch import SPECTRA, BatchResult, IncomingMessage, Received, ReceivedSpectrum
from broker.dead_letters import dead_letter, isolate
from broker.drift.watch import Counter as DriftCounter
from broker.errors import DecodeError, DependencyUnavailableError
from broker.feedback.learned import Learned, with_answers
from broker.feedback.learner import vectors_of
from broker.inference import Begun, Engine, Predictions
from broker.inference.manifest import Manifest
from broker.metrics import BATCH_SIZE, DEPENDENCY_WAITS, PERIOD_SEARCHES, Stage, stage_timer
from broker.models.candidate import Candidate
from broker.publish.annotate import annotate
from broker.publish.disagreement import CONFIDENCE, doubts
from broker.records import Alert, Annotation, KeptSearch, ObjectState
from broker.similar.keeper import Keeper
from broker.state import Store
from broker.state.merge import warm_up as merge_warm_up
from broker.state.places import WIDE
from broker.surveys import Decoder
from broker.surveys.decoder import Decoded
from broker.times import mjd_of_unix

log = logging.getLogger(__name__)

T = TypeVar("T")


_DEPENDENCY: Final = {"decode": "registry", "update_state": "redis", "keep_searches": "redis", "infer": "triton"}
"""What a stage waits for, as the metric names it."""


@contextmanager
def _waits(stage: str) -> Iterator[None]:
    """Count where a stage has to wait for what it depends on."""
    try:
        yield
    except DependencyUnavailableError:
        DEPENDENCY_WAITS.labels(_DEPENDENCY.get(stage, stage)).inc()
        raise


@contextmanager
def _stage(name: str) -> Iterator[None]:
    with stage_timer(name), _waits(name):
        yield


class Pipeline:
    """Takes messages in batches and annotates each alert in them."""

    def __init__(
        self,
        decoder: Decoder,
        store: Store,
        engine: Engine,
        manifest: Manifest,
        reference: ReferenceSet,
        *,
        batch_size: int = 256,
        other_threshold: float | None = None,
        disagreement_probability: float = CONFIDENCE,
        period_search_growth: float = 0.2,
        similar: Keeper | None = None,
        candidate: Candidate | None = None,
        learned: Learned | None = None,
        drift: DriftCounter | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``batch_size``: no more alerts than this are assembled and classified at once; ``other_threshold`` is that
        of ``annotate``, and ``disagreement_probability`` its ``confidence``. ``period_search_growth`` is the fraction
        by which a remembered light curve grows before its period is searched anew (``broker.assemble.kept``).
        ``similar`` is offered the embeddings of what comes in the stream, ``drift`` counts that, and ``candidate``
        sees all of it.
        ``learned`` has what people's answers change of anomaly scores.

        ``progress`` is called after each of these batches, of which one message may hold many. Raises
        ConfigurationError where the reference set was made by another model than the engine runs.
        """
        reference.check_model(engine.model_version, engine.embedding_width())
        self._decoder, self._store, self._engine = decoder, store, engine
        self._manifest, self._reference = manifest, reference
        self._scorer = Scorer.of(reference)
        self._batch_size, self._progress = batch_size, progress
        self._other_threshold, self._confidence = other_threshold, disagreement_probability
        self._growth, self._similar, self._candidate = period_search_growth, similar, candidate
        self._learned, self._drift = learned, drift
        assemble_warm_up()
        merge_warm_up()

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return self._engine

    def process(self, messages: Sequence[IncomingMessage]) -> BatchResult:
        """Annotate every alert of ``messages``; what cannot be decoded or handled becomes a dead letter.

        Raises DependencyUnavailableError where the store or the engine is unavailable; the same messages may be given
        again, since merging an alert into the state twice changes nothing.
        """
        result = BatchResult()
        for part in self.batches(messages):
            result += part
        return result

    def batches(self, messages: Sequence[IncomingMessage]) -> Iterator[BatchResult]:
        """As ``process``, a batch at a time: so that the caller need not hold all results in memory."""
        while messages:
            result = self.process_next(messages)
            messages = messages[result.messages :]
            yield result

    def process_next(self, messages: Sequence[IncomingMessage]) -> BatchResult:
        """As ``process``, for the first of ``messages``: as many as hold a batch of alerts together, at least one.

        A message that holds more than a batch is handled in slices: the memory that is needed is that of one slice,
        of the message's alerts and of what they are annotated with, however much the other messages hold.
        """
        with _stage("decode"):
            decoded = self._decoder.decode_next(
                [message.payload for message in messages],
                [message.received_mjd for message in messages],
                most=self._batch_size,
            )
        result = BatchResult(messages=len(decoded), points_left_out=self._decoder.take_left_out())
        received, spectra = _sort(messages[: len(decoded)], decoded, result)
        result.traces = {(r.alert.survey, r.alert.alert_id): r.message.trace for r in received if r.message.trace}

        def failed(item: Received, error: Exception) -> list[Annotation]:
            result.dead_letters.append(dead_letter(item.message, item.alert.survey, error, item.alert.alert_id))
            return []

        def spectrum_failed(item: ReceivedSpectrum, error: Exception) -> list[Annotation]:
            result.dead_letters.append(dead_letter(item.message, SPECTRA, error))
            return []

        for alerts in self._slices(received):
            BATCH_SIZE.observe(len(alerts))
            result.annotations += isolate(alerts, self.annotate, failed)
        failures = len(result.dead_letters)
        # After the alerts, so that an object whose first alert is in this batch is classified with its spectrum.
        for some in self._slices(spectra):
            result.annotations += isolate(some, self.annotate_spectra, spectrum_failed)
        result.spectra_stored = len(spectra) - (len(result.dead_letters) - failures)
        return result

    def _slices(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Batches of ``items``; says after each that there is progress."""
        for start in range(0, len(items), self._batch_size):
            yield items[start : start + self._batch_size]
            self._progress()

    def annotate(self, received: Sequence[Received]) -> list[Annotation]:
        """Merge alerts into the state of their objects and annotate each from all that is known."""
        with _stage("update_state"):
            states = self._store.update([r.alert for r in received])
        return self._annotate_updated(received, states)

    def annotate_spectra(self, received: Sequence[ReceivedSpectrum]) -> list[Annotation]:
        """Store spectra and classify again the objects that they are of: each upon its latest alert."""
        with _stage("update_state"):
            spectra = [r.spectrum for r in received]
            self._store.put_observed(spectra)
            found = self._store.objects_of(spectra)
        for spectrum, several in zip(spectra, found, strict=True):
            if spectrum.object_id and not several:
                log.warning(
                    "spectrum %s is of %s:%s, of which no alert was seen within %g arcsec of the spectrum's position: "
                    "it is stored, and the object's next alert is classified with it",
                    spectrum.spectrum_id, spectrum.survey, spectrum.object_id, WIDE,
                )  # fmt: skip
        # Two spectra of one object in one batch, or one object near to both, are one classification.
        latest = {
            (alert.survey, alert.object_id): (Received(alert, r.message), state)
            for r, several in zip(received, found, strict=True)
            for alert, state in several
        }
        if not latest:
            return []
        annotations = self._annotate_updated(
            [r for r, _ in latest.values()], [s for _, s in latest.values()], counted=False
        )
        # The message was the spectrum's; when the alert was written is not remembered.
        return [replace(annotation, trigger="spectrum", alert_publish_mjd=None) for annotation in annotations]

    def annotate_states(self, received: Sequence[Received], states: Sequence[ObjectState]) -> list[Annotation]:
        """Annotate each alert from the state of its object, whatever was found in it before."""
        return [annotation for annotation, _ in self.annotate_and_embed(received, states)]

    def annotate_and_embed(
        self, received: Sequence[Received], states: Sequence[ObjectState]
    ) -> list[tuple[Annotation, NDArray[np.float32]]]:
        """As ``annotate_states``, each with the embedding (width,) that the neighbours and the score were found by."""
        with _stage("assemble"):
            inputs = assemble(states)
        annotations, predictions = self.annotate_inputs(received, states, inputs)
        return list(zip(annotations, predictions.embeddings, strict=True))

    def embed(self, states: Sequence[ObjectState]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Fused embeddings (n, width) of objects and those by modality (n, 3, width), as ``Predictions`` has them."""
        with _stage("assemble"):
            inputs = assemble(states)
        with _stage("infer"):
            predictions = self._engine.predict(inputs)
        return predictions.embeddings, predictions.by_modality

    def annotate_by_modality(self, received: Received, state: ObjectState) -> dict[str, Annotation]:
        """What each modality of one object says by itself, and all together under ``all``; absent ones are left out.

        Periods are searched and nothing is kept: for whoever looks at an object, not for the stream.
        """
        inputs = assemble([state])
        found = {"all": self.annotate_inputs([received], [state], inputs)[0][0]}
        for modality in found["all"].modalities:
            found[modality] = self.annotate_inputs([received], [state], inputs.only(modality))[0][0]
        return found

    def _annotate_updated(
        self, received: Sequence[Received], states: Sequence[ObjectState], *, counted: bool = True
    ) -> list[Annotation]:
        """As ``annotate_states``, with the period searches that the store keeps, and keeping there the new ones.

        ``counted`` is whether these are alerts of the stream, whose drift is looked for.
        """
        inputs, predictions, waited = self._assemble_and_predict(received, states)
        start = time.perf_counter()
        annotations = self._annotations(received, states, inputs, predictions)
        seconds = waited + time.perf_counter() - start
        if self._similar is not None:
            self._similar.offer(annotations, states, predictions.embeddings, predictions.by_modality)
        if counted and self._drift is not None:
            alerts = [r.alert for r in received]
            self._drift.see(alerts, states, annotations, predictions.embeddings, strata_of_inputs(inputs))
        if self._candidate is not None:
            model = self._engine.model_version
            annotations = self._candidate.see(received, states, inputs, predictions, annotations, model, seconds)
        return annotations

    def _assemble_and_predict(
        self, received: Sequence[Received], states: Sequence[ObjectState]
    ) -> tuple[ModelInputs, Predictions, float]:
        """A batch's inputs and predictions, and the seconds that the engine was waited for.

        A server has the first parts of the batch while the next are assembled. Where anything fails, what is under way
        is abandoned: the batch, or its halves, are given to this again.
        """
        inputs: list[ModelInputs] = []
        kept: list[KeptSearch | None] = []
        begun: list[Begun] = []
        with Stage("assemble") as assembling, Stage("infer") as inferring, ExitStack() as under_way:
            with inferring.part(span=False), _waits("infer"):
                parts = self._engine.parts(len(states))
            for part in parts:
                with assembling.part():
                    some, searches = assemble_with_searches(states[part], self._growth)
                for reason, count in Counter(reason for reason in searches.reason if reason is not None).items():
                    PERIOD_SEARCHES.labels(reason).inc(count)
                inputs.append(some)
                kept += searches.kept
                with inferring.part(span=False), _waits("infer"):
                    begun.append(under_way.enter_context(self._engine.begin(some)))
            with _stage("keep_searches"):
                self._store.keep_searches(
                    {
                        (r.alert.survey, r.alert.object_id): search
                        for r, search in zip(received, kept, strict=True)
                        if search is not None
                    }
                )
            with inferring.part(), _waits("infer"):
                predictions = Predictions.joined([each.result() for each in begun])
        return ModelInputs.joined(inputs), predictions, inferring.seconds

    def annotate_inputs(
        self, received: Sequence[Received], states: Sequence[ObjectState], inputs: ModelInputs
    ) -> tuple[list[Annotation], Predictions]:
        """An annotation of each alert from the model's inputs, and the predictions with the embeddings."""
        with _stage("infer"):
            predictions = self._engine.predict(inputs)
        return self._annotations(received, states, inputs, predictions), predictions

    def _annotations(
        self,
        received: Sequence[Received],
        states: Sequence[ObjectState],
        inputs: ModelInputs,
        predictions: Predictions,
    ) -> list[Annotation]:
        with _stage("score"):
            anomalies = score(self._reference, predictions.embeddings, strata_of_inputs(inputs))
            combined = self._combined(states, inputs, predictions, anomalies.distance)
        with _stage("annotate"):
            alerts, mjds = [r.alert for r in received], [r.message.received_mjd for r in received]
            return annotate(
                alerts, mjds, inputs, states, predictions, anomalies, self._manifest, self._other_threshold,
                self._confidence, [_published_mjd(r.message) for r in received], combined=combined,
            )  # fmt: skip

    def _combined(
        self,
        states: Sequence[ObjectState],
        inputs: ModelInputs,
        predictions: Predictions,
        distance: NDArray[np.float32],
    ) -> Combined:
        """Combined anomaly scores; none without a calibration."""
        if self._scorer is None:
            return Combined.none(len(states))
        try:
            doubt, names = doubts([state.known_as for state in states], predictions.probabilities)
            by_modality, probabilities = predictions.by_modality, predictions.probabilities
            objects = Objects.of(inputs, predictions.embeddings, by_modality, probabilities, doubt)
            combined = combine(self._scorer, objects, distance, names)
        except Exception:  # whatever it is, the class is known, and is published without this score
            log.exception("no combined anomaly scores of a batch of %d alerts", len(states))
            return Combined.none(len(states))
        return self._corrected(combined, objects)

    def _corrected(self, combined: Combined, objects: Objects) -> Combined:
        """With what people's answers about similar objects change; as they are where there are none of this model."""
        correction = None if self._learned is None else self._learned.current
        if correction is None or not correction.fits(self._engine.model_version, self._reference.version):
            return combined
        try:
            vectors = vectors_of(objects.embeddings, objects.by_modality, objects.present)
            return with_answers(combined, correction, vectors)
        except Exception:  # whatever it is, the scores themselves are known
            log.exception("answers are not applied to the anomaly scores of a batch of %d alerts", len(combined.score))
            return combined


def _published_mjd(message: IncomingMessage) -> float | None:
    """When a message was written to its topic, MJD UTC; None where it is of no topic, or Kafka does not know."""
    origin = message.origin
    return None if origin is None or origin.timestamp_ms <= 0 else mjd_of_unix(origin.timestamp_ms / 1000)


def _sort(
    messages: Sequence[IncomingMessage], decoded: Sequence[Decoded | DecodeError], result: BatchResult
) -> tuple[list[Received], list[ReceivedSpectrum]]:
    """Alerts and spectra of messages, counted in ``result``; what is neither becomes a dead letter there."""
    received: list[Received] = []
    spectra: list[ReceivedSpectrum] = []
    for message, records in zip(messages, decoded, strict=True):
        refused = [records] if isinstance(records, DecodeError) else records.refused
        if isinstance(records, Decoded) and not records and not refused:
            refused = [DecodeError("the message holds no alert")]
        for error in refused:
            result.alerts_in["unknown"] += 1
            result.dead_letters.append(dead_letter(message, "unknown", error))
        if isinstance(records, DecodeError):
            continue
        for record in records:
            if isinstance(record, Alert):
                result.alerts_in[record.survey] += 1
                received.append(Received(record, message))
            else:
                result.spectra_in += 1
                spectra.append(ReceivedSpectrum(record, message))
    return received, spectra
