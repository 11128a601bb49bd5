"""The correction that a worker applies: read from Redis beside the stream, and taken over without a stop.

``trifid:feedback:<model>:<reference set>`` holds it, ``...:digest`` the SHA-256 of what is there, which is what is
looked at every few seconds. The key names the model and the set, and so does the content: one of another version is
never applied.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Final

import numpy as np
import redis
from numpy.typing import NDArray

from broker.anomaly.combine import Combined
from broker.errors import ConfigurationError, TrifidError
from broker.feedback.learner import Correction, digest
from broker.metrics import FEEDBACK_APPLIED, FEEDBACK_LEARNED, FEEDBACK_USED
from broker.redis_client import RedisConnection
from broker.times import datetime_of

log = logging.getLogger(__name__)

EXPIRY_S: Final = 180 * 86_400
"""As that of the reference set: a correction of a model that nothing has used for so long goes."""
_LOOK_S: Final = 3.0
_MIB: Final = 1 << 20
_LARGEST: Final = 8 * _MIB
"""Bytes of a correction; 500 answers of three modalities have 1.5 MB."""


def key_of(model: str, reference_version: str, prefix: str = "trifid") -> str:
    """Where the correction of a model's scores by a reference set is."""
    return f"{prefix}:feedback:{model}:{reference_version}"


def put(connection: RedisConnection, correction: Correction) -> None:
    """Store a correction, from which on workers take it; raises what Redis refuses."""
    key, data = key_of(correction.model, correction.reference_version), correction.to_bytes()
    # Apart, and the digest last: in a cluster the keys are on different nodes.
    connection.commands([("SET", key, data, "EX", EXPIRY_S)])
    connection.commands([("SET", f"{key}:digest", digest(data), "EX", EXPIRY_S)])


def get_digest(connection: RedisConnection, model: str, reference_version: str) -> str | None:
    """Of the correction that is there; None where there is none."""
    found = connection.get(f"{key_of(model, reference_version)}:digest")
    return None if found is None else found.decode("ascii", "replace")


def get(connection: RedisConnection, model: str, reference_version: str) -> Correction | None:
    """What is stored, None where nothing is; raises ConfigurationError where it cannot be used or is another's."""
    key = key_of(model, reference_version)
    data = connection.get(key)
    if data is None:
        return None
    if len(data) > _LARGEST:
        raise ConfigurationError(f"{key} has {len(data):,} bytes, more than any correction")
    correction = Correction.from_bytes(data, key)
    if not correction.fits(model, reference_version):
        raise ConfigurationError(
            f"{key} holds the correction of {correction.reference_version} of {correction.model}: scores of two spaces "
            "have nothing in common"
        )
    return correction


class Learned:
    """The latest correction of the model and reference set in use, as a thread of its own finds it in Redis."""

    def __init__(self, connection: RedisConnection) -> None:
        """Nothing is corrected until ``follow`` says what is in use."""
        self._connection = connection
        self._followed: tuple[str, str] | None = None
        self._current: Correction | None = None
        self._seen: str | None = None
        self._failing = False
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> Correction | None:
        """What is to be applied to a batch; None where nobody has answered anything."""
        return self._current

    def follow(self, model: str, reference_version: str) -> None:
        """Take the correction of this model and set, and look for a newer one every few seconds from now on."""
        with self._lock:
            if self._followed != (model, reference_version):
                self._followed, self._current, self._seen = (model, reference_version), None, None
        self.look()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(1.0)
        self._connection.close()

    def look(self) -> None:
        """Take over what has changed since. What is at hand stays where Redis does not answer or has nonsense."""
        with self._lock:
            if self._followed is None:
                return
            try:
                there = get_digest(self._connection, *self._followed)
                if there != self._seen:
                    found = None if there is None else get(self._connection, *self._followed)
                    self._take(found, there)
                self._failing = False
            except (redis.RedisError, TrifidError) as error:
                if not self._failing:
                    self._failing = True
                    log.warning("answers about objects are not taken over until this succeeds: %s", error)

    def _take(self, found: Correction | None, there: str | None) -> None:
        self._current, self._seen = found, there
        many = 0 if found is None else len(found)
        FEEDBACK_USED.set(many)
        FEEDBACK_LEARNED.set(0.0 if found is None else datetime_of(found.made).timestamp())
        log.info("anomaly scores are corrected by %d answers", many)

    def _run(self) -> None:
        while not self._end.wait(_LOOK_S):
            try:
                self.look()
            except Exception:  # whatever it is, the stream goes on
                log.exception("answers about objects are not taken over")


def with_answers(combined: Combined, correction: Correction, vectors: NDArray[np.float32]) -> Combined:
    """Combined scores with those after the answers beside them, and why in words; ``vectors`` (n, 3, d)."""
    found = correction.apply(combined.score, vectors)
    raised, lowered = found.change > 0, found.change < 0
    answers = np.where(lowered, -found.answers, found.answers)
    there = ~np.isnan(combined.score)
    FEEDBACK_APPLIED.labels("raised").inc(int((raised & there).sum()))
    FEEDBACK_APPLIED.labels("lowered").inc(int((lowered & there).sum()))
    FEEDBACK_APPLIED.labels("unchanged").inc(int((~raised & ~lowered & there).sum()))
    reasons = list(combined.reasons)
    for row in np.flatnonzero((raised | lowered) & there).tolist():
        reasons[row] = f"{reasons[row]}; {said(int(answers[row]))}"
    return replace(combined, reasons=reasons, after_answers=found.score, answers=answers)


def said(answers: int) -> str:
    """What ``answers``, negative where they lowered a score, have done, for people."""
    many = "1 answer" if abs(answers) == 1 else f"{abs(answers)} answers"
    return f"{'raised' if answers > 0 else 'lowered'} by {many} about similar objects"
