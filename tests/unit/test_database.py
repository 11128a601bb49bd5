"""How the database of ``trifid web`` and ``trifid notify`` is connected to."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from broker.database import connect
from tests.postgres_server import PostgresServer


def parameters(engine: sa.Engine) -> dict[str, str]:
    """What libpq was told."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        found: dict[str, str] = driver.info.get_parameters()
    engine.dispose()
    return found


def test_a_server_that_has_gone_without_a_word_is_found(postgres: PostgresServer) -> None:
    told = parameters(connect(postgres.database()))
    assert told["keepalives_idle"] == "30"
    assert told["tcp_user_timeout"] == "60000"
    assert told["connect_timeout"] == "3"


def test_the_url_decides(postgres: PostgresServer) -> None:
    url = sa.make_url(postgres.database()).update_query_dict({"keepalives_idle": "7"})
    told = parameters(connect(url.render_as_string(hide_password=False)))
    assert told["keepalives_idle"] == "7"
    assert told["keepalives_count"] == "3"
