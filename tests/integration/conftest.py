"""A Redis server, or cluster, of one module's own, empty for each test, and the store in it.

Modules may have others by these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from broker.embedded.redis import RedisServer
from broker.state.redis import RedisStore
from deploy.local.redis_cluster import RedisCluster


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: RedisCluster) -> Iterator[Any]:
    """redis-py's client of the cluster, which is empty."""
    with cluster.client() as client:
        client.flushall(target_nodes="primaries")
        yield client
