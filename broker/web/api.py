"""The HTTP API, under ``/api/v1``; described by ``/openapi.json``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, File, HTTPException, Path, Query, Request, Response, UploadFile
from pydantic import BaseModel, Field

from broker import __version__
from broker.errors import InputFileError, TrifidError
from broker.scopes import SCOPES
from broker.taxonomy import CLASSES, NOT_CLASSIFIED, OTHER, OUTPUT_NAMES, PARENT_CLASSES, PARENT_OF
from broker.times import mjd_now
from broker.tokens import TokenExistsError
from broker.web import feedback, objects
from broker.web.index import LONGEST_NAME
from broker.web.model import BusyError
from broker.web.night import bounds_of
from broker.web.objects import Known
from broker.web.parameters import SearchQuery
from broker.web.search import Page, SearchError, search
from broker.web.services import Parts, Services, client_of, limit, requires

log = logging.getLogger(__name__)
api = APIRouter(prefix="/api/v1", dependencies=[Depends(requires("read"))])

Survey = Annotated[str, Path(max_length=32, description="ztf, lsst or elasticc.")]
ObjectId = Annotated[str, Path(max_length=LONGEST_NAME, description="The object's name in the survey.")]
Form = Annotated[Literal["json", "csv"], Query(alias="format")]
_OR_CSV: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
_REACHED: Final = 5.0
"""Seconds for which an answer about Redis holds."""


class FoundObject(BaseModel):
    """An object as its latest annotation has it; fields as in annotation.avsc (docs/annotation.md)."""

    survey: str
    objectId: str  # noqa: N815 - the published name, as below
    ra: float = Field(description="ICRS degrees, as dec.")
    dec: float
    class_: str = Field(alias="class", description="The most probable class.")
    probability: float
    parent: str | None
    parentProbability: float | None  # noqa: N815
    anomalyScore: float | None  # noqa: N815
    detections: int
    period: float | None = Field(description="Days.")
    known: bool = Field(description="Whether a catalogue of known variable stars has it.")
    catalogueDisagrees: bool  # noqa: N815
    mjd: float = Field(description="Of the latest alert, MJD UTC.")
    publishedMjd: float = Field(description="When its annotation was published, MJD UTC.")  # noqa: N815
    distanceArcsec: float | None = Field(None, description="From the middle of the cone.")  # noqa: N815


class FoundObjects(BaseModel):
    """A page of a search."""

    objects: list[FoundObject]
    cursor: str | None = Field(description="Gives the next page; null at the end.")


class NewToken(BaseModel):
    """A token to be made."""

    name: str = Field(min_length=1, max_length=128)
    scopes: set[Literal["read", "feedback", "watch", "admin"]] = Field(min_length=1)
    days: float | None = Field(None, gt=0, le=36_500, description="Until it expires; null for never.")


@api.get("/objects", response_model=FoundObjects, response_model_by_alias=True, summary="Search, by place or without")
def find_objects(parts: Parts, asked: SearchQuery) -> Any:
    """Objects whose latest annotation meets all conditions, a page at a time."""
    page = run_search(parts, asked)
    return {"objects": page.objects, "cursor": page.cursor}


def run_search(parts: Services, asked: SearchQuery) -> Page:
    """As the API and the pages search; raises HTTPException 422."""
    try:
        return search(parts.index, asked.query(), asked.limit, asked.cursor)
    except SearchError as error:
        raise HTTPException(422, str(error)) from error


@api.get("/objects/{survey}/{object_id}", summary="All that is known of an object")
def object_(parts: Parts, survey: Survey, object_id: ObjectId) -> Response:
    """Latest annotation, history of annotations, light curve, spectrum, catalogue values, feedback."""
    record = parts.index.record(survey, object_id)
    if record is None:
        raise missing(parts, survey, object_id)
    known, problem = stored(parts, survey, object_id, record)
    state = None if known is None else known.state
    return as_json(
        {
            "survey": survey,
            "objectId": object_id,
            "annotation": record,
            "history": parts.index.history(survey, object_id),
            "lightCurve": None if state is None else objects.points(state),
            "spectrum": None if state is None or state.spectrum is None else objects.spectrum(state.spectrum),
            "catalogueValues": {} if state is None else objects.catalogue_values(state),
            "associatedObjects": [] if state is None else list(state.associated),
            "feedback": [said.record() for said in feedback.of(parts.index.engine, survey, object_id)],
            "problems": [] if problem is None else [problem],
        }
    )


@api.get("/objects/{survey}/{object_id}/lightcurve", responses=_OR_CSV, summary="Its light curve, as JSON or CSV")
def light_curve(parts: Parts, survey: Survey, object_id: ObjectId, form: Form = "json") -> Response:
    """Each point: MJD UTC, band, detection, forced or limit, AB magnitude, flux (nJy), and whether that is total."""
    columns = objects.points(_known(parts, survey, object_id).state)
    return _columns(columns, form, f"{survey}-{object_id}-lightcurve")


@api.get("/objects/{survey}/{object_id}/spectrum", responses=_OR_CSV, summary="Its spectrum, as JSON or CSV")
def spectrum(parts: Parts, survey: Survey, object_id: ObjectId, form: Form = "json") -> Response:
    """Vacuum wavelength in Angstrom, flux and error in the spectrum's own unit."""
    found = _known(parts, survey, object_id).state.spectrum
    if found is None:
        raise HTTPException(404, f"no spectrum of {survey}:{object_id}")
    return _columns(objects.spectrum(found), form, f"{survey}-{object_id}-spectrum")


@api.get("/objects/{survey}/{object_id}/history", responses=_OR_CSV, summary="Its annotations, as JSON or CSV")
def history(parts: Parts, survey: Survey, object_id: ObjectId, form: Form = "json") -> Response:
    """The annotations of the retention time, the oldest first."""
    rows = parts.index.history(survey, object_id)
    if not rows:
        raise missing(parts, survey, object_id)
    if form == "json":
        return as_json({"annotations": rows})
    columns: dict[str, Sequence[Any]] = {
        name: [row[name] for row in rows] for name in rows[0] if name not in ("modalities", "probabilities")
    }
    columns["modalities"] = [" ".join(row["modalities"]) for row in rows]
    columns |= {name: [row["probabilities"].get(name) for row in rows] for name in OUTPUT_NAMES}
    return _columns(columns, form, f"{survey}-{object_id}-annotations")


@api.get("/objects/{survey}/{object_id}/modalities", summary="What each modality says by itself")
def modalities(request: Request, parts: Parts, survey: Survey, object_id: ObjectId) -> Response:
    """The model of this server on the present state: one annotation for each modality, and one for all."""
    known = _known(parts, survey, object_id)
    limit_model(request, parts)
    return as_json(busy(lambda: parts.model.by_modality(known)))


@api.get("/nights/{night}", summary="Statistics of a night")
def night(parts: Parts, night: Annotated[str, Path(max_length=10)]) -> dict[str, Any]:
    """``tonight``, or YYYY-MM-DD: from noon UTC of that day to the next, as Rubin's dayObs; by publication."""
    return statistics(parts, night)


def statistics(parts: Services, night: str) -> dict[str, Any]:
    """As ``night``."""
    try:
        bounds = bounds_of(night)
    except ValueError as error:
        raise HTTPException(422, f"night: {error}") from None
    found = parts.index.night(bounds.start, bounds.end)
    return {"night": bounds.day, "startMjd": bounds.start, "endMjd": bounds.end, **found}


@api.get("/status", summary="How the service is")
def status(parts: Parts) -> dict[str, Any]:
    """Redis, the reading of annotations, and what the index holds."""
    follower = parts.follower
    return {
        "version": __version__,
        "nowMjd": mjd_now(),
        "redis": _redis(parts) or "ok",
        "annotations": "ok" if follower is None else follower.problem or "ok",
        "index": parts.index.contents(),
        "retentionDays": parts.settings.web.retention_days,
    }


_asked: dict[int, tuple[float, str | None]] = {}


def _redis(parts: Services) -> str | None:
    """Why the state cannot be read; None where it can. Redis is asked once in a while only."""
    now = time.monotonic()
    since, problem = _asked.get(id(parts), (-_REACHED, None))
    if now - since >= _REACHED:
        try:
            parts.store.check()
            problem = None
        except TrifidError as error:
            problem = str(error)
        _asked.clear()
        _asked[id(parts)] = now, problem
    return problem


@api.get("/classes", summary="The taxonomy")
def classes() -> dict[str, Any]:
    """Classes and parents, with what they are and ELAsTiCC's numbers."""
    return {
        "classes": [
            {
                "class": c.name,
                "classId": c.class_id,
                "parent": PARENT_OF.get(c.name),
                "description": c.description,
                "elasticcId": c.elasticc_id,
            }
            for c in (*CLASSES, OTHER, NOT_CLASSIFIED)
        ],
        "parents": [
            {"parent": p.name, "description": p.description, "classes": p.classes, "elasticcId": p.elasticc_id}
            for p in PARENT_CLASSES
        ],
    }


@api.post("/classify/lightcurve", summary="Classify a table of light curves")
def classify_light_curve(request: Request, parts: Parts, file: Annotated[UploadFile, File()]) -> Response:
    """A table as `trifid classify --lightcurves` reads it (docs/lightcurves.md); at most 100 objects of it."""
    return as_json(classify(request, parts, "lightcurve", file))


@api.post("/classify/spectrum", summary="Classify spectra")
def classify_spectrum(request: Request, parts: Parts, file: Annotated[UploadFile, File()]) -> Response:
    """A file as `trifid spectra` reads it (docs/spectra.md); at most 100 spectra of it."""
    return as_json(classify(request, parts, "spectrum", file))


def classify(request: Request, parts: Services, kind: str, file: UploadFile) -> dict[str, Any]:
    """As the API and the page classify an upload; raises HTTPException 422 where it cannot be read."""
    limit_model(request, parts)
    content, name = file.file.read(), file.filename or "upload"
    run = parts.model.light_curves if kind == "lightcurve" else parts.model.spectra
    try:
        return busy(lambda: run(name, content))
    except InputFileError as error:
        raise HTTPException(422, str(error)) from error


admin = APIRouter(prefix="/api/v1/admin", dependencies=[Depends(requires("admin"))])


@admin.get("/tokens", summary="Names and scopes of all tokens (scope admin)")
def tokens(parts: Parts) -> dict[str, Any]:
    """Never the tokens themselves: they are not stored."""
    return {
        "scopes": SCOPES,
        "tokens": [
            {"name": t.name, "scopes": sorted(t.scopes), "createdMjd": t.created, "expiresMjd": t.expires}
            for t in parts.tokens.all()
        ],
    }


@admin.post("/tokens", status_code=201, responses={409: {}}, summary="Make a token (scope admin)")
def create_token(parts: Parts, new: NewToken) -> dict[str, str]:
    """The answer is the only place where it is ever shown."""
    try:
        return {"name": new.name, "token": parts.tokens.create(new.name, frozenset(new.scopes), new.days)}
    except TokenExistsError as error:
        raise HTTPException(409, str(error)) from error
    except TrifidError as error:
        raise HTTPException(422, str(error)) from error


@admin.delete("/tokens/{name}", status_code=204, summary="Revoke a token (scope admin)")
def revoke_token(parts: Parts, name: Annotated[str, Path(max_length=128)]) -> Response:
    """From then on requests with it are refused."""
    if not parts.tokens.revoke(name):
        raise HTTPException(404, f"no token {name!r}")
    return Response(status_code=204)


def missing(parts: Services, survey: str, object_id: str) -> HTTPException:
    """404, which names the surveys that have such an object."""
    others = [f"{other}:{object_id}" for other in parts.index.surveys_of(object_id) if other != survey]
    hint = f"; there is {', '.join(others)}" if others else ""
    return HTTPException(404, f"nothing is known of {survey}:{object_id}{hint}")


def as_json(content: dict[str, Any]) -> Response:
    """An answer in JSON (RFC 8259)."""
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json")


def _columns(columns: Mapping[str, Sequence[Any]], form: str, name: str) -> Response:
    if form == "json":
        return as_json(dict(columns))
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name if c.isascii())
    headers = {"Content-Disposition": f'attachment; filename="{safe}.csv"'}
    return Response(objects.as_csv(columns), media_type="text/csv; charset=utf-8", headers=headers)


def stored(parts: Services, survey: str, object_id: str, record: dict[str, Any]) -> tuple[Known | None, str | None]:
    """What Redis has of an object of the index, and why it cannot be told: no answer, a right that is missing."""
    try:
        return objects.find(parts.store, survey, object_id, record["ra"], record["dec"]), None
    except TrifidError as error:
        return None, f"no light curve and no spectrum now: {error}"


def _known(parts: Services, survey: str, object_id: str) -> Known:
    record = parts.index.record(survey, object_id)
    if record is None:
        raise missing(parts, survey, object_id)
    known, problem = stored(parts, survey, object_id, record)
    if problem is not None:
        raise HTTPException(503, problem, {"Retry-After": "5"})
    if known is None:
        raise HTTPException(404, f"no state is stored of {survey}:{object_id} any more")
    return known


def limit_model(request: Request, parts: Services) -> None:
    """Count a request that runs the model; raises HTTPException 429."""
    limit(parts.classifications, client_of(request))


def busy(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a run of the model gives; raises HTTPException 503 where it cannot be, InputFileError as it comes."""
    try:
        return run()
    except BusyError:
        raise HTTPException(503, "the model is busy with others' requests", {"Retry-After": "5"}) from None
    except InputFileError:
        raise
    except TrifidError as error:  # the model cannot be loaded
        log.error("model: %s", error)
        raise HTTPException(503, f"the model cannot be used: {error}") from error
