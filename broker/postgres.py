"""Connections to PostgreSQL that give up on a server which does not answer.

psycopg waits without a limit for an answer, and what libpq can be told (``tcp_user_timeout``, ``keepalives_...``) is
about networks: a server that is stopped, or hangs on its disk, still acknowledges packets. So each wait has a limit
here, and a connection that reached it is closed, which has SQLAlchemy drop the others of its pool, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

_SILENCE_S: ContextVar[float] = ContextVar("silence", default=60.0)
"""Longest wait for an answer, or for the next part of one, seconds."""
PRUNE_ANSWER_S: Final = 600.0
"""Longest wait for the end of a deletion of what is older than the retention time."""
_PING_S: Final = 2.0
"""Longest wait for the answer to nothing, by which the pool finds out whether a connection still works."""
_LIBPQ: Final = {
    "connect_timeout": 3,  # seconds, as keepalives_...
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
"""What libpq is told, unless the URL says otherwise: a server that has gone without a word, as in a power cut or behind
a firewall that forgets connections, is an error after a minute, and not after the kernel's two hours."""


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Wait no longer than that for an answer of the database, or the next part of one, in this context; else 60 s."""
    token = _SILENCE_S.set(seconds)
    try:
        yield
    finally:
        _SILENCE_S.reset(token)


def connection_options(url: str) -> dict[str, int]:
    """Of a connection to PostgreSQL by psycopg, without what the URL says itself."""
    parts = sa.make_url(url)
    if parts.get_backend_name() != "postgresql" or not parts.get_driver_name().startswith("psycopg"):
        return {}
    return {name: value for name, value in _LIBPQ.items() if name not in parts.query}


def limit_silence(engine: sa.Engine) -> None:
    """Have all connections of an engine of psycopg give up; engines of other drivers stay as they are."""
    if engine.dialect.driver != "psycopg":
        return
    ping = engine.dialect.do_ping

    def bounded(dbapi_connection: Any) -> bool:
        with answers_within(_PING_S):
            return ping(dbapi_connection)

    engine.dialect.do_ping = bounded  # type: ignore[method-assign]

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: sa.Dialect, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        return _connection_class().connect(*arguments, **options)


@cache
def _connection_class() -> Any:
    """psycopg's connection with a limit to each wait; it is only there with the extra ``postgresql``."""
    import psycopg

    class LimitedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            return super().wait(self._limited(gen), *arguments, **named)

        def _limited(self, gen: Any) -> Any:
            """What ``gen`` does: it is asked at least ten times a second, with 0 where the server has sent nothing."""
            seconds = _SILENCE_S.get()
            end = time.monotonic() + seconds
            try:
                state = next(gen)
                while True:
                    ready = yield state
                    if ready:
                        end = time.monotonic() + seconds
                    elif time.monotonic() > end:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"no answer for {seconds:g} s")
                    state = gen.send(ready)
            except StopIteration as stop:
                return stop.value

    return LimitedConnection
