"""The pages: rendered here, with data for the plots beside them; scripts only draw and refresh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError

from broker import sky
from broker.client.filters import Cone
from broker.feedback.answers import LABELS, MAX_NOTE, written
from broker.similar.answer import BY
from broker.taxonomy import OUTPUT_NAMES, PARENT_CLASSES
from broker.web import alike, answers, api, feedback, objects
from broker.web.parameters import SearchParameters, without_empty
from broker.web.search import Query, SearchError, search
from broker.web.services import COOKIE, Parts, Services, address_of, limit, requires
from broker.web.teach import TOP
from broker.web.templating import STATIC, page_address, render

static: Final = StaticFiles(directory=STATIC)
router = APIRouter(include_in_schema=False)
Reader = Depends(requires("read", page=True))

_NEIGHBOURS_ARCSEC: Final = 120.0
_COOKIE_DAYS: Final = 30
_FIRST: Final = {"class", "parent", "min_probability", "min_anomaly", "sort", "limit", "cursor"}
"""Conditions that are seen without opening the others."""


def page(request: Request, template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A rendered page."""
    web = request.app.state.services.settings.web
    given = {"path": request.url.path, "tokens": web.tokens_required, "signed_in": COOKIE in request.cookies}
    return HTMLResponse(render(template, **given | values), code)


def is_page(request: Request) -> bool:
    """Whether a person looks at it, and not a program."""
    return not request.url.path.startswith(("/api/", "/static/", "/metrics", "/openapi.json"))


def refused(request: Request, status: int, detail: str, headers: Mapping[str, str] | None) -> Response:
    """An error as a page."""
    answer = page(request, "error.html", status, status=status, detail=detail)
    answer.headers.update(headers or {})
    return answer


@router.get("/", dependencies=[Reader])
def live(request: Request, parts: Parts) -> Response:
    """The latest annotations, with filters."""
    given = without_empty(request.query_params)
    problem, found, cursor = None, [], None
    try:
        asked = SearchParameters.model_validate(given)
        answer = api.run_search(parts, asked)
        found, cursor = answer.objects, answer.cursor
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    except HTTPException as error:
        problem = str(error.detail)
    more = None if cursor is None else "?" + urlencode(given | {"cursor": cursor})
    values = {"objects": found, "given": given, "problem": problem, "more": more, "cone": "ra" in given}
    if "fragment" in request.headers:
        return page(request, "_objects.html", 422 if problem else 200, **values)
    return page(
        request,
        "live.html",
        422 if problem else 200,
        classes=OUTPUT_NAMES,
        parents=PARENT_CLASSES,
        opened=bool(given.keys() - _FIRST),
        **values,
    )


@router.get("/go", dependencies=[Reader])
def go(parts: Parts, q: str = "") -> Response:
    """From the box at the top: to an object by its name, or to a cone at a position."""
    text = q.strip()[:256]
    survey, colon, name = text.partition(":")
    if colon and parts.index.record(survey, name) is not None:
        return RedirectResponse(page_address(survey, name), 303)
    if surveys := parts.index.surveys_of(text):
        return RedirectResponse(page_address(surveys[0], text), 303)
    if (place := _place(text)) is not None:
        return RedirectResponse("/?" + urlencode({"ra": place[0], "dec": place[1], "radius": "60"}), 303)
    raise HTTPException(404, f"{text!r} is no object of this index, and no position such as 17:57:48.5 +04:41:36")


def _place(text: str) -> tuple[str, str] | None:
    """Right ascension and declination as they are written one behind the other."""
    words = text.replace(",", " ").split()
    half = len(words) // 2
    ra, dec = " ".join(words[:half]), " ".join(words[half:])
    found = (sky.angle(ra, hours=True), sky.angle(dec, hours=False)) if half and len(words) in (2, 6) else (None, None)
    return None if None in found else (ra, dec)


@router.get("/object/{survey}/{object_id}", dependencies=[Reader])
def object_page(request: Request, parts: Parts, survey: str, object_id: str, by: alike.Others = None) -> Response:
    """One object; ``by`` is what similar ones are found by."""
    record = parts.index.record(survey, object_id)
    if record is None:
        raise api.missing(parts, survey, object_id)
    ra, dec = record["ra"], record["dec"]
    known, problem = api.stored(parts, survey, object_id, record)
    problem = problem and problem[0].upper() + problem[1:]
    state = None if known is None else known.state
    around = _around(parts, survey, object_id, ra, dec)
    similar, no_similar = alike.on_page(parts, survey, object_id, by or BY[0])
    data = {
        "survey": survey,
        "objectId": object_id,
        "period": record["period"],
        "lightCurve": None if state is None else objects.points(state),
        "spectrum": None if state is None or state.spectrum is None else objects.spectrum(state.spectrum),
        "history": parts.index.history(survey, object_id),
        "around": [
            {key: one[key] for key in ("survey", "objectId", "class", "probability", "east", "north")} for one in around
        ],
    }
    return page(
        request, "object.html", survey=survey, object_id=object_id, record=record, ra=ra, dec=dec, data=data,
        around=around, problem=problem, associated=[] if state is None else state.associated,
        values={} if state is None else objects.catalogue_values(state),
        similar=similar, no_similar=no_similar, by=by or BY[0], kinds=BY,
        said=feedback.of(parts.index.engine, survey, object_id), labels=LABELS, written=written,
        who=request.state.token.name,
        address=f"/api/v1/objects/{quote(survey)}/{quote(object_id, safe='')}",
    )  # fmt: skip


def _around(parts: Services, survey: str, object_id: str, ra: float, dec: float) -> list[dict[str, Any]]:
    """Other objects within 2 arcmin, with their offsets in arcsec, the nearest first."""
    if not (math.isfinite(ra) and math.isfinite(dec)):
        return []
    try:
        found = search(parts.index, Query(cone=Cone(ra, dec, _NEIGHBOURS_ARCSEC), sort="distance"), 50).objects
    except SearchError:  # a field so crowded that a list of it would be of no use
        return []
    others = [one for one in found if (one["survey"], one["objectId"]) != (survey, object_id)]
    for one in others:
        turn = (one["ra"] - ra + 180.0) % 360.0 - 180.0
        one["east"] = turn * math.cos(math.radians(dec)) * sky.ARCSEC
        one["north"] = (one["dec"] - dec) * sky.ARCSEC
    return others


@router.post("/object/{survey}/{object_id}/feedback", dependencies=[Reader])
def object_feedback(
    request: Request,
    parts: Parts,
    survey: str,
    object_id: str,
    token: Annotated[Any, Depends(requires("feedback", page=True))],
    answer: Annotated[str, Form(max_length=64)],
    label: Annotated[str, Form(max_length=32)] = "",
    note: Annotated[str, Form(max_length=MAX_NOTE)] = "",
) -> Response:
    """What somebody answers about the object; ``undo`` withdraws the latest."""
    if answer == "undo":
        answers.undo_feedback(parts, survey, object_id, token)
    else:
        given = answers.NewAnswer.model_validate(
            {"answer": f"class={label}" if answer == "class" else answer, "note": note}
        )
        answers.give_feedback(parts, survey, object_id, given, token)
    return RedirectResponse(page_address(survey, object_id) + "#feedback", 303)


@router.get("/anomalies", dependencies=[Reader])
def anomalies(request: Request, parts: Parts) -> Response:
    """The most anomalous objects in the order that answers teach, and the latest answers."""
    return page(
        request, "anomalies.html", objects=answers.listed(parts, TOP), said=feedback.find(parts.index.engine, limit=20),
        written=written,
    )  # fmt: skip


@router.get("/classify", dependencies=[Reader])
def classify_form(request: Request, parts: Parts) -> Response:
    """Where to give a file."""
    most = parts.settings.web.max_upload_mib
    return page(request, "classify.html", found=None, problem=None, limit=most, kind="lightcurve", name="")


@router.post("/classify", dependencies=[Reader])
def classify(
    request: Request, parts: Parts, file: Annotated[UploadFile, File()], kind: Annotated[str, Form()] = "lightcurve"
) -> Response:
    """The classes of what was given."""
    found, problem, status = None, None, 200
    try:
        found = api.classify(request, parts, kind, file)
    except HTTPException as error:
        problem, status = str(error.detail), error.status_code
    most = parts.settings.web.max_upload_mib
    return page(
        request, "classify.html", status, found=found, problem=problem, limit=most, kind=kind,
        name=(file.filename or "")[:100],
    )  # fmt: skip


@router.get("/status", dependencies=[Reader])
def status(request: Request, parts: Parts, night: str = "tonight") -> Response:
    """How the service is, and what the night brought."""
    return page(request, "status.html", status=api.status(parts), night=api.statistics(parts, night or "tonight"))


@router.get("/api", dependencies=[Reader])
def described(request: Request) -> Response:
    """What /openapi.json says, for people."""
    paths = request.app.openapi()["paths"]
    routes = [(method.upper(), path, route) for path, methods in paths.items() for method, route in methods.items()]
    return page(request, "api.html", routes=routes)


@router.get("/login")
def login_form(request: Request, next: str = "/") -> Response:
    """Where to give a token."""
    return page(request, "login.html", next=_local(next), problem=None)


@router.post("/login")
def login(
    request: Request, parts: Parts, token: Annotated[str, Form(max_length=200)], next: Annotated[str, Form()] = "/"
) -> Response:
    """Keep a token in the browser, where no script can read it."""
    limit(parts.requests, address_of(request))
    if parts.tokens.find(token.strip()) is None:
        return page(request, "login.html", 401, next=_local(next), problem="That is no token, or none any more.")
    answer = RedirectResponse(_local(next), 303)
    answer.set_cookie(
        COOKIE, token.strip(), max_age=_COOKIE_DAYS * 86_400, httponly=True, samesite="strict",
        secure=request.headers.get("x-forwarded-proto", request.url.scheme) == "https",
    )  # fmt: skip
    return answer


@router.post("/logout")
def logout() -> Response:
    """Forget the token."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


def _local(address: str) -> str:
    """An address on this server; the front page for any other."""
    return address if address.startswith("/") and not address.startswith(("//", "/\\")) else "/"
