"""Users' lists in the database: made, changed, deleted, within quotas."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from broker.client.expression import Expression, ExpressionError
from broker.config import Settings
from broker.database import COUNTERS, DELIVERIES, MATCHES, TOKENS, WATCH_CONTENTS, WATCHES, count_up
from broker.errors import TrifidError
from broker.times import mjd_now
from broker.tokens import LOCAL
from broker.watch import outputs
from broker.watch.content import Content
from broker.watch.match import MAX_RADIUS, MIN_RADIUS, Wanted
from broker.watch.outputs import PLAIN
from broker.watch.times import next_message
from broker.watch.webhook import check_url

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}"
)
_LONGEST_SLUG: Final = 64
_COUNTER: Final = "lists"
_MOST_HOURS: Final = 168.0
_LONGEST_PROBLEM: Final = 500
_MASK: Final = "/..."


class ListError(TrifidError):
    """A list that cannot be kept as it is given; the message says what is wrong with it."""


class NoListError(TrifidError):
    """A list that there is not."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a user gives for a list, beside its content."""

    expression: str | None = None
    radius: float = 2.0
    """Arcsec, of positions."""
    email: str | None = None
    webhook: str | None = None
    every_hours: float = 24.0
    """Between messages; 0: at once, 24: daily at ``notify.digest_hour``. Other formats than Slack's: always at once."""
    format: str = PLAIN
    """Of what is sent to ``webhook``: Slack's, or one of ``watch.outputs.FORMATS``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    token: str | None = None
    """With which the receiver lets us in; where there is none, the one that a list has for the same URL."""


def topic_of(prefix: str, owner: str, name: str) -> str:
    """The topic of a list: ``trifid.user.alice.my-stars``; an owner whose name cannot be in it gets a number, too.

    Names have no ``.`` and ``_``, which Kafka's metrics do not tell apart.
    """
    slug = re.sub(r"[^a-z0-9-]+", "-", owner.lower())[:_LONGEST_SLUG].strip("-")
    if slug != owner:
        slug = f"{slug or 'user'}-{hashlib.sha256(owner.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"{prefix}.user.{slug}.{name}"


class Lists:
    """The lists of one database."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings.notify
        self._prefix = settings.publish.topic_prefix

    def create(self, owner: str, name: str, terms: Terms, content: Content) -> None:
        """Keep a new list; raises ListError."""
        if not _NAME.fullmatch(name):
            raise ListError("a list's name has 1 to 48 of a to z, 0 to 9 and -, which is neither first nor last")
        terms = self._check(terms, content)
        now = mjd_now()
        row = self._row(terms, content, now) | {
            "owner": owner,
            "name": name,
            "topic": topic_of(self._prefix, owner, name),
            "deleted": False,
            "created": now,
            "left_out": 0,
            "problem": None,
            "topic_attempts": 0,
            "topic_given_up": False,
            "topic_due": now,
        }
        try:
            with self._engine.begin() as connection:
                count_up(connection, _COUNTER)  # first: of two at a time, the second sees what the first has made
                self._check_quota(connection, owner, content.size, None)
                (key,) = connection.execute(sa.insert(WATCHES).returning(WATCHES.c.id), [row]).scalars()
                connection.execute(sa.insert(WATCH_CONTENTS), [content.stored() | {"watch": key}])
        except sa.exc.IntegrityError:
            found = self._find(owner, name, deleted=True)
            gone = found is not None and found["deleted"]
            raise ListError(
                f"a list {name!r} is being deleted: wait a little" if gone else f"there is a list {name!r} already"
            ) from None

    def change(self, owner: str, name: str, terms: Terms, content: Content | None) -> None:
        """Give a list other terms, and another content where one is given; raises ListError and NoListError."""
        row = self.get(owner, name)
        terms = _unmasked(terms, row)
        with self._engine.begin() as connection:
            now = mjd_now()
            count_up(connection, _COUNTER)
            if content is None:
                content = self._content(connection, row["id"])
            else:
                self._check_quota(connection, owner, content.size, row["id"])
                connection.execute(
                    sa.update(WATCH_CONTENTS).where(WATCH_CONTENTS.c.watch == row["id"]).values(content.stored())
                )
            terms = self._check(terms, content)
            # What was refused may go well now.
            values = self._row(terms, content, now) | {
                "problem": None, "topic_attempts": 0, "topic_given_up": False, "topic_due": now
            }  # fmt: skip
            connection.execute(sa.update(WATCHES).where(WATCHES.c.id == row["id"]).values(values))
            gone = terms.email is None and terms.webhook is None
            if gone or (None if terms.format == PLAIN else terms.format) != row["format"]:
                # Of a later address it would be old news; and messages of one format are none of another.
                own = MATCHES.c.watch == row["id"]
                connection.execute(sa.update(MATCHES).where(own, MATCHES.c.waiting).values(waiting=False))
                unsent = DELIVERIES.c.state != "sent"
                connection.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.watch == row["id"], unsent))
                connection.execute(sa.update(MATCHES).where(own, ~MATCHES.c.unsent).values(payload=None))

    def delete(self, owner: str, name: str) -> None:
        """Have a list end: ``trifid notify`` deletes its topic and then the list; raises NoListError."""
        row = self.get(owner, name)
        with self._engine.begin() as connection:
            count_up(connection, _COUNTER)
            connection.execute(
                sa.update(WATCHES).where(WATCHES.c.id == row["id"]).values(deleted=True, changed=mjd_now())
            )

    def of(self, owner: str) -> list[Mapping[str, Any]]:
        """Rows of WATCHES of a user, by name."""
        query = sa.select(WATCHES).where(WATCHES.c.owner == owner, ~WATCHES.c.deleted).order_by(WATCHES.c.name)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def get(self, owner: str, name: str) -> Mapping[str, Any]:
        """A row of WATCHES; raises NoListError."""
        found = self._find(owner, name)
        if found is None:
            raise NoListError(f"no list {name!r}")
        return found

    def content(self, owner: str, name: str) -> Content:
        """What a list holds; raises NoListError."""
        row = self.get(owner, name)
        with self._engine.connect() as connection:
            return self._content(connection, row["id"])

    def _find(self, owner: str, name: str, *, deleted: bool = False) -> Mapping[str, Any] | None:
        query = sa.select(WATCHES).where(WATCHES.c.owner == owner, WATCHES.c.name == name)
        if not deleted:
            query = query.where(~WATCHES.c.deleted)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else dict(row)

    def _content(self, connection: sa.Connection, key: int) -> Content:
        stored = sa.select(WATCH_CONTENTS.c.places, WATCH_CONTENTS.c.texts, WATCH_CONTENTS.c.region)
        return Content.of_stored(*connection.execute(stored.where(WATCH_CONTENTS.c.watch == key)).one())

    def _check(self, terms: Terms, content: Content) -> Terms:
        """With the defaults of its format; raises ListError."""
        if not content and terms.expression is None:
            raise ListError("give positions, names, a region or an expression")
        if terms.expression is not None:
            Expression(terms.expression)
        check_radius(terms.radius)
        if not 0.0 <= terms.every_hours <= _MOST_HOURS:
            raise ListError(f"every_hours is {terms.every_hours:g}: give 0 (at once) to {_MOST_HOURS:g}")
        if terms.email is not None and terms.webhook is not None:
            raise ListError("give email or webhook: a list has one of them")
        if terms.email is not None:
            if self._settings.smtp_host is None:
                raise ListError("this server sends no mail (notify.smtp_host)")
            if not _EMAIL.fullmatch(terms.email):
                raise ListError(f"{terms.email[:100]!r} is no e-mail address")
            domain, allowed = terms.email.rpartition("@")[2].lower(), self._settings.email_domains
            if allowed and domain not in allowed:
                raise ListError(f"mail goes to {', '.join(allowed)} only")
        if terms.webhook is not None:
            try:
                parts = check_url(terms.webhook, self._settings.webhook_networks)
                if parts.path == _MASK:
                    raise ValueError(f"{terms.webhook} is what is shown of another URL: give all of it")
            except ValueError as error:
                raise ListError(f"webhook: {error}") from None
        if terms.format == PLAIN:
            if terms.options or terms.token is not None:
                raise ListError(f"options and a token are for formats other than {PLAIN}")
            return terms
        if terms.webhook is None:
            raise ListError(f"format {terms.format}: give the URL of the service as webhook")
        token = terms.token
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ListError("token: it has printable characters of ASCII only")
        try:
            options = outputs.check(terms.format, terms.options, token)
        except ValueError as error:
            raise ListError(str(error)) from None
        return replace(terms, options=options, every_hours=0.0)

    def _row(self, terms: Terms, content: Content, now: float) -> dict[str, Any]:
        return {
            "expression": terms.expression,
            "radius": terms.radius,
            "size": content.size,
            "regions": len(content.region),
            "email": terms.email,
            "webhook": terms.webhook,
            "format": None if terms.format == PLAIN else terms.format,
            "options": None if terms.format == PLAIN else json.dumps(terms.options),
            "token": terms.token,
            "every_hours": terms.every_hours,
            "next_message": next_message(now, terms.every_hours, self._settings.digest_hour),
            "changed": now,
        }

    def _check_quota(self, connection: sa.Connection, owner: str, size: int, but: int | None) -> None:
        others = WATCHES.c.owner == owner if but is None else (WATCHES.c.owner == owner) & (WATCHES.c.id != but)
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(WATCHES.c.size), 0)).where(others)
        lists, positions = connection.execute(query).one()
        if lists >= self._settings.max_lists:
            raise ListError(f"{lists} lists, those being deleted included; {self._settings.max_lists} are the most")
        if positions + size > self._settings.max_positions:
            most = self._settings.max_positions
            raise ListError(f"{positions + size:,} positions and names in all your lists; {most:,} are the most")


def check_radius(radius: float) -> None:
    """Raises ListError for what is none of a list's positions."""
    if not MIN_RADIUS <= radius <= MAX_RADIUS:
        raise ListError(f"radius is {radius:g}: give arcsec, {MIN_RADIUS:g} to {MAX_RADIUS:g}")


def masked(webhook: str) -> str:
    """What is shown of a webhook's URL, whose path and query are secret."""
    parts = urlsplit(webhook)
    return f"{parts.scheme}://{parts.netloc}{_MASK}"


def _unmasked(terms: Terms, row: Mapping[str, Any]) -> Terms:
    """With the URL and token of a row, where a client gives back what it was shown of them."""
    if terms.webhook is not None and row["webhook"] is not None and terms.webhook == masked(row["webhook"]):
        terms = replace(terms, webhook=row["webhook"])
    if terms.token is None and terms.format != PLAIN and terms.webhook == row["webhook"]:
        terms = replace(terms, token=row["token"])
    return terms


def owner_counts(now: float, *, tokens_required: bool) -> sa.ColumnElement[bool]:
    """Of a row of WATCHES: whether its owner has a token that is valid at an MJD and may keep lists.

    Where no tokens are needed, also whoever is at this machine.
    """
    valid = sa.exists().where(
        TOKENS.c.name == WATCHES.c.owner,
        (sa.literal(" ") + TOKENS.c.scopes + " ").like("% watch %"),
        TOKENS.c.expires.is_(None) | (TOKENS.c.expires > now),
    )
    return valid if tokens_required else valid | (WATCHES.c.owner == LOCAL.name)


def load(engine: sa.Engine, *, tokens_required: bool) -> list[tuple[Wanted, Mapping[str, Any]]]:
    """The lists that count (``owner_counts``), as they are matched.

    One that this release does not understand is left out with its problem.
    """
    counts = owner_counts(mjd_now(), tokens_required=tokens_required)
    with engine.connect() as connection:
        query = sa.select(WATCHES, WATCH_CONTENTS).join(WATCH_CONTENTS).where(~WATCHES.c.deleted, counts)
        rows = connection.execute(query.order_by(WATCHES.c.id)).mappings().all()
    found: list[tuple[Wanted, Mapping[str, Any]]] = []
    for row in rows:
        try:
            content = Content.of_stored(row["places"], row["texts"], row["region"])
            expression = None if row["expression"] is None else Expression(row["expression"])
        except ExpressionError as error:  # of another release
            keep_problems(engine, {row["id"]: f"expression: {error}"})
            continue
        except (ValueError, zlib.error) as error:
            keep_problems(engine, {row["id"]: f"what it holds cannot be read: {error}"})
            continue
        found.append((Wanted(row["id"], content, row["radius"], expression, not content), dict(row)))
    return found


def keep_problems(engine: sa.Engine, problems: Mapping[int, str]) -> None:
    """Have users see why lists by their ids are left out."""
    for key, problem in problems.items():
        log.warning("list %d is left out: %s", key, problem)
        with engine.begin() as connection:
            connection.execute(sa.update(WATCHES).where(WATCHES.c.id == key).values(problem=problem[:_LONGEST_PROBLEM]))


def version(engine: sa.Engine) -> tuple[Any, ...]:
    """What is another one whenever a list or a token is; no clock has a part in it but that tokens expire."""
    with engine.connect() as connection:
        counted = connection.execute(
            sa.select(COUNTERS.c.value).where(COUNTERS.c.name == _COUNTER)
        ).scalar_one_or_none()
        # An earlier release, beside this one, counts nothing.
        lists = connection.execute(sa.select(sa.func.count(), sa.func.max(WATCHES.c.changed))).one()
        tokens = connection.execute(sa.select(TOKENS.c.id, TOKENS.c.expires < mjd_now()).order_by(TOKENS.c.id)).all()
    return (counted, *lists, *map(tuple, tokens))
