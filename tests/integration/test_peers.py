"""Workers of one group that run different models notice each other, in a real Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import redis
from prometheus_client import REGISTRY

from broker.embedded.redis import RedisServer
from broker.streaming.peers import Peers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def join(server: RedisServer, clock: Clock, worker: str, version: str, notes: list[str | None]) -> Peers:
    return Peers(server.url, "g", worker, lambda: version, notes.append, 100.0, clock)


def mixed() -> float | None:
    return REGISTRY.get_sample_value("trifid_mixed_models")


def test_another_version_is_named_at_once_and_a_fault_after_a_time(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    notes: list[str | None] = []
    theirs: list[str | None] = []
    first, second = join(server, clock, "a", "m 1", notes), join(server, clock, "b", "m 2", theirs)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert first.probe() is None
            assert second.probe() is None
            clock.now += 5
    assert notes == ["this worker runs m 1, others of its group m 2 (b)"]
    assert theirs == ["this worker runs m 2, others of its group m 1 (a)"]
    assert sorted(r.message for r in caplog.records) == sorted([str(notes[0]), str(theirs[0])])
    assert mixed() == 1
    for _ in range(20):
        clock.now += 5
        problems = first.probe(), second.probe()
    assert problems[0] is not None
    assert problems[0].startswith("this worker runs m 1, others of its group m 2 (b), for 1")
    assert problems[1] is not None
    # It ends: the other is replaced by one of the same version under the same name.
    third = join(server, clock, "b", "m 1", [])
    third.probe()
    assert first.probe() is None
    assert notes[-1] is None
    assert mixed() == 0


def test_a_worker_that_is_gone_counts_for_nothing(server: RedisServer) -> None:
    clock: Clock = Clock()
    notes: list[str | None] = []
    crashed = join(server, clock, "b", "m 2", [])
    crashed.probe()
    first = join(server, clock, "a", "m 1", notes)
    for _ in range(30):  # it left an entry, which nobody changes
        clock.now += 5
        assert first.probe() is None
    assert notes == []
    crashed.probe()
    assert first.probe() is None
    assert notes == ["this worker runs m 1, others of its group m 2 (b)"]
    clock.now += 61
    assert first.probe() is None
    assert notes[-1] is None
    with redis.Redis.from_url(server.url) as client:
        clock.now += 86_401
        first.probe()
        assert client.hkeys("trifid:workers:g") == [b"a"]
        first.close()
        assert client.hkeys("trifid:workers:g") == []


def test_nothing_is_said_before_the_model_is_known_or_without_redis(server: RedisServer) -> None:
    version: list[str | None] = [None]
    peers = Peers(server.url, "g", "a", lambda: version[0], lambda _: None, 100.0)
    assert peers.probe() is None
    with redis.Redis.from_url(server.url) as client:
        assert client.exists("trifid:workers:g") == 0
    version[0] = "m 1"
    server.kill()
    assert peers.probe() is None  # Redis's own check says so
    peers.close()
