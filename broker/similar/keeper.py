"""Keeps the embeddings of what workers see in vector sets, beside the stream and never in its way."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import redis
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES, subset_codes
from broker.errors import DependencyUnavailableError, TrifidError
from broker.metrics import SIMILAR_WRITES
from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY, Annotation, LightCurve, ObjectState, PhotometryKind
from broker.redis_client import RedisConnection
from broker.similar.sets import KINDS, NO_VECTOR_SETS, Element, Sets, Written, class_index
from broker.times import mjd_now

log = logging.getLogger(__name__)

DAY: Final = 86_400
_BATCHES: Final = 16
"""That wait to be written, 2 MB each: what comes while so many wait is left out, and counted."""
_MODEL_EXPIRY_DAYS: Final = 180.0
"""The sets of a model that no worker has written to for so long go, as its reference set does."""
_SWEEP_S: Final = 60.0
_SWEPT: Final = 200
"""Objects removed from a shard at once: Redis serves nobody else meanwhile, some 10 ms."""
_LINKS: Final = 16
"""Of an element in the graph, Redis's own default."""
_EFFORT: Final = 32
"""Candidates that Redis looks at when it adds one. Its default of 200 takes four times as long and finds no more:
what is missed is missed by the quantisation (benchmarks/similar.py)."""
_LONG_ENOUGH: Final = frozenset({"light_curve", "spectrum"})


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """One batch of objects with their embeddings."""

    annotations: Sequence[Annotation]
    curves: Sequence[LightCurve]
    """What each was classified by."""
    fused: NDArray[np.float32]
    """(n, d) unit vectors, zeros where there was nothing to embed."""
    by_modality: NDArray[np.float32] | None
    """(n, 3, d) of MODALITIES, zeros where absent; None where the engine does not give them."""

    def vector(self, row: int, kind: str) -> NDArray[np.float32] | None:
        """One embedding; None where there is none."""
        if kind == KINDS[0] or self.annotations[row].modalities == (kind,):
            found = self.fused[row]
        elif self.by_modality is None:
            return None
        else:
            found = self.by_modality[row, MODALITIES.index(kind)]
        return found if found.any() else None


class Keeper:
    """Writes what is offered in a thread of its own. What fails is left out and counted, never waited for."""

    def __init__(
        self, connection: RedisConnection, model: str, *, expiry_days: float, growth: float, prefix: str = "trifid"
    ) -> None:
        """``expiry_days`` after an object was seen last it is removed, as its state is; ``growth`` is the fraction by
        which a light curve grows before its embeddings are written again.
        """
        self._sets = Sets(connection, model, prefix)
        self._expiry, self._growth = expiry_days, growth
        # Not at each alert, and never before the state goes.
        self._grain = max(1, int(expiry_days / 100))
        self._model_expiry = int(min(max(expiry_days, 1.0), _MODEL_EXPIRY_DAYS) * DAY)
        self._queue: queue.Queue[Embedded | None] = queue.Queue(_BATCHES)
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._failing = False
        self._next_sweep = 0.0
        self._supported = True

    def start(self) -> None:
        """Look whether this Redis can, and begin; a warning says so where it cannot, and nothing is kept then.

        Raises DependencyUnavailableError where Redis does not answer.
        """
        if self._thread is not None:
            return
        try:
            self._supported = self._sets.supported()
            if self._supported:
                self._sets.register(self._model_expiry)
        except (redis.RedisError, TrifidError) as error:
            if isinstance(error, DependencyUnavailableError):
                raise
            log.warning("similar objects are not kept: %s", error)
            self._supported = False
        else:
            if not self._supported:
                log.warning("this Redis %s", NO_VECTOR_SETS)
        self._thread = threading.Thread(target=self._run, name="similar", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, and close the connection."""
        if self._thread is not None:
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                self._end.set()
                log.warning("embeddings that wait to be written are left out at the end")
            else:
                self._thread.join(timeout)
        self._sets.connection.close()

    def drain(self) -> None:
        """Wait until all that was offered is written or left out."""
        self._queue.join()

    def offer(
        self,
        annotations: Sequence[Annotation],
        states: Sequence[ObjectState],
        fused: NDArray[np.float32],
        by_modality: NDArray[np.float32] | None,
    ) -> None:
        """Take a batch to be written, as far as it is to be kept; returns at once."""
        if not self._supported or self._thread is None:
            return
        try:
            self._queue.put_nowait(Embedded(annotations, [state.light_curve for state in states], fused, by_modality))
        except queue.Full:
            SIMILAR_WRITES.labels("dropped").inc(len(annotations))

    def _run(self) -> None:
        while not self._end.is_set():
            batch = self._queue.get()
            try:
                if batch is None:
                    return
                self._safely(batch)
            finally:
                self._queue.task_done()

    def _safely(self, batch: Embedded) -> None:
        rows = kept_rows(batch)
        try:
            self.write(batch, rows)
            self._sweep()
            self._failing = False
        except Exception as error:  # whatever it is, the stream goes on
            SIMILAR_WRITES.labels("failed").inc(len(rows))
            if not self._failing:
                self._failing = True
                expected = isinstance(error, redis.RedisError | TrifidError)
                log.warning(
                    "similar objects are not kept up to date, until this succeeds: %s", error, exc_info=not expected
                )

    def write(self, batch: Embedded, rows: Sequence[int]) -> None:
        """Write the objects of some rows that are new or have changed; raises what Redis refuses."""
        # The last alert of an object in the batch.
        latest = {f"{batch.annotations[row].survey}:{batch.annotations[row].object_id}": row for row in rows}
        SIMILAR_WRITES.labels("unchanged").inc(len(rows) - len(latest))
        if not latest:
            return
        elements, own = list(latest), [batch.annotations[row] for row in latest.values()]
        today = int(mjd_now())
        now = Written(
            np.full(len(own), today, np.int64),
            np.array([annotation.detections for annotation in own], np.int64),
            np.array([class_index(annotation.best_class) for annotation in own], np.int64),
            np.array([_code(annotation.modalities) for annotation in own], np.int64),
        )
        before = self._sets.written(elements)
        moved = self._moved(before, now)
        # A class is for filters: where the light curve has hardly grown, the embedding has hardly moved.
        told = ~moved & ((before.class_index != now.class_index) | (before.day + self._grain <= today))
        self._send(batch, elements, list(latest.values()), now, moved, told)
        SIMILAR_WRITES.labels("written").inc(int(moved.sum()))
        SIMILAR_WRITES.labels("unchanged").inc(int((~moved).sum()))

    def _moved(self, before: Written, now: Written) -> NDArray[np.bool_]:
        """(n,) what is to be written again: other modalities, or a grown light curve."""
        fewer, more = np.minimum(before.detections, now.detections), np.maximum(before.detections, now.detections)
        moved: NDArray[np.bool_] = (before.modalities != now.modalities) | (more > fewer * (1.0 + self._growth))
        return moved

    def _send(
        self,
        batch: Embedded,
        elements: Sequence[str],
        rows: Sequence[int],
        now: Written,
        moved: NDArray[np.bool_],
        told: NDArray[np.bool_],
    ) -> None:
        """Vectors and attributes where ``moved``, attributes where ``told``; nothing where there are none of both."""
        sets, today = self._sets, int(now.day[0])
        index, new = np.flatnonzero(moved | told).tolist(), np.flatnonzero(moved).tolist()
        if not index:
            return
        # A whole number first, since `remove_expired` goes by it; what was written is said when it is.
        commands = sets.note([elements[i] for i in new], np.full(len(new), float(today)))
        updated: dict[int, int] = {}
        for i in index:
            row, element = rows[i], elements[i]
            shard = sets.shard_of(element)
            said = describe(batch.annotations[row], batch.curves[row], int(now.modalities[i]), today).to_json()
            if not moved[i]:
                updated[i] = len(commands)
            for kind in KINDS:
                key, vector = sets.key(shard, kind), batch.vector(row, kind) if moved[i] else None
                if not moved[i]:
                    commands.append(("VSETATTR", key, element, said))
                elif vector is None:
                    commands.append(("VREM", key, element))
                else:
                    commands.append(
                        ("VADD", key, "FP32", vector.astype("<f4").tobytes(), element, "Q8", "EF", _EFFORT,
                         "SETATTR", said, "M", _LINKS)
                    )  # fmt: skip
        answers = sets.connection.commands([*commands, *sets.renew(self._model_expiry)])
        # Where Redis has the score and not the vector, as where a set was deleted: written with the next alert.
        scores = now.scores()
        for i, at in updated.items():
            if not answers[at]:
                scores[i] = today
        sets.connection.commands(sets.note([elements[i] for i in index], scores[index]))

    def _sweep(self) -> None:
        now = time.monotonic()
        if now < self._next_sweep:
            return
        # A day has begun when it is noted, and one that is not renewed may be a grain old.
        removed = self._sets.remove_expired(int(mjd_now() - self._expiry) - self._grain, _SWEPT)
        SIMILAR_WRITES.labels("expired").inc(removed)
        self._sets.register(self._model_expiry)
        self._sets.connection.commands(self._sets.renew(self._model_expiry))
        self._next_sweep = now + (0.0 if removed >= _SWEPT else _SWEEP_S)


def kept_rows(batch: Embedded) -> list[int]:
    """Rows of the objects that are kept: classified, no moving body, with a usable light curve or a spectrum."""
    embedded: list[bool] = np.any(batch.fused, axis=1).tolist()
    return [
        row
        for row, annotation in enumerate(batch.annotations)
        if embedded[row]
        and annotation.classified
        and not annotation.solar_system
        and not _LONG_ENOUGH.isdisjoint(annotation.modalities)
    ]


@cache
def _code(modalities: tuple[str, ...]) -> int:
    return int(subset_codes(np.array([[name in modalities for name in MODALITIES]]))[0])


def describe(annotation: Annotation, curve: LightCurve, code: int, day: int) -> Element:
    """What is kept of an object beside its embeddings; ``code`` are its modalities."""
    return Element(
        annotation.best_class, annotation.best_probability, annotation.survey, annotation.ra, annotation.dec,
        median_magnitude(curve), annotation.detections, code, day,
    )  # fmt: skip


def median_magnitude(curve: LightCurve) -> float | None:
    """AB magnitude of the median total flux of a light curve's detections, in whatever bands they are.

    The difference flux where there is no reference; None where there is no detection or the median is not positive.
    """
    detected = curve.kind == PhotometryKind.DETECTION
    if not detected.any():
        return None
    reference = curve.reference_flux[detected]
    flux = float(np.median(curve.flux[detected] + np.where(np.isfinite(reference), reference, 0.0)))
    return float(-POGSON * np.log(flux / AB_ZERO_POINT_NJY)) if flux > 0 else None
