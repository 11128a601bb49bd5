"""A second version of the model that gets a share of the stream: shadow, or canary.

A shadow runs in a thread of its own on objects that the served version has answered; its answers are compared and
thrown away. It has one batch at a time: what comes meanwhile is skipped, so that it can be slow, fail or hang and the
stream goes on. A canary answers in the stream's own time, and its annotations are published with its own version; where
it fails, the served version's are.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import ModelInputs
from broker.batch import Received
from broker.inference import Engine, Predictions
from broker.metrics import CANDIDATE_DIVERGENCE, CANDIDATE_OBJECT_SECONDS, CANDIDATE_OBJECTS
from broker.records import Annotation, ObjectState

log = logging.getLogger(__name__)

_PAUSE_S: Final = 30.0
"""After a failure nothing is asked for so long: a canary's server that is unavailable costs a batch its timeout."""
_HASHES: Final = 1 << 32


Annotate = Callable[[Sequence[Received], Sequence[ObjectState], ModelInputs], tuple[list[Annotation], Predictions]]
"""As ``Pipeline.annotate_inputs``."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """The candidate, once it is there."""

    engine: Engine
    annotate: Annotate
    """By its own version, thresholds and reference set."""


class Candidate:
    """The second version of one worker."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        share: float,
        *,
        publish: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``load`` is called in a thread, again and again until it succeeds; ``share`` is of the objects.

        With ``publish`` it is a canary.
        """
        self._load, self._share, self._publish, self._clock = load, share, publish, clock
        self._loaded: Loaded | None = None
        self._work: queue.Queue[tuple[ModelInputs, Predictions] | None] = queue.Queue(1)
        self._resting_until = -np.inf
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="candidate", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """End the thread; one that hangs in the candidate is left behind, and ends with the process."""
        self._end.set()
        with suppress(queue.Full):
            self._work.put_nowait(None)
        self._thread.join(timeout)

    def see(
        self,
        received: Sequence[Received],
        states: Sequence[ObjectState],
        inputs: ModelInputs,
        served: Predictions,
        annotations: list[Annotation],
        model: str,
        seconds: float,
    ) -> list[Annotation]:
        """Have a batch that the served version answered; the annotations to publish.

        ``model`` is the served version and ``seconds`` is how long it took. Never raises, and never waits for a shadow.
        """
        rows = np.flatnonzero(chosen([f"{r.alert.survey}:{r.alert.object_id}" for r in received], self._share))
        if not len(rows):
            return annotations
        try:
            return self._see(rows, received, states, inputs, served, annotations, model, seconds)
        except Exception as error:  # whatever it is, the served version has answered
            self._failed(len(rows), error)
            return annotations

    def _see(
        self,
        rows: NDArray[np.intp],
        received: Sequence[Received],
        states: Sequence[ObjectState],
        inputs: ModelInputs,
        served: Predictions,
        annotations: list[Annotation],
        model: str,
        seconds: float,
    ) -> list[Annotation]:
        loaded = self._loaded
        if loaded is not None and loaded.engine.model_version == model:  # it was promoted
            return annotations
        if loaded is None or self._clock() < self._resting_until:
            CANDIDATE_OBJECTS.labels("skipped").inc(len(rows))
            return annotations
        CANDIDATE_OBJECT_SECONDS.labels("served").observe(seconds / len(received))
        some = Predictions(served.probabilities[rows], served.embeddings[rows], served.other[rows])
        if self._publish:
            own, theirs = [received[n] for n in rows.tolist()], [states[n] for n in rows.tolist()]
            return self._answer(loaded, own, theirs, inputs.rows(rows), some, annotations, rows)
        try:
            self._work.put_nowait((inputs.rows(rows), some))
        except queue.Full:
            CANDIDATE_OBJECTS.labels("skipped").inc(len(rows))
        return annotations

    def _answer(
        self,
        loaded: Loaded,
        received: Sequence[Received],
        states: Sequence[ObjectState],
        inputs: ModelInputs,
        served: Predictions,
        annotations: list[Annotation],
        rows: NDArray[np.intp],
    ) -> list[Annotation]:
        """The annotations with those of the candidate in ``rows``."""
        start = time.perf_counter()
        own, predictions = loaded.annotate(received, states, inputs)
        compare(served, predictions, time.perf_counter() - start)
        published = list(annotations)
        for row, annotation in zip(rows.tolist(), own, strict=True):
            published[row] = annotation
        return published

    def _run(self) -> None:
        while self._loaded is None:
            try:
                self._loaded = self._load()
            except Exception as error:
                log.error("the candidate cannot be used, and is tried again: %s", error)
                if self._end.wait(_PAUSE_S):
                    return
        log.info("candidate %s gets %.0f %% of the objects, %s", self._loaded.engine.model_version, 100 * self._share,
                 "which are published with its version" if self._publish else "for comparison only")  # fmt: skip
        while (work := self._work.get()) is not None and not self._end.is_set():
            inputs, served = work
            start = time.perf_counter()
            try:
                compare(served, self._loaded.engine.predict(inputs), time.perf_counter() - start)
            except Exception as error:
                self._failed(len(inputs), error)
        self._loaded.engine.close()

    def _failed(self, objects: int, error: Exception) -> None:
        CANDIDATE_OBJECTS.labels("failed").inc(objects)
        self._resting_until = self._clock() + _PAUSE_S
        log.warning("the candidate failed, and rests for %.0f s: %s", _PAUSE_S, error)


def chosen(objects: Sequence[str], share: float) -> NDArray[np.bool_]:
    """(n,) which objects the candidate gets: by a hash of their names, the same in every batch and every worker."""
    hashes = np.array([zlib.crc32(name.encode()) for name in objects], np.float64)
    few: NDArray[np.bool_] = hashes < share * _HASHES
    return few


def divergence(
    served: NDArray[np.float32], candidate: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], int]:
    """Whether the most probable classes agree, and the total variation distance: half the sum of |p - q|.

    Both are of the objects (m,) of probabilities (n, 10) that both versions classify; the number is of those that
    one of them alone does.
    """
    both = served.any(axis=1) & candidate.any(axis=1)
    one = int((served.any(axis=1) != candidate.any(axis=1)).sum())
    p, q = served[both].astype(np.float64), candidate[both].astype(np.float64)
    return p.argmax(axis=1) == q.argmax(axis=1), 0.5 * np.abs(p - q).sum(axis=1), one


def compare(served: Predictions, candidate: Predictions, seconds: float) -> None:
    """Count how the answers differ; ``seconds`` is how long the candidate took."""
    agree, distance, one = divergence(served.probabilities, candidate.probabilities)
    CANDIDATE_OBJECTS.labels("agreed").inc(int(agree.sum()))
    CANDIDATE_OBJECTS.labels("differed").inc(int((~agree).sum()))
    CANDIDATE_OBJECTS.labels("one_answered").inc(one)
    for value in distance.tolist():
        CANDIDATE_DIVERGENCE.observe(value)
    CANDIDATE_OBJECT_SECONDS.labels("candidate").observe(seconds / len(served.probabilities))
