"""Leases of versions of the model, in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.models import leases
from broker.models.leases import Leases, in_use
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def test_a_version_is_in_use_until_its_last_user_has_released_it(redis: RedisServer) -> None:
    one, two = Leases(redis.url, "trifid/one"), Leases(redis.url, "trifid/two")
    one.hold("serving", "m 1")
    one.hold("candidate", "m 2")
    two.hold("serving", "m 1")
    assert in_use(redis.url) == {"m 1": ["trifid/one", "trifid/two"], "m 2": ["trifid/one"]}
    one.hold("next", "m 2")  # promoted: beside the candidate
    one.release("candidate")
    one.release("serving")
    assert in_use(redis.url) == {"m 1": ["trifid/two"], "m 2": ["trifid/one"]}
    one.close()
    two.close()
    assert in_use(redis.url) == {}


def test_a_worker_that_was_killed_is_forgotten_and_one_that_renews_is_not(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_EXPIRY_S", 1)
    now = [0.0]
    dead, alive = Leases(redis.url, "dead"), Leases(redis.url, "alive", clock=lambda: now[0])
    dead.hold("serving", "m 1")
    alive.hold("serving", "m 1")
    assert in_use(redis.url) == {"m 1": ["alive", "dead"]}
    monkeypatch.setattr(leases, "_EXPIRY_S", 600)
    now[0] = leases.RENEWED_S
    alive.renew()
    wait_until(lambda: in_use(redis.url) == {"m 1": ["alive"]})
    alive.close()
    assert in_use(redis.url) == {}


@pytest.mark.parametrize("wrong", [b"no JSON", b"5", b"[[1]]", b"[{}]"])
def test_what_a_living_worker_did_not_write_is_no_answer(redis: RedisServer, wrong: bytes) -> None:
    with closing(redis.client()) as client:
        client.flushall()
        client.hset("trifid:model_leases", "one", wrong)
        client.set("trifid:model_leases:one", "1")
    with pytest.raises(DependencyUnavailableError, match="trifid:model_leases holds something else than leases"):
        in_use(redis.url)


def test_another_value_in_place_of_the_leases_is_replaced(redis: RedisServer) -> None:
    with closing(redis.client()) as client:
        client.flushall()
        client.set("trifid:model_leases", "text")
        client.hset("trifid:model_leases:one", "field", "value")
    with pytest.raises(DependencyUnavailableError, match="WRONGTYPE"):
        in_use(redis.url)
    held = Leases(redis.url, "one")
    held.hold("serving", "m 1")
    assert in_use(redis.url) == {"m 1": ["one"]}
    held.close()


def test_without_redis_nothing_is_held_and_nothing_known() -> None:
    held = Leases("redis://127.0.0.1:1", "one")
    with pytest.raises(DependencyUnavailableError):
        held.hold("serving", "m 1")
    held.renew()
    held.release("serving")
    held.close()
    with pytest.raises(DependencyUnavailableError):
        in_use("redis://127.0.0.1:1")
