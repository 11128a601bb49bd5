"""A PostgreSQL server that is stopped, with all its processes: who waits for it, how long, and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from broker.config import Settings
from broker.database import connect
from broker.embedded.redis import RedisServer
from broker.postgres import answers_within
from broker.watch.notifier import Notifier
from broker.web.app import application, parts_of
from broker.web.index import Index
from tests.postgres_server import PostgresServer
from tests.waiting import wait_until


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One of this test's own: nobody else waits for it."""
    with PostgresServer() as server:
        yield server


def test_a_statement_ends_with_its_connection(server: PostgresServer) -> None:
    engine = connect(server.database())
    with (
        answers_within(0.5),
        engine.connect() as connection,
        pytest.raises(sa.exc.OperationalError, match=r"no answer for 0\.5 s") as caught,
    ):
        connection.execute(sa.text("SELECT pg_sleep(600)"))
    assert caught.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_an_answer_may_arrive_for_longer_than_its_parts_may_take(server: PostgresServer) -> None:
    """Each row is more than the server keeps back before it sends; all take 4 s."""
    engine = connect(server.database())
    slowly = "SELECT pg_sleep(0.2), repeat('x', 100000) FROM generate_series(1, 20)"
    with answers_within(2.0), engine.connect() as connection:
        assert len(connection.execute(sa.text(slowly)).all()) == 20
    engine.dispose()


def test_requests_are_answered_while_the_database_is_frozen(server: PostgresServer, tmp_path: Path) -> None:
    with RedisServer() as redis:
        settings = Settings.model_validate(
            {
                "redis": {"url": redis.url},
                "web": {"database": server.database(), "require_login": True},
                "inference": {"model_repository": str(tmp_path)},
            }
        )
        index = Index(settings.web.database.get_secret_value())
        with parts_of(settings, index, follow=False) as parts:
            token = {"Authorization": f"Bearer {parts.tokens.create('a', frozenset({'read'}))}"}
            http = TestClient(application(parts), base_url="http://web.example")
            assert http.get("/api/v1/objects", headers=token).status_code == 200
            with ThreadPoolExecutor() as threads, server.frozen():
                asked = threads.submit(http.get, "/api/v1/objects", headers=token)
                answer = asked.result(300)
                assert answer.status_code == 503
                assert answer.json() == {"detail": "the index does not answer now"}
                assert answer.headers["retry-after"] == "5"
                assert http.get("/healthz").status_code == 200
            wait_until(lambda: http.get("/api/v1/objects", headers=token).status_code == 200)
        index.close()


def test_notify_says_that_the_database_is_silent_and_goes_on(server: PostgresServer) -> None:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "web": {"database": server.database()}}
    )
    engine = connect(settings.web.database.get_secret_value())
    with Notifier(settings, engine) as notifier:
        wait_until(lambda: notifier.problems["deliver"] is None and notifier.problems["hold"] is None)
        with server.frozen():
            wait_until(lambda: "database" in (notifier.problems["deliver"] or ""))
        wait_until(lambda: notifier.problems["deliver"] is None)
    engine.dispose()
