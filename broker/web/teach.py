"""From answers to what workers apply: the evidence of each answer, what is learned of it, and the list in its order."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import redis
import sqlalchemy as sa
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.database import EVIDENCE, insert_missing
from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError
from broker.feedback.answers import teaches
from broker.feedback.learned import get, get_digest, put
from broker.feedback.learner import Corrected, Correction, digest, learn
from broker.metrics import FEEDBACK_FAILURES
from broker.redis_client import RedisConnection
from broker.similar.search import stored_vectors
from broker.similar.sets import Sets
from broker.web import feedback
from broker.web.anomalies import Candidates, Effect, Space, corrected, name_of, order_of, space_of, unusable
from broker.web.feedback import Answer
from broker.web.index import Index

log = logging.getLogger(__name__)

R = TypeVar("R")
_SYNC_S: Final = 5.0
_CANDIDATES: Final = 500
"""Objects of the index, by their combined score, that the list is put in order of; and others, like what was answered
to be interesting."""
_LIKE: Final = 40
"""Neighbours of an interesting object that are candidates, too, of the latest so many."""
_LATEST: Final = 10
_RECENT: Final = 50
"""Latest annotations of candidates, most of which are of the model that is served."""
_FRESH_S: Final = 20.0
_REST_S: Final = 5.0
TOP: Final = 50


class Teacher:
    """Learns from the answers in the database, and hands it to the workers through Redis."""

    def __init__(self, index: Index, connection: RedisConnection) -> None:
        """``connection`` needs the right to write ``trifid:feedback:*``."""
        self._index, self._engine, self._connection = index, index.engine, connection
        self._lock = threading.RLock()
        self._state: tuple[Any, ...] | None = None
        self._learned: dict[Space, Correction] = {}
        self._candidates: tuple[float, Candidates | None] = (-np.inf, None)
        self._failing = False
        self._silent: tuple[float, str] | None = None
        """Until when Redis is not asked, by the monotonic clock, and why."""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Keep what workers have up to date, whoever answers and whatever Redis forgets."""
        self._thread = threading.Thread(target=self._run, name="teacher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and close the connection."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._connection.close()

    def correction(self, space: Space) -> Correction | None:
        """What the answers teach for a space; None where there are none of it."""
        self._relearn()
        return self._learned.get(space)

    def answer(
        self, survey: str, object_id: str, kind: str, label: str | None, note: str, by: str
    ) -> tuple[Answer, Effect]:
        """Keep an answer, learn from it, and say what it changed."""
        with self._lock:
            before = self._now()
            answer = feedback.add(self._engine, survey, object_id, kind, label, note, by)
            if teaches(kind, label) is None:
                why_not: str | None = "what is said to be of none of the ten classes is neither interesting nor boring"
            else:
                why_not = self._collect([answer])
            effect = self._effect(survey, object_id, before, why_not)
            if effect.scores is not None:
                feedback.note_effect(self._engine, answer.number, effect.scores, effect.ranks)
            return answer, effect

    def undo(self, survey: str, object_id: str, by: str) -> tuple[Answer, Effect] | None:
        """Withdraw somebody's latest answer about an object, and say what that changed; None where there is none."""
        with self._lock:
            before = self._now()
            answer = feedback.withdraw(self._engine, survey, object_id, by)
            return None if answer is None else (answer, self._effect(survey, object_id, before, None))

    def anomalies(self, limit: int = TOP) -> tuple[Candidates | None, Corrected | None, list[int]]:
        """Candidates, their scores after the answers, and the rows of the ``limit`` most anomalous ones in order."""
        with self._lock:
            candidates = self._fresh()
            if candidates is None:
                return None, None, []
            after = corrected(candidates, self.correction(candidates.space))
            return candidates, after, order_of(after.score)[:limit]

    def sync(self) -> str | None:
        """Learn what is new, and give workers what they do not have; why that cannot be, None where it is done."""
        try:
            with self._lock:
                self._relearn()
                self._of_redis(self._tell)
        except (TrifidError, redis.RedisError) as error:
            FEEDBACK_FAILURES.inc()
            if not self._failing:
                log.warning("workers are not told what was learned from answers, until this succeeds: %s", error)
            self._failing = True
            return str(error)
        self._failing = False
        return None

    def _tell(self) -> None:
        for space, correction in self._learned.items():
            if not self._there(space, correction):
                put(self._connection, correction)

    def _of_redis(self, ask: Callable[[], R]) -> R:
        """What Redis answers; where it did not a moment ago, the same error at once.

        Whoever answers waits for Redis while others wait for them, in threads that all pages share.
        """
        if self._silent is not None and time.monotonic() < self._silent[0]:
            raise DependencyUnavailableError(self._silent[1])
        try:
            found = ask()
        except DependencyUnavailableError as error:
            self._silent = time.monotonic() + _REST_S, str(error)
            raise
        self._silent = None
        return found

    def _there(self, space: Space, correction: Correction) -> bool:
        """Whether workers have it, or the same of another process, whose machine has other rounding errors."""
        there = get_digest(self._connection, *space)
        if there is None or there == digest(correction.to_bytes()):
            return there is not None
        try:
            found = get(self._connection, *space)
        except ConfigurationError:
            return False
        return found is not None and found.teaches_as(correction)

    def _run(self) -> None:
        looked = -np.inf
        while not self._end.wait(_SYNC_S):
            try:
                if time.monotonic() - looked > 60.0:  # of another model, as after a promotion, or of what came later
                    looked = time.monotonic()
                    with self._lock:
                        self._collect(feedback.counting(self._engine))
                self.sync()
            except Exception as error:  # whatever it is, the pages go on
                log.warning("answers: %s", error, exc_info=not isinstance(error, sa.exc.SQLAlchemyError))

    def _relearn(self) -> None:
        state = feedback.state(self._engine)
        if state == self._state:
            return
        with self._lock:
            counting = {answer.number: answer for answer in feedback.counting(self._engine)}
            with self._engine.connect() as connection:
                rows = connection.execute(sa.select(EVIDENCE).order_by(EVIDENCE.c.answer)).mappings().all()
            made = max((value for value in state[1:2] if value is not None), default=0.0)
            found: dict[Space, list[Any]] = {}
            for row in rows:
                own = found.setdefault((row["model"], row["reference_version"]), [])
                answer = counting.get(row["answer"])
                if answer is not None and teaches(answer.kind, answer.label) is not None:
                    own.append(row)
            self._learned = {space: _learn(space, own, counting, made) for space, own in found.items()}
            self._state = state

    def _collect(self, answers: Sequence[Answer]) -> str | None:
        """Keep of answers that have none the evidence in the space of their objects' latest annotations.

        Why there is none of the last of them, None where there is.
        """
        with self._engine.connect() as connection:
            numbers = [answer.number for answer in answers]
            asked = sa.select(EVIDENCE.c.answer, EVIDENCE.c.model, EVIDENCE.c.reference_version).where(
                EVIDENCE.c.answer.in_(numbers)
            )
            there = {tuple(row) for row in connection.execute(asked)}
        why_not = None
        rows = []
        for answer in answers:
            record = self._index.record(answer.survey, answer.object_id)
            why_not = unusable(record)
            if record is None or why_not is not None:
                continue
            space = space_of(record)
            if (answer.number, *space) in there:
                continue
            try:
                (vectors,) = self._vectors(space[0], [(answer.survey, answer.object_id)])
            except (TrifidError, redis.RedisError) as error:
                why_not = f"its embeddings cannot be read now: {error}"
                continue
            if vectors is None:
                why_not = "its embeddings are not kept (docs/similar.md)"
                continue
            rows.append(
                {
                    "answer": answer.number, "model": space[0], "reference_version": space[1],
                    "score": record["combinedAnomaly"], "vectors": vectors.astype("<f2").tobytes(),
                }
            )  # fmt: skip
        if rows:
            with self._engine.begin() as connection:
                # Another process on this database looks for the same.
                key = ("answer", "model", "reference_version")
                connection.execute(insert_missing(connection, EVIDENCE, key), rows)
            self._state = None
        return why_not

    def _vectors(self, model: str, names: Sequence[tuple[str, str]]) -> list[NDArray[np.float32] | None]:
        """Embeddings (3, d) by modality of objects that are kept; None of others."""
        found = self._of_redis(lambda: stored_vectors(Sets(self._connection, model), names))
        return [None if kinds is None else _stacked(kinds) for kinds in found]

    def _fresh(self) -> Candidates | None:
        since, candidates = self._candidates
        if time.monotonic() - since > _FRESH_S:
            candidates = self._gather()
            self._candidates = time.monotonic(), candidates
        return candidates

    def _with(self, survey: str, object_id: str) -> Candidates | None:
        """The candidates, an object among them, where it is of their space."""
        candidates = self._fresh()
        if candidates is None or candidates.row_of((survey, object_id)) is not None:
            return candidates
        record = self._index.record(survey, object_id)
        own = [] if record is None or unusable(record) else self._of_space(candidates.space, [record])
        if not own:
            return candidates
        more = Candidates(
            candidates.space,
            [*candidates.records, own[0][0]],
            np.append(candidates.score, own[0][0]["combinedAnomaly"]),
            np.concatenate([candidates.vectors, own[0][1][None]]),
        )
        self._candidates = self._candidates[0], more
        return more

    def _gather(self) -> Candidates | None:
        records = self._index.most_anomalous(_CANDIDATES)
        records = [record for record in records if unusable(record) is None]
        if not records:
            return None
        # Not that of the very latest: a canary has a share of the objects.
        latest = sorted(records, key=lambda record: str(record["brokerPublishTimestamp"]))[-_RECENT:]
        space = Counter(space_of(record) for record in latest).most_common(1)[0][0]
        there = {(record["survey"], record["objectId"]) for record in records}
        for name in self._like_interesting(space):
            if name not in there and (record := self._index.record(*name)) is not None and unusable(record) is None:
                records.append(record)
                there.add(name)
        found = self._of_space(space, records)
        if not found:
            return None
        score = np.array([record["combinedAnomaly"] for record, _ in found], np.float64)
        return Candidates(space, [record for record, _ in found], score, np.stack([vectors for _, vectors in found]))

    def _of_space(
        self, space: Space, records: Iterable[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], NDArray[np.float32]]]:
        """Records of one space with their embeddings, zeros where these are not kept: then answers change nothing."""
        own = [record for record in records if space_of(record) == space]
        try:
            vectors = self._vectors(space[0], [(record["survey"], record["objectId"]) for record in own])
        except (TrifidError, redis.RedisError) as error:
            log.warning("the list of anomalies is without answers, as embeddings cannot be read: %s", error)
            vectors = [None] * len(own)
        width = next((one.shape[1] for one in vectors if one is not None), 1)
        none = np.zeros((len(MODALITIES), width), np.float32)
        return [(record, none if one is None else one) for record, one in zip(own, vectors, strict=True)]

    def _like_interesting(self, space: Space) -> list[tuple[str, str]]:
        """Objects whose light curves, spectra or metadata are like those that were answered to be interesting."""
        correction = self.correction(space)
        if correction is None:
            return []
        sets = Sets(self._connection, space[0])
        words: list[tuple[Any, ...]] = []
        for row in np.flatnonzero(correction.weights > 0)[-_LATEST:].tolist():
            for column, kind in enumerate(MODALITIES):
                vector = correction.vectors[row, column]
                if vector.any():
                    blob = vector.astype("<f4").tobytes()
                    words += [
                        ("VSIM", sets.key(shard, kind), "FP32", blob, "COUNT", _LIKE) for shard in range(sets.shards)
                    ]
        try:
            replies = self._of_redis(lambda: self._connection.commands(words))
        except (TrifidError, redis.RedisError) as error:
            log.warning("the list of anomalies is without what is like interesting objects: %s", error)
            return []
        elements = dict.fromkeys(element.decode() for reply in replies for element in reply or ())
        return [(survey, name) for survey, _, name in (element.partition(":") for element in elements)]

    def _now(self) -> dict[Space, Correction]:
        self._relearn()
        return dict(self._learned)

    def _effect(self, survey: str, object_id: str, before: dict[Space, Correction], why_not: str | None) -> Effect:
        """What is another since ``before``, in the list as it is put together now."""
        workers = self.sync()
        self._candidates = -np.inf, None
        candidates = self._with(survey, object_id)
        if candidates is None:
            return Effect(why_not is None, why_not, workers)
        scores = [corrected(candidates, learned.get(candidates.space)).score for learned in (before, self._learned)]
        orders = [order_of(score) for score in scores]
        tops = [[name_of(candidates.records[row]) for row in order[:TOP]] for order in orders]
        row = candidates.row_of((survey, object_id))
        return Effect(
            why_not is None,
            why_not,
            workers,
            None if row is None else (float(scores[0][row]), float(scores[1][row])),
            (None, None) if row is None else (orders[0].index(row) + 1, orders[1].index(row) + 1),
            tuple(name for name in tops[1] if name not in tops[0]),
            tuple(name for name in tops[0] if name not in tops[1]),
        )


def _stacked(kinds: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """(3, d) of what is kept of one object by kind."""
    width = len(next(iter(kinds.values())))
    none = np.zeros(width)
    return np.stack([kinds.get(kind, none) for kind in MODALITIES]).astype(np.float32)


def _learn(space: Space, rows: Sequence[Any], counting: dict[int, Answer], made: float) -> Correction:
    width = max((len(row["vectors"]) for row in rows), default=0) // (2 * len(MODALITIES))
    rows = [row for row in rows if len(row["vectors"]) == 2 * len(MODALITIES) * width]
    vectors = np.zeros((len(rows), len(MODALITIES), width), np.float32)
    for number, row in enumerate(rows):
        vectors[number] = np.frombuffer(row["vectors"], "<f2").reshape(len(MODALITIES), width)
    score = np.array([row["score"] for row in rows], np.float64)
    answers = [counting[row["answer"]] for row in rows]
    interesting = np.array([bool(teaches(answer.kind, answer.label)) for answer in answers], np.bool_)
    made = max([made, *(answer.created for answer in answers)])
    return learn(*space, vectors, score, interesting, made)
