"""Keeps the embeddings of what workers see in vector sets, beside the stream and never in its way."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES, subset_codes
from broker.errors import DependencyUnavailableError, TrifidError
from broker.metrics import SIMILAR_WRITES
from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY, Annotation, LightCurve, ObjectState, PhotometryKind
from broker.redis_client import CommandPipeline, RedisConnection
from broker.similar.sets import KINDS, NO_VECTOR_SETS, Element, Sets
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
        today = int(mjd_now())
        latest = {f"{batch.annotations[row].survey}:{batch.annotations[row].object_id}": row for row in rows}
        SIMILAR_WRITES.labels("unchanged").inc(len(rows) - len(latest))
        if not latest:
            return
        sets = self._sets
        shards = {element: sets.shard_of(element) for element in latest}
        before = sets.connection.commands(
            [("VGETATTR", sets.key(shards[element], KINDS[0]), element) for element in latest]
        )
        written = unchanged = 0

        def queue_writes(pipeline: CommandPipeline) -> None:
            nonlocal written, unchanged
            written = unchanged = 0
            for (element, row), attributes in zip(latest.items(), before, strict=True):
                annotation, shard = batch.annotations[row], shards[element]
                code = int(subset_codes(np.array([[name in annotation.modalities for name in MODALITIES]]))[0])
                known = _element(attributes)
                if known is not None and not self._moved(known, annotation, code):
                    unchanged += 1
                    # A class is for filters: where the light curve has hardly grown, the embedding has hardly moved.
                    if known.class_name == annotation.best_class and known.day + self._grain > today:
                        continue
                else:
                    known = None
                    written += 1
                now = describe(annotation, batch.curves[row], code, today)
                # Before the vectors: `remove_expired` goes by it.
                pipeline.command("ZADD", sets.key(shard, "seen"), today, element)
                for kind in KINDS:
                    key, vector = sets.key(shard, kind), batch.vector(row, kind)
                    if known is not None:
                        pipeline.command("VSETATTR", key, element, now.to_json())
                    elif vector is None:
                        pipeline.command("VREM", key, element)
                    else:
                        pipeline.command(
                            "VADD", key, "FP32", vector.astype("<f4").tobytes(), element, "Q8", "EF", _EFFORT,
                            "SETATTR", now.to_json(), "M", _LINKS,
                        )  # fmt: skip
            for shard in set(shards.values()):
                for key in sets.keys(shard):
                    pipeline.command("EXPIRE", key, self._model_expiry)

        sets.connection.execute(queue_writes)
        SIMILAR_WRITES.labels("written").inc(written)
        SIMILAR_WRITES.labels("unchanged").inc(unchanged)

    def _moved(self, known: Element, annotation: Annotation, code: int) -> bool:
        """Whether an object is to be written again: other modalities, or a grown light curve."""
        if known.modalities != code:
            return True
        fewer, more = sorted((known.detections, annotation.detections))
        return more > fewer * (1.0 + self._growth)

    def _sweep(self) -> None:
        now = time.monotonic()
        if now < self._next_sweep:
            return
        # A day has begun when it is noted, and one that is not renewed may be a grain old.
        removed = self._sets.remove_expired(int(mjd_now() - self._expiry) - self._grain, _SWEPT)
        SIMILAR_WRITES.labels("expired").inc(removed)
        self._sets.register(self._model_expiry)  # which ends as the sets do, that are renewed with each write
        self._next_sweep = now + (0.0 if removed >= _SWEPT else _SWEEP_S)


def kept_rows(batch: Embedded) -> list[int]:
    """Rows of the objects that are kept: classified, no moving body, with a usable light curve or a spectrum."""
    return [
        row
        for row, annotation in enumerate(batch.annotations)
        if annotation.classified
        and not annotation.solar_system
        and not _LONG_ENOUGH.isdisjoint(annotation.modalities)
        and batch.fused[row].any()
    ]


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


def _element(attributes: Any) -> Element | None:
    """None where an object is not there, or what is there cannot be read: it is written anew then."""
    if attributes is None:
        return None
    try:
        return Element.from_json(attributes)
    except (ValueError, KeyError, TypeError):
        return None
