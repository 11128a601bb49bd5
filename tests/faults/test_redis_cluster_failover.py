"""A primary of a Redis Cluster killed under load: three primaries with a replica each, two workers, real Kafka."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from broker.records import Alert, LightCurve
from broker.redis_client import RedisConnection
from broker.state.encoding import decode_object
from broker.state.keys import ObjectName, split_object_key
from broker.state.merge import merge
from broker.surveys import Decoder
from deploy.local.redis_cluster import RedisCluster
from tests.faults.conftest import NewCase
from tests.faults.harness import check_recovery
from tests.faults.ledger import Sent, stream
from tests.unit.state.test_merge import same

AWAY_S = 8.0
"""Longer than the cluster takes for the election: node timeout 2 s."""


def stored(cluster: RedisCluster) -> dict[ObjectName, LightCurve]:
    """The light curve of each object, of which there is one copy."""
    found: dict[ObjectName, LightCurve] = {}
    with closing(RedisConnection(cluster.address)) as connection:
        keys = [key.decode() for key in set(connection.scan("trifid:*:lc"))]
        for key, value in zip(keys, connection.get_many(keys), strict=True):
            _, name = split_object_key("trifid", key)
            assert value is not None
            assert name not in found
            found[name] = decode_object(value, *name)[0]
    return found


def expected(alerts: list[Sent]) -> dict[ObjectName, LightCurve]:
    """What the packets sum up to."""
    decoder = Decoder()
    found: dict[ObjectName, LightCurve] = {}
    for sent in alerts:
        for alert in decoder.decode(sent.payload):
            assert isinstance(alert, Alert)
            name = (alert.survey, alert.object_id)
            found[name] = merge(found.get(name, LightCurve.empty()), alert.light_curve)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("replicas", [1, 0])
def test_a_primary_killed_under_load(new_case: NewCase, full: bool, tmp_path: Path, replicas: int) -> None:
    """Every alert is annotated once. With ``redis.wait_replicas`` no point is lost; without, the last ones may be."""
    if not full:
        pytest.skip("in the long form only (make faults): eight servers beside Kafka")
    alerts = stream(6000, seed=8)
    cluster = RedisCluster(persistent=True)
    with new_case(f"cluster{replicas}", redis=cluster) as case:
        nodes = [f"127.0.0.1:{node.port}" for node in cluster.nodes[1:]]
        redis = {"url": cluster.url, "cluster": True, "nodes": nodes, "wait_replicas": replicas}
        for name in ("one", "two"):
            case.worker(name, {"redis": redis})
        full_rate = case.begin(alerts)
        victim = cluster.primaries[1]
        victim.kill()
        killed = time.monotonic()
        time.sleep(AWAY_S)
        # Back, as a replica of the one that took its place: one that is to acknowledge writes may be waited for.
        victim.start()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(killed, full_rate)
        assert not case.ledger.letters
        wanted, kept = expected(alerts), stored(cluster)
        short = {name for name, curve in wanted.items() if name not in kept or not same(kept[name], curve)}
        cluster.wait()
        note = f"since the kill; wait_replicas {replicas}: {len(short)} of {len(wanted)} objects miss points"
        case.finish("Redis Cluster: a primary kill -9", recovery, note)
        if replicas:
            assert not short
    check_recovery(recovery)
