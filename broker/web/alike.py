"""Similar objects over HTTP: of an object that is kept, and of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, File, HTTPException, Query, Request, Response, UploadFile

from broker.errors import ConfigurationError, DependencyUnavailableError, InputFileError
from broker.similar.among import FORMS, Among, among
from broker.similar.answer import MAX_LIMIT, Answer, By
from broker.similar.query import like_object, like_vectors
from broker.similar.search import Similar, UnknownToSetsError
from broker.similar.sets import OFF
from broker.web.api import ObjectId, Survey, as_json, busy, limit_model
from broker.web.services import Parts, Services, requires
from broker.web.upload import Kind

router = APIRouter(prefix="/api/v1", dependencies=[Depends(requires("read"))])

Others = Annotated[
    By | None,
    Query(
        description="Which embeddings of the others are compared: of all that is known together, or of one modality."
    ),
]
Own = Annotated[
    By | None,
    Query(description="With which of its own; that of by where not given. A spectrum finds light curves so."),
]
Conditions = Annotated[
    list[str], Query(alias="among", max_length=20, description=f"Only these, all have to hold: {FORMS}.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
ON_PAGE: Final = 10
_NO_MODEL: Final = (
    "similar objects: this server has no manifest of the model (inference.model_repository; docs/similar.md)"
)
R = TypeVar("R")


@router.get("/objects/{survey}/{object_id}/similar", summary="The live objects most similar to it")
def similar_to_object(
    parts: Parts,
    survey: Survey,
    object_id: ObjectId,
    by: Others = None,
    of: Own = None,
    conditions: Conditions = [],  # noqa: B006 - FastAPI copies it
    limit: Limit = ON_PAGE,
) -> Response:
    """By the cosine between embeddings, 1 for the same; ``complete`` is false where there may be more."""
    meant = _conditions(conditions)
    similar = available(parts)
    answer = _asked(lambda: like_object(similar, (survey, object_id), by or "all", of, meant, limit))
    return as_json({"by": by or "all", "of": of or by or "all", **_record(answer)})


@router.post("/similar/lightcurve", summary="The live objects most similar to light curves of a table")
def similar_to_light_curve(
    request: Request,
    parts: Parts,
    file: Annotated[UploadFile, File()],
    by: Others = None,
    of: Own = None,
    conditions: Conditions = [],  # noqa: B006
    limit: Limit = ON_PAGE,
) -> Response:
    """A table as `trifid classify --lightcurves` reads it; at most 100 objects of it."""
    return as_json(_similar_to_file(request, parts, "lightcurve", file, by or "light-curve", of, conditions, limit))


@router.post("/similar/spectrum", summary="The live objects most similar to spectra")
def similar_to_spectrum(
    request: Request,
    parts: Parts,
    file: Annotated[UploadFile, File()],
    by: Others = None,
    of: Own = None,
    conditions: Conditions = [],  # noqa: B006
    limit: Limit = ON_PAGE,
) -> Response:
    """A file as `trifid spectra` reads it; with by=light-curve the light curves of what has such a spectrum."""
    return as_json(_similar_to_file(request, parts, "spectrum", file, by or "spectrum", of, conditions, limit))


def on_page(parts: Services, survey: str, object_id: str, by: str) -> tuple[Answer | None, str | None]:
    """The similar objects that an object's page shows; or why there are none to show."""
    try:
        return _asked(lambda: like_object(available(parts), (survey, object_id), by, None, Among(), ON_PAGE)), None
    except HTTPException as error:
        text = str(error.detail)
        return None, text[:1].upper() + text[1:]


def _similar_to_file(
    request: Request,
    parts: Services,
    kind: Kind,
    file: UploadFile,
    by: str,
    of: str | None,
    conditions: list[str],
    limit: int,
) -> dict[str, Any]:
    meant = _conditions(conditions)
    available(parts)  # before the model is run
    limit_model(request, parts)
    content, name = file.file.read(), file.filename or "upload"
    try:
        found = busy(lambda: parts.model.vectors(kind, name, content))
    except InputFileError as error:
        raise HTTPException(422, str(error)) from error
    # Of the version that made the embeddings: another may be served by now.
    similar = available(parts, found["version"])
    answers = []
    for title, vectors in found["vectors"]:
        try:
            answer = like_vectors(similar, vectors, by, of, meant, limit)
        except ConfigurationError as error:
            answers.append({"name": title, "objects": [], "complete": True, "problem": str(error)})
        except DependencyUnavailableError as error:
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
        else:
            answers.append({"name": title, **_record(answer), "problem": None})
    return {"by": by, "answers": answers, "remarks": found["remarks"]}


def _record(answer: Answer) -> dict[str, Any]:
    return {"objects": [match.record() for match in answer.matches], "complete": answer.complete}


def _conditions(given: list[str]) -> Among:
    try:
        return among(given)
    except ConfigurationError as error:
        raise HTTPException(422, str(error)) from error


def available(parts: Services, version: str | None = None) -> Similar:
    """What is asked, of a version of the model or of the served one; raises HTTPException 503 where it cannot be."""
    if parts.similar is None:
        raise HTTPException(503, _NO_MODEL if parts.settings.similar.enabled else OFF)
    try:
        similar = parts.similar.now() if version is None else parts.similar.of(version)
        similar.check()
    except (ConfigurationError, DependencyUnavailableError) as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
    return similar


def _asked(ask: Callable[[], R]) -> R:
    try:
        return ask()
    except UnknownToSetsError as error:
        raise HTTPException(404, str(error)) from error
    except (ConfigurationError, DependencyUnavailableError) as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
