"""What each user's lists have had today, apart from the lists: whoever deletes one and makes it anew gets no more."""

from __future__ import annotations

import math

import sqlalchemy as sa

from broker.database import WATCH_DAYS, insert_missing


def used(connection: sa.Connection, owner: str, now: float) -> tuple[int, int]:
    """Matches and messages of the day of an MJD; until the transaction ends no other one gets past this for them.

    So what is compared with a quota is still true when ``count`` adds to it.
    """
    row = {"owner": owner, "day": math.floor(now), "matches": 0, "messages": 0}
    connection.execute(insert_missing(connection, WATCH_DAYS, ("owner", "day")), [row])
    held = sa.update(WATCH_DAYS).where(*_of(owner, now)).values(matches=WATCH_DAYS.c.matches)
    connection.execute(held)
    query = sa.select(WATCH_DAYS.c.matches, WATCH_DAYS.c.messages).where(*_of(owner, now))
    matches, messages = connection.execute(query).one()
    return matches, messages


def count(connection: sa.Connection, owner: str, now: float, *, matches: int = 0, messages: int = 0) -> None:
    """Add to them, after ``used`` in the same transaction."""
    more = {"matches": WATCH_DAYS.c.matches + matches, "messages": WATCH_DAYS.c.messages + messages}
    connection.execute(sa.update(WATCH_DAYS).where(*_of(owner, now)).values(more))


def forget(connection: sa.Connection, now: float) -> None:
    """Delete the days before that of an MJD."""
    connection.execute(sa.delete(WATCH_DAYS).where(WATCH_DAYS.c.day < math.floor(now)))


def _of(owner: str, now: float) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return WATCH_DAYS.c.owner == owner, WATCH_DAYS.c.day == math.floor(now)
