"""Answers about objects over HTTP, and the list of anomalies in the order that they teach."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, Field

from broker.errors import ConfigurationError
from broker.feedback.answers import FORMS, MAX_NOTE, parse
from broker.metrics import FEEDBACK_ANSWERS
from broker.publish.annotation import best_of
from broker.tokens import Token
from broker.web import feedback
from broker.web.api import ObjectId, Survey, missing
from broker.web.described import ABSENT
from broker.web.feedback import MAX_SHOWN
from broker.web.services import Parts, Services, requires
from broker.web.teach import TOP

router = APIRouter(prefix="/api/v1", dependencies=[Depends(requires("read"))])
Answerer = Annotated[Token, Depends(requires("feedback"))]
_NAME: Final = Field(max_length=300, description="survey:id, as ztf:ZTF18abcdefg, or an id that one survey has.")


class NewAnswer(BaseModel):
    """What somebody answers about an object."""

    answer: str | None = Field(None, max_length=64, description=f"{FORMS}.")
    note: str = Field("", max_length=MAX_NOTE, description="Why.")
    label: str | None = Field(None, max_length=32, description="The same as class=label, as before there were others.")
    comment: str = Field("", max_length=MAX_NOTE, description="The former name of note.")


class NewAnswerAbout(NewAnswer):
    """The same, with the object."""

    object: str = _NAME


class About(BaseModel):
    """An object."""

    object: str = _NAME


@router.post(
    "/objects/{survey}/{object_id}/feedback", status_code=201, summary="Answer about an object (scope feedback)"
)
def give_feedback(
    parts: Parts, survey: Survey, object_id: ObjectId, given: NewAnswer, token: Answerer
) -> dict[str, Any]:
    """Kept under the token's name, learned from at once, and shown with the object; says what it changed."""
    if parts.index.record(survey, object_id) is None:
        raise missing(parts, survey, object_id)
    note = given.note or given.comment
    if "\0" in note:
        raise HTTPException(422, "note: a zero byte in it")
    if (given.answer is None) == (given.label is None):
        raise HTTPException(422, f"answer: give {FORMS}")
    try:
        kind, named = parse(given.answer if given.answer is not None else f"class={given.label}")
    except ConfigurationError as error:
        raise HTTPException(422, str(error)) from None
    answer, effect = parts.teacher.answer(survey, object_id, kind, named, note, token.name)
    FEEDBACK_ANSWERS.labels(kind).inc()
    return {"answer": answer.record(), "effect": effect.record(), "label": named}


@router.post("/objects/{survey}/{object_id}/feedback/undo", summary="Withdraw one's latest answer (scope feedback)")
def undo_feedback(parts: Parts, survey: Survey, object_id: ObjectId, token: Answerer) -> dict[str, Any]:
    """The answer stays in the history, and one's answer before it counts again."""
    found = parts.teacher.undo(survey, object_id, token.name)
    if found is None:
        raise HTTPException(404, f"{token.name} has no answer about {survey}:{object_id} that counts")
    FEEDBACK_ANSWERS.labels("undone").inc()
    answer, effect = found
    return {"answer": answer.record(), "effect": effect.record()}


@router.post(
    "/feedback", status_code=201, responses=ABSENT, summary="Answer about an object by its name (scope feedback)"
)
def give_feedback_about(parts: Parts, given: NewAnswerAbout, token: Answerer) -> dict[str, Any]:
    """As for one object, which needs no survey where only one has the id."""
    return give_feedback(parts, *named(parts, given.object), given, token)


@router.post(
    "/feedback/undo",
    responses=ABSENT,
    summary="Withdraw one's latest answer about an object by its name (scope feedback)",
)
def undo_feedback_about(parts: Parts, given: About, token: Answerer) -> dict[str, Any]:
    """As for one object."""
    return undo_feedback(parts, *named(parts, given.object), token)


@router.get("/feedback", responses=ABSENT, summary="Answers, withdrawn ones included")
def answers(
    parts: Parts,
    object: Annotated[str | None, Query(max_length=300, description="survey:id, or an id.")] = None,
    by: Annotated[str | None, Query(max_length=128, description="Name of a token.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = 50,
) -> dict[str, Any]:
    """The latest first."""
    survey, object_id = (None, None) if object is None else named(parts, object)
    found = feedback.find(parts.index.engine, survey=survey, object_id=object_id, by=by, limit=limit)
    return {"answers": [answer.record() for answer in found]}


@router.get("/anomalies", summary="The most anomalous objects, in the order that answers teach")
def anomalies(parts: Parts, limit: Annotated[int, Query(ge=1, le=TOP * 4)] = TOP) -> dict[str, Any]:
    """By the combined score after all answers, which change this list at once."""
    return {"objects": listed(parts, limit)}


def listed(parts: Services, limit: int) -> list[dict[str, Any]]:
    """As ``anomalies``."""
    candidates, after, rows = parts.teacher.anomalies(limit)
    if candidates is None or after is None:
        return []
    found = []
    for row in rows:
        record = candidates.records[row]
        best = best_of(record["classifications"])
        number = int(after.answers[row])
        found.append(
            {
                "survey": record["survey"], "objectId": record["objectId"], "class": best["className"],
                "probability": best["probability"], "detections": record["detections"],
                "combinedAnomaly": float(candidates.score[row]), "anomalyAfterAnswers": float(after.score[row]),
                "anomalyAnswers": -number if after.change[row] < 0 else number,
                "explanation": record["anomalyExplanation"],
            }
        )  # fmt: skip
    return found


def named(parts: Services, name: str) -> tuple[str, str]:
    """Survey and id of an object as it was written; raises HTTPException 404 where there is none, 422 for several.

    And 422 for what PostgreSQL takes for no text.
    """
    if "\0" in name:
        raise HTTPException(422, "object: a zero byte in it")
    survey, colon, object_id = name.partition(":")
    if colon and parts.index.record(survey, object_id) is not None:
        return survey, object_id
    found = parts.index.surveys_of(name)
    if len(found) > 1:
        raise HTTPException(422, f"{name!r:.80} is an object of {', '.join(found)}: write survey:id")
    if not found:
        raise HTTPException(404, f"nothing is known of {name:.80}")
    return found[0], name
