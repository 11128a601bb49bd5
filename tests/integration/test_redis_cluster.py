"""A real Redis Cluster, three primaries with a replica each: connections, what they say, what is kept in it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.anomaly import stored
from broker.catalog.presets import PRESETS
from broker.catalog.store import CatalogStore
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.records import METADATA_FEATURES
from broker.redis_client import RedisConnection
from broker.state.redis import RedisStore
from broker.streaming.peers import Peers
from deploy.local.redis_cluster import RedisCluster
from tests.integration.test_redis_store import point


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


def stars(folder: Path, count: int = 3000) -> tuple[Path, list[tuple[float, float]]]:
    """A table of stars all over the sky, each of a magnitude that tells its row, and where they are."""
    rng = np.random.default_rng(4)
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    columns = {"ra": ra, "dec": dec, "phot_g_mean_mag": 10 + np.arange(count) / 1000, "pmra": 0 * ra, "pmdec": 0 * ra}
    path = folder / "stars.parquet"
    pq.write_table(pa.table(columns), path)
    return path, list(zip(ra.tolist(), dec.tolist(), strict=True))


def test_a_catalogue_is_loaded_found_replaced_and_dropped(cluster: RedisCluster, nodes: Any, tmp_path: Path) -> None:
    path, where = stars(tmp_path)
    with closing(CatalogStore(cluster.address)) as store:
        result = store.load("gaia", [path], PRESETS["gaia"], chunk_rows=700)
        assert (result.contents.rows, result.contents.chunks, result.in_use) == (3000, 6, True)
        for row in (0, 699, 700, 2999):
            found, _ = store.match(*where[row], 57_000.0)
            assert found.metadata is not None
            assert found.metadata.values[METADATA_FEATURES.index("phot_g_mean_mag")] == pytest.approx(10 + row / 1000)
        # Stopped within a chunk: what is in cannot be told from what is not, so all is loaded anew.
        other = path.with_name("more.parquet")
        other.write_bytes(path.read_bytes())
        (record,) = nodes.scan_iter("trifid:catalog:*")
        nodes.hset(record, "writing", 6)
        with pytest.raises(ConfigurationError, match=r"stopped in a chunk; --replace loads all anew"):
            store.load("gaia", [path, other], PRESETS["gaia"])
        assert store.load("gaia", [path], PRESETS["gaia"], anew=True).contents.rows == 3000
        generations = {key.split(b":")[3] for key in nodes.scan_iter("trifid:cat:gaia:*")}
        assert len(generations) == 1
        with closing(RedisStore(cluster.address)) as states:
            (state,) = states.update([point("ztf", "ZTF18a", *where[7], 57_000.0)])
            assert state.metadata is not None
        assert store.drop("gaia")
        assert list(nodes.scan_iter("trifid:cat*")) == [b"trifid:catalogs:generations"]
