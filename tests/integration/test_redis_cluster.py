"""A real Redis Cluster, three primaries with a replica each: connections, what they say, what is kept in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from broker.anomaly import stored
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.redis_client import RedisConnection
from broker.streaming.peers import Peers
from deploy.local.redis_cluster import RedisCluster


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


def test_commands_and_scripts_go_to_the_nodes_of_their_keys(cluster: RedisCluster, nodes: Any) -> None:
    with closing(RedisConnection(cluster.address)) as connection:
        keys = [f"trifid:{{{number}}}:x" for number in range(30)]
        owners = {nodes.get_node_from_key(key).port for key in keys}
        assert len(owners) == 3
        script = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('INCR', KEYS[1])"
        for _ in range(2):  # first the servers do not know the script
            found = connection.execute(
                lambda pipeline: [pipeline.script(script, [key], [row]) for row, key in enumerate(keys)]
            )
            assert found == list(range(1, 31))
        assert connection.get_many([*keys[:3], "trifid:none"]) == [b"1", b"2", b"3", None]
        assert sorted(connection.scan("trifid:*:x")) == sorted(key.encode() for key in keys)


def test_a_script_that_touches_a_second_slot_is_refused(cluster: RedisCluster, nodes: Any) -> None:
    """By the server, also where the same node has both slots."""
    with closing(RedisConnection(cluster.address)) as connection:
        mine = nodes.get_node_from_key("trifid:{0}:x")
        other = next(n for n in range(1, 99) if nodes.get_node_from_key(f"trifid:{{{n}}}:x") == mine)
        script = f"return redis.call('SET', 'trifid:{{{other}}}:x', 1)"
        with pytest.raises(Exception, match="do not hash to the same slot"):
            connection.execute(lambda pipeline: pipeline.script(script, ["trifid:{0}:x"], []))
        assert connection.get(f"trifid:{{{other}}}:x") is None


def test_replicas_have_what_was_written_where_that_is_asked_for(cluster: RedisCluster, nodes: Any) -> None:
    with closing(RedisConnection(cluster.address, replicas=1)) as connection:
        write = [("SET", f"trifid:{number}", number) for number in range(20)]
        answers = connection.execute(lambda pipeline: [pipeline.command(*words) for words in write], write=True)
        assert answers == [True] * 20
        held = 0
        for replica in cluster.replicas:
            with replica.client() as client:
                held += client.dbsize()  # type: ignore[operator]
        assert held == 20
    with (
        closing(RedisConnection(cluster.address, replicas=2)) as connection,
        pytest.raises(DependencyUnavailableError, match="fewer than 2 replicas acknowledged"),
    ):
        connection.execute(lambda pipeline: pipeline.command("SET", "trifid:1", 1), write=True)


def test_what_is_wrong_is_said(cluster: RedisCluster) -> None:
    def ask(address: str) -> None:
        with closing(RedisConnection(address)) as connection:
            for number in range(9):  # keys of several nodes
                connection.get(f"trifid:{number}")

    with pytest.raises(ConfigurationError, match=r"is a node of a cluster, and redis\.cluster is not true"):
        ask(cluster.url)
    with RedisServer() as server:
        address = f"{server.url}?cluster=true"
        with pytest.raises(ConfigurationError, match=r"redis\.cluster is true, and the server at redis\.url is not"):
            ask(address)
    with pytest.raises(DependencyUnavailableError, match=r"Redis Cluster is unavailable.*cannot be connected"):
        ask(address)


def test_reference_sets_and_peers(cluster: RedisCluster, nodes: Any) -> None:
    stored.put(cluster.address, "model.1", b"set")
    assert stored.get(cluster.address, "model.1") == b"set"
    assert nodes.ttl(stored.key_of("model.1")) > 0
    notes: list[str | None] = []
    versions = {"a": "1", "b": "2"}
    peers = [
        Peers(cluster.address, "group", name, lambda version=version: version, notes.append, 1000.0)
        for name, version in versions.items()
    ]
    for _ in range(3):
        for peer in peers:
            assert peer.probe() is None
    assert set(notes) == {
        "this worker runs 1, others of its group 2 (b)",
        "this worker runs 2, others of its group 1 (a)",
    }
    for peer in peers:
        peer.close()
    assert nodes.hgetall("trifid:workers:group") == {}
