"""Messages of lists in the database: claimed by one process, tried again, given up."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from broker.config import Settings
from broker.database import DELIVERIES, MATCHES, WATCHES, database_now
from broker.log_fields import Field
from broker.metrics import NOTIFY_DEAD, NOTIFY_REFUSED, NOTIFY_SENT
from broker.times import mjd_now
from broker.watch.lease import Lease
from broker.watch.lists import owner_counts
from broker.watch.times import next_attempt

log = logging.getLogger(__name__)

LONGEST_PROBLEM: Final = 500
SHOWN: Final = 100
"""Matches that a message lists; it counts the others."""
_LOOKED_AT: Final = 500
"""Lists with something due, the longest due first, at a time: of one slow receiver there may be as many."""
ADDRESSED: Final = WATCHES.c.email.is_not(None) | WATCHES.c.webhook.is_not(None)
"""Of a row of WATCHES."""


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

    def log_fields(self) -> dict[str, Field]:
        """What structured logs say of it: the message, its list, and the first of its matches."""
        first = {name: self.rows[0][name] for name in ("survey", "object_id", "event")} if self.rows else {}
        return {
            "message_number": self.number,
            "list": self.watch["id"],
            "to": self.to,
            "matches": self.matches,
            **first,
        }

    @property
    def receiver(self) -> str:
        """What may be slow for all of its messages: a host, or the mail server."""
        return _receiver(self.watch["webhook"])


def _receiver(webhook: str | None) -> str:
    return "mail" if webhook is None else urlsplit(webhook).netloc.rpartition("@")[2].lower()


class Deliveries:
    """Of one database and process; for several threads."""

    def __init__(self, engine: sa.Engine, settings: Settings, lease: Lease) -> None:
        self._engine, self._settings, self._lease = engine, settings.notify, lease
        self._tokens_required = settings.web.tokens_required

    def claim(self, may: Callable[[str, str], bool]) -> Delivery | None:
        """The message that is longest due, for this process alone to send; None where there is none.

        ``may`` says of an owner and a receiver (``Delivery.receiver``) whether another one may be sent now. Messages
        of a list that is deleted, has no address, or whose owner does not count any more are left.
        """
        now = mjd_now()
        with self._engine.connect() as connection:
            waits = self._waits(now, database_now(connection))
            oldest = sa.func.min(DELIVERIES.c.due)
            query = (
                sa.select(WATCHES.c.id, WATCHES.c.owner, WATCHES.c.webhook)
                .join(DELIVERIES, DELIVERIES.c.watch == WATCHES.c.id)
                .where(waits)
                .group_by(WATCHES.c.id, WATCHES.c.owner, WATCHES.c.webhook)
                .order_by(oldest, WATCHES.c.id)
                .limit(_LOOKED_AT)
            )
        for start in itertools.count(0, _LOOKED_AT):
            with self._engine.connect() as connection:
                found = connection.execute(query.offset(start)).all()
            for watch, owner, webhook in found:
                if may(owner, _receiver(webhook)) and (delivery := self._claim(watch, now)) is not None:
                    return delivery
            if len(found) < _LOOKED_AT:
                break
        return None

    def _waits(self, now: float, database: float) -> sa.ColumnElement[bool]:
        return (
            (DELIVERIES.c.state == "pending")
            & (DELIVERIES.c.due <= now)
            & (DELIVERIES.c.until.is_(None) | (DELIVERIES.c.until < database))
            # Not what this process is still sending, should its lease have ended as on a machine that hung.
            & DELIVERIES.c.id.not_in(self._lease.messages.copy())
            & ~WATCHES.c.deleted
            & ADDRESSED
            & owner_counts(now, tokens_required=self._tokens_required)
        )

    def _claim(self, watch: int, now: float) -> Delivery | None:
        """The first of a list; None where another process was faster."""
        key: int | None = None
        try:
            with self._engine.begin() as connection:
                database = database_now(connection)
                waits = self._waits(now, database)
                first = (
                    sa.select(DELIVERIES.c.id)
                    .join(WATCHES, DELIVERIES.c.watch == WATCHES.c.id)
                    .where(DELIVERIES.c.watch == watch, waits)
                    .order_by(DELIVERIES.c.due, DELIVERIES.c.id)
                    .limit(1)
                )
                if (key := connection.execute(first).scalar_one_or_none()) is None:
                    return None
                free = DELIVERIES.c.until.is_(None) | (DELIVERIES.c.until < database)
                mine = sa.update(DELIVERIES).where(DELIVERIES.c.id == key, DELIVERIES.c.state == "pending", free)
                until = database + self._lease.seconds / 86_400.0
                if connection.execute(mine.values(holder=self._lease.holder, until=until)).rowcount != 1:
                    return None
                self._lease.messages.add(key)
                row = connection.execute(sa.select(DELIVERIES).where(DELIVERIES.c.id == key)).mappings().one()
                told = connection.execute(sa.select(WATCHES).where(WATCHES.c.id == watch)).mappings().one()
                own = sa.select(MATCHES).where(MATCHES.c.delivery == key).order_by(MATCHES.c.id).limit(SHOWN)
                rows = [dict(one) for one in connection.execute(own).mappings()]
        except BaseException:
            if key is not None:  # rolled back: it is to be claimed again
                self._lease.messages.discard(key)
            raise
        return Delivery(key, row["number"], row["attempts"], row["matches"], rows, dict(told))

    def let_go(self, delivery: Delivery) -> None:
        """Sent or not, it is not being sent any more: another process may, once the lease has ended."""
        self._lease.messages.discard(delivery.key)

    def delivered(self, delivery: Delivery) -> None:
        """A message that its receiver has taken, whoever holds it by now."""
        values = {"state": "sent", "attempts": delivery.attempts + 1, "problem": None, "holder": None, "until": None}
        with self._engine.begin() as connection:
            connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.id == delivery.key).values(values))
            own = sa.update(MATCHES).where(MATCHES.c.delivery == delivery.key, ~MATCHES.c.unsent)
            connection.execute(own.values(payload=None))
        NOTIFY_SENT.labels(delivery.to).inc()

    def refused(self, delivery: Delivery, reason: str, *, answered: bool = True) -> None:
        """A message that could not be sent: tried again later, a dead letter after the last attempt.

        Changes nothing where another process holds it by now: that one's attempt counts. Where the receiver has not
        ``answered``, the list's other messages, of which there may be thousands, wait as well, without an attempt.
        """
        attempts = delivery.attempts + 1
        dead = attempts >= self._settings.max_attempts
        values = {
            "state": "dead" if dead else "pending",
            "attempts": attempts,
            "due": next_attempt(mjd_now(), attempts, self._settings.retry_s, self._settings.max_retry_s),
            "problem": reason[:LONGEST_PROBLEM],
            "holder": None,
            "until": None,
        }
        mine = (DELIVERIES.c.id == delivery.key) & (DELIVERIES.c.holder == self._lease.holder)
        with self._engine.begin() as connection:
            held = connection.execute(sa.update(DELIVERIES).where(mine).values(values)).rowcount == 1
            if held and not answered:
                others = sa.update(DELIVERIES).where(
                    DELIVERIES.c.watch == delivery.watch["id"], DELIVERIES.c.state == "pending",
                    DELIVERIES.c.holder.is_(None), DELIVERIES.c.due < values["due"],
                )  # fmt: skip
                connection.execute(others.values(due=values["due"]))
        NOTIFY_REFUSED.labels(delivery.to).inc()
        if dead and held:
            NOTIFY_DEAD.labels(delivery.to).inc()
            log.error("message %s is given up after %d attempts: %s", delivery.number, attempts, reason)
        else:
            log.warning("message %s, attempt %d: %s", delivery.number, attempts, reason)
