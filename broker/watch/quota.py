"""What each user's lists have had today, apart from the lists: whoever deletes one and makes it anew gets no more."""

from __future__ import annotations

import math

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from broker.web.tables import WATCH_DAYS


def used(connection: sa.Connection, owner: str, now: float) -> tuple[int, int]:
    """Matches and messages of the day of an MJD."""
    query = sa.select(WATCH_DAYS.c.matches, WATCH_DAYS.c.messages).where(*_of(owner, now))
    row = connection.execute(query).one_or_none()
    return (0, 0) if row is None else (row.matches, row.messages)


def count(connection: sa.Connection, owner: str, now: float, *, matches: int = 0, messages: int = 0) -> None:
    """Add to them, beside what other processes add."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {"owner": owner, "day": math.floor(now), "matches": 0, "messages": 0}
    connection.execute(insert(WATCH_DAYS).on_conflict_do_nothing(index_elements=["owner", "day"]), [row])
    more = {"matches": WATCH_DAYS.c.matches + matches, "messages": WATCH_DAYS.c.messages + messages}
    connection.execute(sa.update(WATCH_DAYS).where(*_of(owner, now)).values(more))


def forget(connection: sa.Connection, now: float) -> None:
    """Delete the days before that of an MJD."""
    connection.execute(sa.delete(WATCH_DAYS).where(WATCH_DAYS.c.day < math.floor(now)))


def _of(owner: str, now: float) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return WATCH_DAYS.c.owner == owner, WATCH_DAYS.c.day == math.floor(now)
