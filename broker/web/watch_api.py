"""The HTTP API of users' lists, under ``/api/v1/watches``; each token sees its own (docs/watchlists.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, File, HTTPException, Path, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from broker import moc
from broker.client.expression import Expression, ExpressionError
from broker.errors import InputFileError
from broker.tokens import Token
from broker.watch import content as contents
from broker.watch.content import Content
from broker.watch.count import count
from broker.watch.lists import ListError, Lists, NoListError, Terms, check_radius, masked
from broker.watch.match import MAX_RADIUS, MIN_RADIUS
from broker.watch.outbox import Outbox
from broker.watch.outputs import PLAIN
from broker.web import upload
from broker.web.services import Parts, Services, client_of, limit, requires

Owner = Annotated[Token, Depends(requires("watch"))]
Name = Annotated[str, Path(max_length=64)]
api = APIRouter(prefix="/api/v1/watches", dependencies=[Depends(requires("watch"))])

_LONGEST: Final = 60_000


class Condition(BaseModel):
    """What a list wants; positions and names are kept as they are where none are given."""

    model_config = ConfigDict(extra="forbid")

    expression: str | None = Field(None, max_length=10_000, description="As in docs/watchlists.md; null for none.")
    radius: float = Field(2.0, ge=MIN_RADIUS, le=MAX_RADIUS, description="Arcsec, around positions.")
    lines: str | None = Field(
        None, max_length=_LONGEST, description="A line each: `ra, dec[, label]`, or an object's name."
    )
    region: str | None = Field(None, max_length=_LONGEST, description="A MOC in ASCII or JSON: `5/1,3-7 6/24`.")

    def content(self) -> Content | None:
        """What was given of it; None for nothing. Raises InputFileError."""
        if not self.lines and not self.region:
            return None
        found = contents.of_lines(self.lines or "")
        if self.region:
            found.region = moc.of_text(self.region)
        return found


class ChangedList(Condition):
    """Everything of a list but its name."""

    email: str | None = Field(None, max_length=254, description="Where messages go.")
    webhook: str | None = Field(None, max_length=2000, description="https://..., called in Slack's format; or email.")
    every_hours: float = Field(24.0, ge=0, le=168, description="Between messages; 0: at once; 24: daily.")
    format: Literal["slack", "lasair", "skyportal", "voevent", "gcn"] = Field(
        "slack", description="Of what is sent to webhook; those other than slack get each match by itself, at once."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Of the format, as in docs/outputs.md.")
    token: str | None = Field(
        None,
        max_length=1000,
        description="With which the receiver lets Trifid in; never shown, stays where none is given.",
    )

    def terms(self) -> Terms:
        """As the database has them."""
        return Terms(
            self.expression or None, self.radius, self.email or None, self.webhook or None, self.every_hours,
            self.format, self.options, self.token or None,
        )  # fmt: skip


class NewList(ChangedList):
    """A list to be made."""

    name: str = Field(max_length=64, description="a to z, 0 to 9 and -.")


@api.get("", summary="Your lists (scope watch, as all of these)")
def all_lists(parts: Parts, owner: Owner) -> dict[str, Any]:
    """With their topics, and what is wrong with them."""
    return {"lists": [shown(row) for row in lists_of(parts).of(owner.name)]}


@api.post("", status_code=201, summary="Make a list")
def new_list(parts: Parts, owner: Owner, given: NewList) -> dict[str, Any]:
    """It counts within some seconds (notify.reload_s), for what is published from then on."""
    create(parts, owner.name, given.name, given.terms(), _asked(given))
    return shown(lists_of(parts).get(owner.name, given.name))


@api.post("/check", summary="Check an expression, and count what it would have found in the last night")
def check(request: Request, parts: Parts, given: Condition) -> dict[str, Any]:
    """422 says at which character an expression is wrong."""
    content = _asked(given)
    return counted(request, parts, given.expression, given.radius, content)


@api.get("/{name}", summary="A list, with its latest matches and messages")
def one_list(parts: Parts, owner: Owner, name: Name) -> dict[str, Any]:
    """The latest 100 matches and 20 messages."""
    row = _get(parts, owner.name, name)
    box = Outbox(parts.index.engine, parts.settings)
    return shown(row) | {
        "matches": [_match(one) for one in box.matches(row["id"])],
        "messages": [_message(one) for one in box.deliveries(row["id"])],
    }


@api.put("/{name}", summary="Change a list")
def change_list(parts: Parts, owner: Owner, name: Name, given: ChangedList) -> dict[str, Any]:
    """All of its terms are replaced; its positions, names and region only where lines or a region are given.

    A `webhook` as it is shown, without its path, stays the URL that it was.
    """
    change(parts, owner.name, name, given.terms(), _asked(given))
    return shown(_get(parts, owner.name, name))


@api.put("/{name}/content", summary="Upload positions, names or a region, of a list that is there or a new one")
def put_content(parts: Parts, owner: Owner, name: Name, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """CSV, VOTable, FITS, Parquet or ECSV with ra and dec, or names; or a MOC. Replaces what the list held."""
    content = read(file)
    try:
        row = lists_of(parts).get(owner.name, name)
    except NoListError:
        create(parts, owner.name, name, Terms(), content)
    else:
        change(parts, owner.name, name, terms_of(row), content)
    return shown(_get(parts, owner.name, name)) | {"remarks": content.remarks}


@api.delete("/{name}", status_code=204, summary="Delete a list, with its topic")
def delete_list(parts: Parts, owner: Owner, name: Name) -> Response:
    """The topic goes within some seconds."""
    try:
        lists_of(parts).delete(owner.name, name)
    except NoListError as error:
        raise HTTPException(404, str(error)) from None
    return Response(status_code=204)


@api.post("/{name}/retry", summary="Send again what was given up")
def retry(parts: Parts, owner: Owner, name: Name) -> dict[str, int]:
    """Messages that are dead, and the topic."""
    row = _get(parts, owner.name, name)
    return {"messages": Outbox(parts.index.engine, parts.settings).revive(row["id"])}


def lists_of(parts: Services) -> Lists:
    """The lists of this server."""
    return Lists(parts.index.engine, parts.settings)


def create(parts: Services, owner: str, name: str, terms: Terms, content: Content | None) -> None:
    """As the API and the page make a list; raises HTTPException 422."""
    try:
        lists_of(parts).create(owner, name, terms, content or Content())
    except (ListError, ExpressionError) as error:
        raise HTTPException(422, _told(error)) from None


def change(parts: Services, owner: str, name: str, terms: Terms, content: Content | None) -> None:
    """As the API and the page change one; raises HTTPException 404 and 422."""
    try:
        lists_of(parts).change(owner, name, terms, content)
    except NoListError as error:
        raise HTTPException(404, str(error)) from None
    except (ListError, ExpressionError) as error:
        raise HTTPException(422, _told(error)) from None


def read(file: UploadFile) -> Content:
    """What an upload holds; raises HTTPException 422."""
    try:
        return upload.read("list", file.filename or "upload", file.file.read()).content
    except InputFileError as error:
        raise HTTPException(422, str(error)) from None


def counted(
    request: Request, parts: Services, expression: str | None, radius: float, content: Content | None
) -> dict[str, Any]:
    """``watch.count.count`` at the rate of what costs much; raises HTTPException."""
    limit(parts.classifications, client_of(request))
    try:
        check_radius(radius)
        compiled = Expression(expression) if expression else None
    except (ListError, ExpressionError) as error:
        raise HTTPException(422, _told(error)) from None
    if compiled is None and not content:
        raise HTTPException(422, "give an expression, positions, names or a region")
    most = parts.settings.notify.max_positions
    if content and content.size > most:
        raise HTTPException(422, f"{content.size:,} positions and names; {most:,} are the most")
    return count(parts.index.engine, content or Content(), radius, compiled)


def terms_of(row: Mapping[str, Any]) -> Terms:
    """Those of a row of WATCHES."""
    return Terms(row["expression"], row["radius"], row["email"], row["webhook"], row["every_hours"], *format_of(row))


def format_of(row: Mapping[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """Format, options and token of a row of WATCHES."""
    if row["format"] is None:
        return PLAIN, {}, None
    return row["format"], json.loads(row["options"]), row["token"]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of WATCHES as users see it: of a webhook only the host, since its path is a secret."""
    return {
        "name": row["name"],
        "topic": row["topic"],
        "expression": row["expression"],
        "radius": row["radius"],
        "positions": row["size"],
        "region": row["regions"] > 0,
        "email": row["email"],
        "webhook": None if row["webhook"] is None else masked(row["webhook"]),
        "format": row["format"] or PLAIN,
        "options": format_of(row)[1],
        "token": row["token"] is not None,
        "everyHours": row["every_hours"],
        "createdMjd": row["created"],
        "leftOut": row["left_out"],
        "problem": row["problem"],
        "topicGivenUp": row["topic_given_up"],
    }


def _asked(given: Condition) -> Content | None:
    try:
        return given.content()
    except InputFileError as error:
        raise HTTPException(422, str(error)) from None


def _get(parts: Services, owner: str, name: str) -> Mapping[str, Any]:
    try:
        return lists_of(parts).get(owner, name)
    except NoListError as error:
        raise HTTPException(404, str(error)) from None


def _told(error: Exception) -> str:
    return f"expression, {error}" if isinstance(error, ExpressionError) else str(error)


def _match(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["event"],
        "survey": row["survey"],
        "objectId": row["object_id"],
        "class": row["class_name"],
        "probability": row["probability"],
        "anomalyScore": row["anomaly_score"],
        "label": row["label"],
        "foundMjd": row["created"],
        "inTopic": not row["unsent"],
    }


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "delivery": row["number"],
        "state": row["state"],
        "matches": row["matches"],
        "attempts": row["attempts"],
        "createdMjd": row["created"],
        "dueMjd": row["due"] if row["state"] == "pending" else None,
        "problem": row["problem"],
    }
