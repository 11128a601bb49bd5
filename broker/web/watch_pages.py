"""The pages of users' lists: all of them, one to be edited, and a new one."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import RedirectResponse

from broker import moc
from broker.client.fields import FIELDS
from broker.errors import InputFileError
from broker.tokens import Token
from broker.watch import content as contents
from broker.watch.content import Content
from broker.watch.lists import NoListError, Terms
from broker.watch.outbox import Outbox
from broker.watch.outputs import PLAIN
from broker.web import watch_api
from broker.web.pages import page
from broker.web.services import Parts, Services, requires

router = APIRouter(include_in_schema=False)
Owner = Annotated[Token, Depends(requires("watch", page=True))]
Text = Annotated[str, Form(max_length=60_000)]
_EMPTY: Final = {
    "name": "", "expression": "", "radius": "2", "lines": "", "region": "", "send": "", "email": "", "webhook": "",
    "every_hours": "24",
}  # fmt: skip


@router.get("/watches")
def all_lists(request: Request, parts: Parts, owner: Owner) -> Response:
    """All lists of a user, and the form for a new one."""
    return _overview(request, parts, owner, _EMPTY)


@router.post("/watches")
def new_list(
    request: Request, parts: Parts, owner: Owner, name: Text = "", expression: Text = "", radius: Text = "2",
    lines: Text = "", region: Text = "", send: Text = "", email: Text = "", webhook: Text = "",
    every_hours: Text = "24", action: Text = "save", file: Annotated[UploadFile | None, File()] = None,
) -> Response:  # fmt: skip
    """Make a list, or count what it would have found."""
    given = dict(zip(_EMPTY, (name, expression, radius, lines, region, send, email, webhook, every_hours), strict=True))
    try:
        terms, content = _terms(given, None), _content(given, file)
        if action == "check":
            found = watch_api.counted(request, parts, terms.expression, terms.radius, content)
            return _overview(request, parts, owner, given, found=found)
        watch_api.create(parts, owner.name, name, terms, content)
    except HTTPException as error:
        return _overview(request, parts, owner, given, problem=error)
    return RedirectResponse(f"/watches/{quote(name, safe='')}", 303)


@router.get("/watches/{name}")
def one_list(request: Request, parts: Parts, owner: Owner, name: str) -> Response:
    """One list, with what it found."""
    row = _row(parts, owner, name)
    given = {
        "name": name, "expression": row["expression"] or "", "radius": f"{row['radius']:g}", "lines": "", "region": "",
        "send": "webhook" if row["webhook"] else "email" if row["email"] else "", "email": row["email"] or "",
        "webhook": "", "every_hours": f"{row['every_hours']:g}",
    }  # fmt: skip
    return _one(request, parts, row, given)


@router.post("/watches/{name}")
def change_list(
    request: Request, parts: Parts, owner: Owner, name: str, expression: Text = "", radius: Text = "2",
    lines: Text = "", region: Text = "", send: Text = "", email: Text = "", webhook: Text = "",
    every_hours: Text = "24", action: Text = "save", file: Annotated[UploadFile | None, File()] = None,
) -> Response:  # fmt: skip
    """Change a list, count what it would have found, delete it, or send again what was given up."""
    row = _row(parts, owner, name)
    given = dict(zip(_EMPTY, (name, expression, radius, lines, region, send, email, webhook, every_hours), strict=True))
    if action == "delete":
        watch_api.lists_of(parts).delete(owner.name, name)
        return RedirectResponse("/watches", 303)
    if action == "retry":
        Outbox(parts.index.engine, parts.settings).revive(row["id"])
        return RedirectResponse(f"/watches/{quote(name, safe='')}", 303)
    try:
        terms, content = _terms(given, row), _content(given, file)
        if action == "check":
            held = content or watch_api.lists_of(parts).content(owner.name, name)
            found = watch_api.counted(request, parts, terms.expression, terms.radius, held)
            return _one(request, parts, row, given, found=found)
        watch_api.change(parts, owner.name, name, terms, content)
    except HTTPException as error:
        return _one(request, parts, row, given, problem=error)
    return RedirectResponse(f"/watches/{quote(name, safe='')}", 303)


def _overview(
    request: Request, parts: Services, owner: Token, given: dict[str, str], *,
    problem: HTTPException | None = None, found: dict[str, Any] | None = None,
) -> Response:  # fmt: skip
    lists = [watch_api.shown(row) for row in watch_api.lists_of(parts).of(owner.name)]
    return page(
        request, "watches.html", 200 if problem is None else problem.status_code, lists=lists, given=given, found=found,
        problem=None if problem is None else problem.detail, fields=FIELDS, mail=_sends_mail(parts), held="",
    )  # fmt: skip


def _one(
    request: Request, parts: Services, row: Any, given: dict[str, str], *,
    problem: HTTPException | None = None, found: dict[str, Any] | None = None,
) -> Response:  # fmt: skip
    box = Outbox(parts.index.engine, parts.settings)
    held = f"{row['size']:,} positions and names" + (", and a region" if row["regions"] else "")
    return page(
        request, "watch.html", 200 if problem is None else problem.status_code, one=watch_api.shown(row), given=given,
        found=found, problem=None if problem is None else problem.detail, fields=FIELDS, mail=_sends_mail(parts),
        matches=box.matches(row["id"]), messages=box.deliveries(row["id"]), held=held,
    )  # fmt: skip


def _sends_mail(parts: Services) -> bool:
    return parts.settings.notify.smtp_host is not None


def _row(parts: Services, owner: Token, name: str) -> Any:
    try:
        return watch_api.lists_of(parts).get(owner.name, name)
    except NoListError as error:
        raise HTTPException(404, str(error)) from None


def _terms(given: dict[str, str], row: Any) -> Terms:
    """Of a form; a webhook that is not shown stays where none is given, with the format that it has by the API."""
    webhook = None if row is None else row["webhook"]
    keeps = row is not None and given["send"] == "webhook" and not given["webhook"].strip()
    form, options, token = watch_api.format_of(row) if keeps else (PLAIN, {}, None)
    numbers = {}
    for name in ("radius", "every_hours"):
        try:
            numbers[name] = float(given[name])
        except ValueError:
            raise HTTPException(422, f"{name}: {given[name][:40]!r} is no number") from None
    send = given["send"]
    if send == "email" and not given["email"].strip():
        raise HTTPException(422, "give the address that mail goes to")
    if send == "webhook" and not (given["webhook"].strip() or webhook):
        raise HTTPException(422, "give the address of the webhook")
    return Terms(
        given["expression"].strip() or None, numbers["radius"], given["email"].strip() if send == "email" else None,
        given["webhook"].strip() or webhook if send == "webhook" else None, numbers["every_hours"], form, options,
        token,
    )  # fmt: skip


def _content(given: dict[str, str], file: UploadFile | None) -> Content | None:
    found = Content()
    try:
        if given["lines"].strip():
            found = contents.of_lines(given["lines"])
        if given["region"].strip():
            found.region = moc.of_text(given["region"])
    except InputFileError as error:
        raise HTTPException(422, str(error)) from None
    if file is not None and file.filename:
        found = found.joined(watch_api.read(file))
    return found if found else None
