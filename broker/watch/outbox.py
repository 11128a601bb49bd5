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

from broker.config import Settings
from broker.database import DELIVERIES, MATCHES, WATCHES, insert_missing
from broker.metrics import NOTIFY_DEAD, NOTIFY_LEFT_OUT, NOTIFY_MATCHES, NOTIFY_REFUSED, NOTIFY_SENT, NOTIFY_WAITING
from broker.publish.annotation import PublishedAnnotation
from broker.times import mjd_now
from broker.watch import quota
from broker.watch.deliveries import ADDRESSED, LONGEST_PROBLEM
from broker.watch.lists import owner_counts
from broker.watch.match import Hit
from broker.watch.times import DAILY, next_attempt, next_message

log = logging.getLogger(__name__)

_AT_ONCE: Final = 500
"""Messages of one list that are made in one transaction."""
_ROWS: Final = 200
"""Values of one statement, which SQLite bounds."""


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


class Outbox:
    """Of one database."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings.notify
        self._tokens_required = settings.web.tokens_required

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
            asked = sa.select(WATCHES.c.id, ADDRESSED).where(~WATCHES.c.deleted)
            there = {key: bool(is_told) for key, is_told in connection.execute(asked)}
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
                    connection.execute(insert_missing(connection, MATCHES, ("watch", "event")), rows)
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

    def unsent(self, limit: int) -> list[Unsent]:
        """Matches for topics that are due, the oldest first; those of an owner who does not count any more stay."""
        now = mjd_now()
        counts = ~WATCHES.c.deleted & owner_counts(now, tokens_required=self._tokens_required)
        query = (
            sa.select(
                MATCHES.c.id, MATCHES.c.watch, WATCHES.c.topic, MATCHES.c.event, MATCHES.c.object_id, MATCHES.c.label,
                MATCHES.c.payload,
            )
            .join(WATCHES)
            .where(MATCHES.c.unsent, counts, ~WATCHES.c.topic_given_up, WATCHES.c.topic_due <= now)
            .order_by(MATCHES.c.id)
            .limit(limit)
        )  # fmt: skip
        with self._engine.connect() as connection:
            waiting = sa.select(sa.func.count()).select_from(MATCHES.join(WATCHES)).where(MATCHES.c.unsent, counts)
            NOTIFY_WAITING.set(connection.execute(waiting).scalar_one())
            return [Unsent(*row) for row in connection.execute(query)]

    def published(self, sent: Sequence[Unsent]) -> None:
        """Matches that Kafka has acknowledged."""
        if not sent:
            return
        with self._engine.begin() as connection:
            undelivered = sa.exists().where(DELIVERIES.c.id == MATCHES.c.delivery, DELIVERIES.c.state != "sent")
            formatted = sa.exists().where(WATCHES.c.id == MATCHES.c.watch, WATCHES.c.format.is_not(None))
            wanted = formatted & (MATCHES.c.waiting | undelivered)
            payload = sa.case((wanted, MATCHES.c.payload), else_=None)
            connection.execute(
                sa.update(MATCHES).where(MATCHES.c.id == sa.bindparam("key")).values(unsent=False, payload=payload),
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
                "topic_attempts": attempts, "topic_given_up": dead, "problem": reason[:LONGEST_PROBLEM],
                "topic_due": next_attempt(now, attempts, self._settings.retry_s, self._settings.max_retry_s),
            }  # fmt: skip
            connection.execute(sa.update(WATCHES).where(WATCHES.c.id == watch).values(values))
        NOTIFY_REFUSED.labels("topic").inc()
        if dead:
            NOTIFY_DEAD.labels("topic").inc()
            told = {"list": watch, "to": "topic"}
            log.error("list %d: its topic is given up after %d attempts: %s", watch, attempts, reason, extra=told)

    def collect(self) -> int:
        """Make messages of what waits for one, of lists whose time has come; returns how many."""
        now, made = mjd_now(), 0
        waiting = (
            sa.select(WATCHES.c.id, WATCHES.c.owner, WATCHES.c.every_hours, WATCHES.c.format)
            .where(
                ~WATCHES.c.deleted,
                WATCHES.c.next_message <= now,
                ADDRESSED,
                owner_counts(now, tokens_required=self._tokens_required),
                sa.exists().where(MATCHES.c.watch == WATCHES.c.id, MATCHES.c.waiting),
            )
            .order_by(WATCHES.c.next_message)
        )
        with self._engine.connect() as connection:
            due = connection.execute(waiting).all()
        for watch, owner, every_hours, form in due:
            if form is not None:
                made += self._one_each(watch, now)
                continue
            with self._engine.begin() as connection:
                if quota.used(connection, owner, now)[1] >= self._settings.messages_per_day:
                    continue
                later = next_message(now, every_hours, self._settings.digest_hour)
                mine = sa.update(WATCHES).where(WATCHES.c.id == watch, WATCHES.c.next_message <= now)
                if connection.execute(mine.values(next_message=later)).rowcount != 1:  # another process has made it
                    continue
                quota.count(connection, owner, now, messages=1)
                key = _new_message(connection, watch, now, 0)
                own = sa.update(MATCHES).where(MATCHES.c.watch == watch, MATCHES.c.waiting)
                taken = connection.execute(own.values(waiting=False, delivery=key)).rowcount
                connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.id == key).values(matches=taken))
                made += 1
        self._skip_digests(now)
        return made

    def _one_each(self, watch: int, now: float) -> int:
        """A message for each match, of formats that tell one annotation at a time; ``matches_per_day`` bounds them."""
        with self._engine.begin() as connection:
            query = sa.select(MATCHES.c.id).where(MATCHES.c.watch == watch, MATCHES.c.waiting).order_by(MATCHES.c.id)
            matches = connection.execute(query.limit(_AT_ONCE)).scalars().all()
            made = 0
            for match in matches:
                mine = sa.update(MATCHES).where(MATCHES.c.id == match, MATCHES.c.waiting)
                if connection.execute(mine.values(waiting=False)).rowcount == 1:
                    key = _new_message(connection, watch, now, 1)
                    connection.execute(sa.update(MATCHES).where(MATCHES.c.id == match).values(delivery=key))
                    made += 1
        return made

    def _skip_digests(self, now: float) -> None:
        """Daily messages whose time comes while nothing waits: what is found after that is for the next day's."""
        waits = sa.exists().where(MATCHES.c.watch == WATCHES.c.id, MATCHES.c.waiting)
        empty = sa.update(WATCHES).where(WATCHES.c.every_hours == DAILY, WATCHES.c.next_message <= now, ~waits)
        with self._engine.begin() as connection:
            connection.execute(empty.values(next_message=next_message(now, DAILY, self._settings.digest_hour)))

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
        """Delete what was found before an MJD and is in its topic and message, or was given up, and old messages.

        And what waits for an owner who does not count any more.
        """
        counts = owner_counts(mjd_now(), tokens_required=self._tokens_required)
        nobodys = sa.select(WATCHES.c.id).where(~counts)
        kept = sa.exists().where(DELIVERIES.c.id == MATCHES.c.delivery, DELIVERIES.c.state == "pending")
        given_up = sa.exists().where(WATCHES.c.id == MATCHES.c.watch, WATCHES.c.topic_given_up)
        with self._engine.begin() as connection:
            for table in (MATCHES, DELIVERIES):
                connection.execute(sa.delete(table).where(table.c.created < before, table.c.watch.in_(nobodys)))
            connection.execute(
                sa.delete(MATCHES).where(
                    MATCHES.c.created < before, ~MATCHES.c.waiting, ~MATCHES.c.unsent | given_up, ~kept
                )
            )
            connection.execute(
                sa.delete(DELIVERIES).where(DELIVERIES.c.created < before, DELIVERIES.c.state != "pending")
            )
            quota.forget(connection, mjd_now())


def _new_message(connection: sa.Connection, watch: int, now: float, matches: int) -> int:
    row = {
        "watch": watch, "number": uuid.uuid4().hex, "created": now, "matches": matches, "state": "pending",
        "attempts": 0, "due": now, "problem": None,
    }  # fmt: skip
    (key,) = connection.execute(sa.insert(DELIVERIES).returning(DELIVERIES.c.id), [row]).scalars()
    return int(key)


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
