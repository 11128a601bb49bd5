"""A Redis server of one module's own, empty for each test, and the store in it.

Modules may have others by these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from broker.embedded.redis import RedisServer
from broker.state.redis import RedisStore


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(server: RedisServer, client: redis.Redis) -> Iterator[RedisStore]:
    with closing(RedisStore(server.url)) as store:
        yield store
