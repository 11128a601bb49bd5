"""Corrections in a real Redis, single and as a cluster: taken over, replaced, and never of another version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from broker.errors import ConfigurationError
from broker.feedback.learned import Learned, get, key_of, put
from broker.feedback.learner import Correction, learn
from broker.redis_client import RedisConnection
from broker.times import mjd_now
from deploy.local.redis_cluster import RedisCluster

MODEL, SET = "trifid-test 1", "1 abc"


@pytest.fixture(params=["single", "cluster"])
def connection(request: pytest.FixtureRequest) -> Iterator[RedisConnection]:
    if request.param == "single":
        request.getfixturevalue("client")
        address = str(request.getfixturevalue("server").url)
    else:
        request.getfixturevalue("nodes")
        cluster: RedisCluster = request.getfixturevalue("cluster")
        address = str(cluster.address)
    with closing(RedisConnection(address)) as connection:
        yield connection


def correction(answers: int, interesting: bool = True) -> Correction:
    rng = np.random.default_rng(answers)
    vectors = np.zeros((answers, 3, 16), np.float32)
    vectors[:, 0] = rng.normal(size=(answers, 16))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True).clip(1e-9)
    return learn(MODEL, SET, vectors, np.full(answers, 0.99), np.full(answers, interesting), mjd_now())


def test_a_worker_takes_over_what_was_learned_since(connection: RedisConnection) -> None:
    with closing(Learned(connection)) as learned:
        learned.follow(MODEL, SET)
        assert learned.current is None
        put(connection, correction(3))
        learned.look()
        assert learned.current is not None
        assert learned.current.weights == pytest.approx(correction(3).weights)
        first = learned.current
        learned.look()
        assert learned.current is first
        put(connection, correction(4, interesting=False))
        learned.look()
        assert learned.current is not None
        assert (learned.current.weights < 0).tolist() == [True] * 4
        # Another version: what was learned for the one before is not for it.
        learned.follow("trifid-test 2", SET)
        assert learned.current is None
        learned.follow(MODEL, SET)
        assert len(learned.current) == 4


def test_what_cannot_be_used_leaves_what_is_at_hand(
    connection: RedisConnection, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Learned(connection)) as learned:
        put(connection, correction(3))
        learned.follow(MODEL, SET)
        assert learned.current is not None
        for data in (b"nonsense", replace(correction(2), model="another").to_bytes(), b"x" * (9 << 20)):
            connection.commands([("SET", key_of(MODEL, SET), data), ("SET", f"{key_of(MODEL, SET)}:digest", "other")])
            learned.look()
            assert len(learned.current) == 3
            with pytest.raises(ConfigurationError, match="trifid:feedback:trifid-test 1:1 abc"):
                get(connection, MODEL, SET)
        assert caplog.text.count("answers about objects are not taken over") == 1
        connection.commands([("DEL", key_of(MODEL, SET)), ("DEL", f"{key_of(MODEL, SET)}:digest")])
        learned.look()
        assert learned.current is None
