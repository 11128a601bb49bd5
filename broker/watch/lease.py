"""Which of several processes sends: one fills the topics, and each message is sent by one.

A lease ends by the database's clock, never by that of a host, and goes on for as long as its holder extends it, however
long a receiver takes. A process that cannot reach the database for ``notify.lease_s`` knows by its own monotonic clock
that it has lost what it held. What it had begun by then may come twice, with the same number.
"""

from __future__ import annotations

import time
import uuid
from typing import Final

import sqlalchemy as sa

from broker.database import DELIVERIES, LEASES, database_now, insert_missing

_TOPICS: Final = "outbox"


class Lease:
    """Of one process; for several threads."""

    def __init__(self, engine: sa.Engine, seconds: float) -> None:
        self._engine, self.seconds = engine, seconds
        self.holder = uuid.uuid4().hex
        self._topics_until = -float("inf")
        self.messages: set[int] = set()
        """Keys of the messages that this process is sending now."""

    def take_topics(self) -> bool:
        """Whether this process is the one that fills topics, for ``seconds`` from now."""
        asked = time.monotonic()
        with self._engine.begin() as connection:
            row = {"name": _TOPICS, "holder": self.holder, "until": 0.0}
            connection.execute(insert_missing(connection, LEASES, ("name",)), [row])
            now = database_now(connection)
            free = (LEASES.c.until < now) | (LEASES.c.holder == self.holder)
            taken = sa.update(LEASES).where(LEASES.c.name == _TOPICS, free)
            until = now + self.seconds / 86_400.0
            got = connection.execute(taken.values(holder=self.holder, until=until)).rowcount == 1
        self._topics_until = asked + self.seconds if got else -float("inf")
        return got

    def holds_topics(self) -> bool:
        """Whether no other process fills topics yet."""
        return time.monotonic() < self._topics_until

    def extend(self) -> None:
        """Keep what this process holds, the topics and messages that it is sending, for ``seconds`` from now."""
        asked = time.monotonic()
        with self._engine.begin() as connection:
            until = database_now(connection) + self.seconds / 86_400.0
            topics = sa.update(LEASES).where(LEASES.c.name == _TOPICS, LEASES.c.holder == self.holder)
            if connection.execute(topics.values(until=until)).rowcount:
                self._topics_until = asked + self.seconds
            else:
                self._topics_until = -float("inf")
            own = sa.update(DELIVERIES).where(
                DELIVERIES.c.holder == self.holder, DELIVERIES.c.id.in_(set(self.messages))
            )
            connection.execute(own.values(until=until))

    def release(self) -> None:
        """Let other processes go on at once."""
        self._topics_until = -float("inf")
        with self._engine.begin() as connection:
            connection.execute(sa.delete(LEASES).where(LEASES.c.holder == self.holder))
            own = sa.update(DELIVERIES).where(DELIVERIES.c.holder == self.holder)
            connection.execute(own.values(holder=None, until=None))
