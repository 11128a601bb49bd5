"""What lists have found, in the database until it is in topics, mails and webhooks.

A match is stored before its annotation counts as read, and forgotten by what sends it only after the receiver has
acknowledged it: whenever a process is killed, what it did not finish is done again. What then comes twice has the same
number both times.
"""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from broker.config import NotifySettings
from broker.metrics import NOTIFY_DEAD, NOTIFY_LEFT_OUT, NOTIFY_MATCHES, NOTIFY_REFUSED, NOTIFY_SENT, NOTIFY_WAITING
from broker.publish.annotation import PublishedAnnotation
from broker.times import mjd_now
from broker.watch import quota
from broker.watch.match import Hit
from broker.watch.times import DAILY, next_attempt, next_message
from broker.web.tables import DELIVERIES, LEASES, MATCHES, WATCHES

log = logging.getLogger(__name__)

_ROWS: Final = 200
"""Values of one statement, which SQLite bounds."""
_LONGEST_PROBLEM: Final = 500
SHOWN: Final = 100
"""Matches that a message lists; it counts the others."""


def event_of(annotation: PublishedAnnotation) -> str:
    """The number of an annotation, the same whenever it is read: 32 hexadecimal digits."""
    told = (
        annotation.survey, annotation.object_id, str(annotation.alert_id), annotation.trigger,
        str(round(annotation.publish_mjd * 86_400_000)),
    )  # fmt: skip
    return hashlib.sha256("\0".join(told).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Unsent:
    """A match that is to be put into a topic."""

    key: int
    watch: int
    topic: str
    event: str
    object_id: str
    label: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that is to be sent."""

    key: int
    number: str
    attempts: int
    matches: int
    rows: Sequence[Mapping[str, Any]]
    """Of MATCHES, the first SHOWN of them."""
    watch: Mapping[str, Any]
    """Of WATCHES."""

    @property
    def to(self) -> str:
        """``webhook`` or ``email``."""
        return "webhook" if self.watch["webhook"] is not None else "email"


class Outbox:
    """Of one database; several processes may use it, of which one sends at a time."""

    def __init__(self, engine: sa.Engine, settings: NotifySettings) -> None:
        self._engine, self._settings = engine, settings
        self.holder = uuid.uuid4().hex

    def lead(self) -> bool:
        """Whether this process is the one that sends, for ``notify.lease_s`` from now."""
        now = mjd_now()
        until = now + self._settings.lease_s / 86_400.0
        row = {"name": "outbox", "holder": self.holder, "until": until}
        with self._engine.begin() as connection:
            connection.execute(self._insert(LEASES, ("name",)), [row])
            free = (LEASES.c.until < now) | (LEASES.c.holder == self.holder)
            taken = sa.update(LEASES).where(LEASES.c.name == "outbox", free)
            return connection.execute(taken.values(holder=self.holder, until=until)).rowcount == 1

    def resign(self) -> None:
        """Let another process send at once."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(LEASES).where(LEASES.c.holder == self.holder))

    def add(
        self,
        hits: Sequence[Hit],
        annotations: Sequence[PublishedAnnotation],
        payloads: Mapping[int, bytes],
        lists: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """Keep matches, in one transaction; those that are there already change nothing.

        ``payloads`` are annotations by their number in ``annotations``, ``lists`` rows of WATCHES by id. What is beyond
        the owner's quota of the day is counted and left out.
        """
        now = mjd_now()
        events = {number: event_of(annotations[number]) for number in payloads}
        by_watch: dict[int, list[Hit]] = {}
        for hit in hits:
            by_watch.setdefault(hit.key, []).append(hit)
        added = left_out = 0
        with self._engine.begin() as connection:
            most = self._settings.matches_per_day
            owners = sorted({lists[key]["owner"] for key in by_watch})
            left = {owner: max(0, most - quota.used(connection, owner, now)[0]) for owner in owners}
            before = dict(left)
            told = WATCHES.c.email.is_not(None) | WATCHES.c.webhook.is_not(None)
            there = {
                key: bool(is_told)
                for key, is_told in connection.execute(sa.select(WATCHES.c.id, told).where(~WATCHES.c.deleted))
            }
            for key, own in by_watch.items():
                if key not in there:
                    continue
                known = self._known(connection, key, [events[hit.annotation] for hit in own])
                new = list({events[h.annotation]: h for h in own if events[h.annotation] not in known}.values())
                owner = lists[key]["owner"]
                kept = new[: left[owner]]
                left[owner] -= len(kept)
                rows = [
                    _row(key, events[h.annotation], now, annotations[h.annotation], h.label, there[key])
                    | {"payload": payloads[h.annotation]}
                    for h in kept
                ]
                if rows:
                    connection.execute(self._insert(MATCHES, ("watch", "event")), rows)
                added += len(rows)
                if len(kept) < len(new):
                    beyond = len(new) - len(kept)
                    left_out += beyond
                    connection.execute(
                        sa.update(WATCHES).where(WATCHES.c.id == key).values(left_out=WATCHES.c.left_out + beyond)
                    )
            for owner in owners:
                if before[owner] > left[owner]:
                    quota.count(connection, owner, now, matches=before[owner] - left[owner])
        NOTIFY_MATCHES.inc(added)
        NOTIFY_LEFT_OUT.inc(left_out)

    def _known(self, connection: sa.Connection, key: int, events: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(events), _ROWS):
            asked = MATCHES.c.event.in_(events[start : start + _ROWS])
            found |= set(connection.execute(sa.select(MATCHES.c.event).where(MATCHES.c.watch == key, asked)).scalars())
        return found

    def _insert(self, table: sa.Table, unique: Sequence[str]) -> sa.Insert:
        """An insertion that leaves rows that are there already as they are."""
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing(index_elements=list(unique))
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=list(unique))

    def unsent(self, limit: int) -> list[Unsent]:
        """Matches for topics that are due, the oldest first."""
        query = (
            sa.select(
                MATCHES.c.id, MATCHES.c.watch, WATCHES.c.topic, MATCHES.c.event, MATCHES.c.object_id, MATCHES.c.label,
                MATCHES.c.payload,
            )
            .join(WATCHES)
            .where(MATCHES.c.unsent, ~WATCHES.c.deleted, ~WATCHES.c.topic_given_up, WATCHES.c.topic_due <= mjd_now())
            .order_by(MATCHES.c.id)
            .limit(limit)
        )  # fmt: skip
        with self._engine.connect() as connection:
            NOTIFY_WAITING.set(connection.execute(sa.select(sa.func.count()).where(MATCHES.c.unsent)).scalar_one())
            return [Unsent(*row) for row in connection.execute(query)]

    def published(self, sent: Sequence[Unsent]) -> None:
        """Matches that Kafka has acknowledged."""
        if not sent:
            return
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(MATCHES).where(MATCHES.c.id == sa.bindparam("key")).values(unsent=False, payload=None),
                [{"key": one.key} for one in sent],
            )
            done = list({one.watch for one in sent})
            connection.execute(
                sa.update(WATCHES)
                .where(WATCHES.c.id.in_(done), WATCHES.c.topic_attempts > 0)
                .values(topic_attempts=0, problem=None)
            )
        NOTIFY_SENT.labels("topic").inc(len(sent))

    def topic_refused(self, watch: int, reason: str) -> None:
        """A list's topic that Kafka refuses: tried again later, given up after the last attempt."""
        now = mjd_now()
        with self._engine.begin() as connection:
            query = sa.select(WATCHES.c.topic_attempts).where(WATCHES.c.id == watch, ~WATCHES.c.topic_given_up)
            attempts = connection.execute(query).scalar_one_or_none()
            if attempts is None:
                return
            attempts += 1
            dead = attempts >= self._settings.max_attempts
            values = {
                "topic_attempts": attempts, "topic_given_up": dead, "problem": reason[:_LONGEST_PROBLEM],
                "topic_due": next_attempt(now, attempts, self._settings.retry_s, self._settings.max_retry_s),
            }  # fmt: skip
            connection.execute(sa.update(WATCHES).where(WATCHES.c.id == watch).values(values))
        NOTIFY_REFUSED.labels("topic").inc()
        if dead:
            NOTIFY_DEAD.labels("topic").inc()
            log.error("list %d: its topic is given up after %d attempts: %s", watch, attempts, reason)

    def collect(self) -> int:
        """Make messages of what waits for one, of lists whose time has come; returns how many."""
        now, made = mjd_now(), 0
        waiting = (
            sa.select(WATCHES.c.id, WATCHES.c.owner, WATCHES.c.every_hours)
            .where(
                ~WATCHES.c.deleted,
                WATCHES.c.next_message <= now,
                WATCHES.c.email.is_not(None) | WATCHES.c.webhook.is_not(None),
                sa.exists().where(MATCHES.c.watch == WATCHES.c.id, MATCHES.c.waiting),
            )
            .order_by(WATCHES.c.next_message)
        )
        with self._engine.connect() as connection:
            due = connection.execute(waiting).all()
        for watch, owner, every_hours in due:
            with self._engine.begin() as connection:
                if quota.used(connection, owner, now)[1] >= self._settings.messages_per_day:
                    continue
                quota.count(connection, owner, now, messages=1)
                row = {
                    "watch": watch, "number": uuid.uuid4().hex, "created": now, "matches": 0, "state": "pending",
                    "attempts": 0, "due": now, "problem": None,
                }  # fmt: skip
                (key,) = connection.execute(sa.insert(DELIVERIES).returning(DELIVERIES.c.id), [row]).scalars()
                own = sa.update(MATCHES).where(MATCHES.c.watch == watch, MATCHES.c.waiting)
                taken = connection.execute(own.values(waiting=False, delivery=key)).rowcount
                connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.id == key).values(matches=taken))
                later = next_message(now, every_hours, self._settings.digest_hour)
                connection.execute(sa.update(WATCHES).where(WATCHES.c.id == watch).values(next_message=later))
                made += 1
        self._skip_digests(now)
        return made

    def _skip_digests(self, now: float) -> None:
        """Daily messages whose time comes while nothing waits: what is found after that is for the next day's."""
        waits = sa.exists().where(MATCHES.c.watch == WATCHES.c.id, MATCHES.c.waiting)
        empty = sa.update(WATCHES).where(WATCHES.c.every_hours == DAILY, WATCHES.c.next_message <= now, ~waits)
        with self._engine.begin() as connection:
            connection.execute(empty.values(next_message=next_message(now, DAILY, self._settings.digest_hour)))

    def due(self, limit: int) -> list[Delivery]:
        """Messages to be sent now, the longest due first."""
        query = (
            sa.select(DELIVERIES)
            .join(WATCHES)
            .where(
                DELIVERIES.c.state == "pending",
                DELIVERIES.c.due <= mjd_now(),
                ~WATCHES.c.deleted,
                WATCHES.c.email.is_not(None) | WATCHES.c.webhook.is_not(None),
            )
            .order_by(DELIVERIES.c.due)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            found = []
            for row in connection.execute(query).mappings().all():
                watch = connection.execute(sa.select(WATCHES).where(WATCHES.c.id == row["watch"])).mappings().one()
                own = sa.select(MATCHES).where(MATCHES.c.delivery == row["id"]).order_by(MATCHES.c.id).limit(SHOWN)
                rows = [dict(one) for one in connection.execute(own).mappings()]
                found.append(Delivery(row["id"], row["number"], row["attempts"], row["matches"], rows, dict(watch)))
        return found

    def delivered(self, delivery: Delivery) -> None:
        """A message that its receiver has taken."""
        values = {"state": "sent", "attempts": delivery.attempts + 1, "problem": None}
        with self._engine.begin() as connection:
            connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.id == delivery.key).values(values))
        NOTIFY_SENT.labels(delivery.to).inc()

    def refused(self, delivery: Delivery, reason: str) -> None:
        """A message that could not be sent: tried again later, a dead letter after the last attempt."""
        attempts = delivery.attempts + 1
        dead = attempts >= self._settings.max_attempts
        values = {
            "state": "dead" if dead else "pending",
            "attempts": attempts,
            "due": next_attempt(mjd_now(), attempts, self._settings.retry_s, self._settings.max_retry_s),
            "problem": reason[:_LONGEST_PROBLEM],
        }
        with self._engine.begin() as connection:
            connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.id == delivery.key).values(values))
        NOTIFY_REFUSED.labels(delivery.to).inc()
        if dead:
            NOTIFY_DEAD.labels(delivery.to).inc()
            log.error("message %s is given up after %d attempts: %s", delivery.number, attempts, reason)
        else:
            log.warning("message %s, attempt %d: %s", delivery.number, attempts, reason)

    def revive(self, watch: int) -> int:
        """Try a list's dead letters and its topic again; returns how many messages were dead."""
        now = mjd_now()
        with self._engine.begin() as connection:
            dead = sa.update(DELIVERIES).where(DELIVERIES.c.watch == watch, DELIVERIES.c.state == "dead")
            count = connection.execute(dead.values(state="pending", attempts=0, due=now)).rowcount
            values = {"topic_attempts": 0, "topic_given_up": False, "topic_due": now, "problem": None}
            connection.execute(sa.update(WATCHES).where(WATCHES.c.id == watch).values(values))
        return count

    def matches(self, watch: int, limit: int = 100) -> list[Mapping[str, Any]]:
        """What a list has found, the latest first; without payloads."""
        columns = [column for column in MATCHES.c if column.name != "payload"]
        query = sa.select(*columns).where(MATCHES.c.watch == watch).order_by(MATCHES.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def deliveries(self, watch: int, limit: int = 20) -> list[Mapping[str, Any]]:
        """A list's messages, the latest first."""
        query = sa.select(DELIVERIES).where(DELIVERIES.c.watch == watch).order_by(DELIVERIES.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def prune(self, before: float) -> None:
        """Delete what was found before an MJD and is in its topic and message, or was given up, and old messages."""
        kept = sa.exists().where(DELIVERIES.c.id == MATCHES.c.delivery, DELIVERIES.c.state == "pending")
        given_up = sa.exists().where(WATCHES.c.id == MATCHES.c.watch, WATCHES.c.topic_given_up)
        with self._engine.begin() as connection:
            connection.execute(
                sa.delete(MATCHES).where(
                    MATCHES.c.created < before, ~MATCHES.c.waiting, ~MATCHES.c.unsent | given_up, ~kept
                )
            )
            connection.execute(
                sa.delete(DELIVERIES).where(DELIVERIES.c.created < before, DELIVERIES.c.state != "pending")
            )
            quota.forget(connection, mjd_now())


def _row(watch: int, event: str, now: float, annotation: PublishedAnnotation, label: str, told: bool) -> dict[str, Any]:
    placed = math.isfinite(annotation.ra) and math.isfinite(annotation.dec)
    return {
        "watch": watch,
        "event": event,
        "created": now,
        "survey": annotation.survey[:32],
        "object_id": annotation.object_id.replace("\0", ""),
        "class_name": annotation.best_class,
        "probability": annotation.best_probability,
        "anomaly_score": annotation.anomaly_score,
        "ra": annotation.ra if placed else None,
        "dec": annotation.dec if placed else None,
        "label": label,
        "unsent": True,
        "waiting": told,
        "delivery": None,
    }
