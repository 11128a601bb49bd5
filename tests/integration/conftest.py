"""Servers of one module's own: Redis, or a cluster of it, empty for each test, with the store in it; Kafka; a browser.

Modules may have others by these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import redis

from broker.embedded.redis import RedisServer
from broker.state.redis import RedisStore
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from deploy.local.redis_cluster import RedisCluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    """Kafka without topics."""
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    with KafkaServer() as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    from tests.integration.chromium import browser  # here: other tests need no Playwright

    with browser() as found:
        yield found
