"""What people answer about objects: kept for ever, withdrawn where they want, never deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from broker.database import ANSWERS, EVIDENCE
from broker.feedback.answers import written
from broker.feedback.learner import MOST
from broker.times import mjd_now

MAX_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    number: int
    survey: str
    object_id: str
    kind: str
    label: str | None
    note: str
    by: str
    created: float
    """MJD UTC, as ``withdrawn``."""
    withdrawn: float | None
    score_before: float | None
    """The object's anomaly score before and after it, and its rank among the most anomalous, from 1."""
    score_after: float | None
    rank_before: int | None
    rank_after: int | None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.number,
            "object": f"{self.survey}:{self.object_id}",
            "answer": written(self.kind, self.label),
            "label": self.label,
            "note": self.note,
            "comment": self.note,
            "by": self.by,
            "mjd": self.created,
            "withdrawnMjd": self.withdrawn,
            "scoreBefore": self.score_before,
            "scoreAfter": self.score_after,
            "rankBefore": self.rank_before,
            "rankAfter": self.rank_after,
        }


def add(engine: sa.Engine, survey: str, object_id: str, kind: str, label: str | None, note: str, by: str) -> Answer:
    """Keep an answer. One person's latest that is not withdrawn is what counts of an object."""
    row: dict[str, Any] = {
        "survey": survey, "object_id": object_id, "kind": kind, "label": label, "note": note, "by": by,
        "created": mjd_now(),
    }  # fmt: skip
    with engine.begin() as connection:
        number = connection.execute(sa.insert(ANSWERS).values(row).returning(ANSWERS.c.id)).scalar_one()
    return Answer(number, **row, withdrawn=None, score_before=None, score_after=None, rank_before=None, rank_after=None)


def note_effect(
    engine: sa.Engine, number: int, scores: tuple[float, float], ranks: tuple[int | None, int | None]
) -> None:
    """Keep with an answer what it has changed for its object."""
    values = {
        "score_before": scores[0], "score_after": scores[1], "rank_before": ranks[0], "rank_after": ranks[1],
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.update(ANSWERS).where(ANSWERS.c.id == number).values(values))


def withdraw(engine: sa.Engine, survey: str, object_id: str, by: str) -> Answer | None:
    """Withdraw somebody's latest answer about an object, so that the one before counts again; None where there is none.

    The answer stays, with the time from which it does not count.
    """
    own = (
        (ANSWERS.c.survey == survey)
        & (ANSWERS.c.object_id == object_id)
        & (ANSWERS.c.by == by)
        & ANSWERS.c.withdrawn.is_(None)
    )
    latest = sa.select(sa.func.max(ANSWERS.c.id)).where(own).scalar_subquery()
    with engine.begin() as connection:
        changed = sa.update(ANSWERS).where(own, ANSWERS.c.id == latest).values(withdrawn=mjd_now())
        row = connection.execute(changed.returning(*ANSWERS.c)).mappings().one_or_none()
    return None if row is None else _answer(row)


def of(engine: sa.Engine, survey: str, object_id: str) -> list[Answer]:
    """All answers about an object, withdrawn ones included, the latest first."""
    return find(engine, survey=survey, object_id=object_id, limit=100)


def find(
    engine: sa.Engine,
    *,
    survey: str | None = None,
    object_id: str | None = None,
    by: str | None = None,
    limit: int = MAX_SHOWN,
) -> list[Answer]:
    """Answers, withdrawn ones included, the latest first."""
    asked = ((ANSWERS.c.survey, survey), (ANSWERS.c.object_id, object_id), (ANSWERS.c.by, by))
    conditions = [column == value for column, value in asked if value is not None]
    query = sa.select(ANSWERS).where(*conditions).order_by(ANSWERS.c.id.desc()).limit(limit)
    with engine.connect() as connection:
        return [_answer(row) for row in connection.execute(query).mappings()]


def counting(engine: sa.Engine) -> Sequence[Answer]:
    """The answers that count, the latest MOST of them and the latest last: the last of each person on each object."""
    latest = (
        sa.select(sa.func.max(ANSWERS.c.id))
        .where(ANSWERS.c.withdrawn.is_(None))
        .group_by(ANSWERS.c.survey, ANSWERS.c.object_id, ANSWERS.c.by)
    )
    query = sa.select(ANSWERS).where(ANSWERS.c.id.in_(latest)).order_by(ANSWERS.c.id.desc()).limit(MOST)
    with engine.connect() as connection:
        return [_answer(row) for row in connection.execute(query).mappings()][::-1]


def of_objects(engine: sa.Engine) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Kind and class by survey and id: the latest answer, but ``interesting`` where anybody's is."""
    found: dict[tuple[str, str], tuple[str, str | None]] = {}
    for answer in counting(engine):
        name = (answer.survey, answer.object_id)
        if found.get(name, ("", None))[0] != "interesting":
            found[name] = (answer.kind, answer.label)
    return found


def state(engine: sa.Engine) -> tuple[Any, ...]:
    """What is another after an answer came or was withdrawn, or evidence of one came, from whichever process."""
    evidence = sa.select(sa.func.count()).select_from(EVIDENCE).scalar_subquery()
    query = sa.select(
        sa.func.max(ANSWERS.c.id), sa.func.max(ANSWERS.c.withdrawn), sa.func.count(ANSWERS.c.withdrawn), evidence
    )
    with engine.connect() as connection:
        return tuple(connection.execute(query).one())


def _answer(row: Any) -> Answer:
    return Answer(row["id"], **{name: row[name] for name in Answer.__slots__ if name != "number"})
