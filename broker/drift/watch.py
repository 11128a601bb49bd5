"""Counts the stream in each worker, and says from the counts of all workers whether it drifts."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import redis
from numpy.typing import NDArray
from prometheus_client import Gauge

from broker.anomaly.reference_set import ReferenceSet
from broker.drift.compare import compare
from broker.drift.counts import Counts, Features, count
from broker.drift.stored import SECONDS, DriftStore, Span, space_of
from broker.errors import TrifidError
from broker.metrics import (
    DRIFT_ALERTS,
    DRIFT_BASELINE,
    DRIFT_DETECTED,
    DRIFT_DISTANCE,
    DRIFT_FAILURES,
    DRIFT_SIGNIFICANCE,
)
from broker.records import Alert, Annotation, ObjectState
from broker.redis_client import RedisConnection

log = logging.getLogger(__name__)

_INTERVAL_S: Final = 60.0
_LATE_S: Final = 300.0


class Counter:
    """Counts what one version of the model says; of the work thread."""

    def __init__(self, reference: ReferenceSet, clock: Callable[[], float] = time.time) -> None:
        """The axes of the embeddings are found here, which takes a second."""
        self.space: Final = space_of(reference)
        self._features, self._clock = Features.of(reference), clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[Span, int], Counts] = {}
        self._ended: list[tuple[Span, int]] = []

    def see(
        self,
        alerts: Sequence[Alert],
        states: Sequence[ObjectState],
        annotations: Sequence[Annotation],
        embeddings: NDArray[np.float32],
        strata: NDArray[np.intp],
    ) -> None:
        """Count a batch, as ``count``; what fails is counted as a failure, and the alerts go on."""
        try:
            found = count(self._features, alerts, states, annotations, embeddings, strata)
        except Exception:  # whatever it is, the class is known
            DRIFT_FAILURES.inc()
            log.exception("a batch of %d alerts is not counted for drift", len(alerts))
            return
        now = self._clock()
        with self._lock:
            for span, seconds in SECONDS.items():
                own = self._counts.setdefault((span, int(now // seconds)), {})
                for group, vector in found.items():
                    if group in own:
                        own[group] += vector
                    else:
                        own[group] = vector.copy()

    def take(self) -> dict[tuple[Span, int], Counts]:
        """A copy of what was counted in each hour and day; those that have ended are given a last time."""
        now = self._clock()
        with self._lock:
            taken = {
                period: {group: vector.copy() for group, vector in groups.items()}
                for period, groups in self._counts.items()
            }
        # Not at once: a batch that is being counted may belong to the hour before.
        self._ended = [(span, n) for span, n in taken if (n + 1) * SECONDS[span] + _LATE_S < now]
        return taken

    def written(self) -> None:
        """Forget the hours and days that had ended when ``take`` was called last: they are in Redis."""
        with self._lock:
            for period in self._ended:
                self._counts.pop(period, None)

    @property
    def empty(self) -> bool:
        """Whether there is nothing more to be written."""
        with self._lock:
            return not self._counts


class DriftWatch:
    """A thread that writes a worker's counts to Redis, and sets the metrics from those of all workers."""

    def __init__(self, connection: RedisConnection, window_hours: int, clock: Callable[[], float] = time.time) -> None:
        """Nothing is written before ``start``."""
        self._connection, self._hours, self._clock = connection, window_hours, clock
        # Another one after a restart: what the process before it counted stays.
        self._process = f"{os.getpid():x}-{secrets.token_hex(4)}"
        self._counters: dict[str, Counter] = {}
        self._current: str | None = None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False

    def counter(self, reference: ReferenceSet) -> Counter:
        """What counts for the version with this reference set, once it is in use (``watch``)."""
        with self._lock:
            return self._counters.get(space_of(reference)) or Counter(reference, self._clock)

    def watch(self, counter: Counter) -> None:
        """From now on the version of this counter is in use, and watched."""
        with self._lock:
            self._counters[counter.space], self._current = counter, counter.space

    def start(self) -> None:
        """Begin."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what was counted, and close the connection."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._connection.close()

    def _run(self) -> None:
        while not self._end.wait(_INTERVAL_S):
            self._safely(self.look)
        self._safely(self.write)

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._failing = False
        except Exception as error:  # whatever it is, the stream goes on
            DRIFT_FAILURES.inc()
            if not self._failing:
                self._failing = True
                log.warning("drift is not watched, until this succeeds: %s", error, exc_info=not _expected(error))

    def look(self) -> None:
        """Write what was counted, and set the metrics of the version in use."""
        self.write()
        with self._lock:
            space = self._current
        if space is None:
            return
        store, now = DriftStore(self._connection, space), self._clock()
        window, baseline = store.window(now, self._hours), store.baseline()
        DRIFT_BASELINE.set(baseline is not None)
        found = compare(window, baseline.blocks) if baseline is not None else []
        keys = [(drift.survey, drift.band, drift.quantity) for drift in found]
        _set(DRIFT_ALERTS, {group: int(vector[0]) for group, vector in window.items()})
        _set(DRIFT_DISTANCE, {key: drift.distance for key, drift in zip(keys, found, strict=True)})
        _set(DRIFT_SIGNIFICANCE, {key: drift.significance for key, drift in zip(keys, found, strict=True)})
        _set(DRIFT_DETECTED, {key: drift.detected for key, drift in zip(keys, found, strict=True)})

    def write(self) -> None:
        """Write what was counted; an earlier version's for the last time."""
        with self._lock:
            counters = dict(self._counters)
        for space, counter in counters.items():
            DriftStore(self._connection, space).write(self._process, counter.take())
            counter.written()
        with self._lock:
            self._counters = {s: c for s, c in self._counters.items() if s == self._current or not c.empty}


def _set(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """The series of a gauge; those of what has stopped coming go, the others are there all the time."""
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    gone = {
        tuple(sample.labels[name] for name in gauge._labelnames)
        for family in gauge.collect()
        for sample in family.samples
    }
    for labels in gone - values.keys():
        gauge.remove(*labels)


def _expected(error: Exception) -> bool:
    return isinstance(error, redis.RedisError | TrifidError)
