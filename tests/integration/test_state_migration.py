"""State without cells of the sky gets its present keys, killed in between, beside workers, in clusters."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
from broker.records import Alert, KeptSearch
from broker.redis_client import RedisConnection
from broker.state.admin import StateAdmin
from broker.state.encoding import decode_object, encode_object, encode_search, encode_spectrum
from broker.state.keys import NO_HOME, sky_key
from broker.state.memory import MemoryStore
from broker.state.migrate import Migration
from broker.state.places import StoredPlace, own_cells
from broker.state.redis import RedisStore
from broker.surveys.columns import ANY_TIME
from deploy.local.redis_cluster import RedisCluster
from tests.integration.test_redis_store import point, spectrum_of
from tests.redis_keys import key_at, old_key, old_spectrum, places
from tests.unit.state.test_merge import same

SEARCH = KeptSearch(1, 2, 3, 59_000.0, 60_000.0, (1, 2), ((0.5, 0.9),))


def objects(count: int) -> list[Alert]:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    return [point("ztf", f"ZTF{row:06d}", ra[row], dec[row], 60_000.0) for row in range(count)]


def write_old(client: Any, alerts: list[Alert]) -> None:
    """As the last release without homes did; places with a proper motion that the alerts do not tell."""
    for alert, cell in zip(alerts, own_cells(alerts), strict=True):
        client.set(old_key("ztf", alert.object_id), encode_object(alert.light_curve, alert))
        client.set(old_key("ztf", alert.object_id, "ps"), encode_search(SEARCH))
        place = StoredPlace(alert.ra, alert.dec, alert.mjd, 5.0, -3.0)
        client.hset(sky_key("trifid", NO_HOME, "objects", cell), f"ztf:{alert.object_id}", place.pack())
    client.set("trifid:marker", b"old")


def next_alerts(alerts: list[Alert]) -> list[Alert]:
    return [point("ztf", a.object_id, a.ra, a.dec, a.mjd + 1) for a in alerts]


def test_killed_in_the_middle_beside_a_worker_nothing_is_lost(server: RedisServer, client: redis.Redis) -> None:
    alerts = objects(6000)
    write_old(client, alerts)
    command = [sys.executable, "-m", "broker.cli", "state", "migrate"]
    environment = os.environ | {"TRIFID_REDIS__URL": server.url}
    with closing(RedisStore(server.url)) as worker, subprocess.Popen(command, env=environment) as process:
        end = time.monotonic() + 120
        while not client.exists(*map(key_at, alerts)):
            assert time.monotonic() < end
            time.sleep(0.01)
        # A worker that reads both gets alerts of some of them meanwhile.
        states = worker.update(next_alerts(alerts[::20]))
        assert [state.remembered for state in states] == [1] * len(states)
        process.kill()
        process.wait()
        left = len(client.keys("trifid:[^{]*:lc"))
        assert 0 < left < len(alerts)
        assert client.get("trifid:layout") is None
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{left} objects and 0 spectra migrated")
        assert client.keys("trifid:[^{]*:lc") == client.keys("trifid:[^{]*:ps") == client.keys("trifid:sky:*") == []
        assert client.get("trifid:layout") == b"homes"
        again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert again.stdout == "0 objects and 0 spectra migrated\n"
        assert len(places(client)) == len(client.keys("trifid:*:lc")) == len(client.keys("trifid:*:ps")) == len(alerts)
        for row, alert in enumerate(alerts):
            value = client.get(key_at(alert))
            assert isinstance(value, bytes)
            assert len(decode_object(value, "ztf", alert.object_id)[0]) == (1 if row % 20 else 2)
        worker.check()
        (state,) = worker.update(next_alerts(alerts[7:8]))
        assert (state.remembered, state.kept_search) == (1, SEARCH)
    moved = client.hget(
        f"{key_at(alerts[8]).rpartition(':ztf')[0]}:sky:objects:{own_cells(alerts[8:9])[0]}", "ztf:ZTF000008"
    )
    assert isinstance(moved, bytes)
    assert StoredPlace.unpack(moved).pmra == 5.0


def test_a_spectrum_that_cannot_be_read_is_set_aside_and_the_migration_ends(
    server: RedisServer, client: redis.Redis
) -> None:
    alerts = objects(2)
    write_old(client, alerts)
    sent = [spectrum_of(alert) for alert in alerts]
    for one, value in zip(sent, (encode_spectrum(sent[0].spectrum), b"no spectrum"), strict=True):
        old_spectrum(client, one, value, StoredPlace(one.ra, one.dec, one.mjd).pack())
    with closing(RedisStore(server.url)) as store:
        migration = Migration(store)
        list(migration.run())
        assert (migration.counts.moved, migration.counts.spectra) == (2, 1)
        (damaged,) = migration.counts.damaged
        assert migration.counts.complete
        again = Migration(store)
        assert list(again.todo()) == []
    assert client.get(f"{damaged}:damaged") == b"no spectrum"
    assert client.get(damaged) is None
    assert client.get("trifid:layout") == b"homes"


def test_both_copies_of_an_object_in_two_cells_are_taken_along(server: RedisServer, client: redis.Redis) -> None:
    """As two workers leave it that began it on both sides of a border; a key of another prefix is left alone."""
    (alert,) = objects(1)
    elsewhere = replace(alert, ra=(alert.ra + 90.0) % 360.0)
    (later,) = next_alerts([alert])
    for one, home_of in ((alert, alert), (later, elsewhere)):
        client.set(key_at(home_of), encode_object(one.light_curve, one))
    client.hset("trifid2:sky:spectra:77", "x", b"y")
    with RedisServer() as other, closing(RedisStore(other.url)) as store:
        with closing(RedisConnection(server.url)) as source:
            migration = Migration(store, source=source)
            list(migration.run())
        assert (migration.counts.moved, migration.counts.spectra) == (2, 0)
        with other.client() as copied:
            (key,) = copied.keys("trifid:*:lc")
            value = copied.get(key)
    assert isinstance(value, bytes)
    assert decode_object(value, "ztf", alert.object_id)[0].mjd.tolist() == [60_000.0, 60_001.0]


def test_another_redis_is_copied_into_a_cluster(server: RedisServer, client: redis.Redis) -> None:
    """With old keys and new ones, spectra by place and by name; an object that the cluster has already is merged."""
    alerts = objects(600)
    write_old(client, alerts[:300])
    sent = [spectrum_of(alert) for alert in alerts[:6]]
    old_spectrum(
        client, sent[0], encode_spectrum(sent[0].spectrum), StoredPlace(sent[0].ra, sent[0].dec, sent[0].mjd).pack()
    )
    with closing(RedisStore(server.url)) as single:
        single.update(alerts[300:])
        single.put_observed([*sent[1:4], replace(sent[4], ra=3.0, survey="ztf", object_id=alerts[4].object_id)])
    before = {key: client.dump(key) for key in client.keys("*")}
    with RedisCluster() as cluster, closing(RedisStore(cluster.address)) as store:
        store.update(next_alerts(alerts[:10]))
        for _ in range(2):
            with closing(RedisConnection(server.url)) as source:
                migration = Migration(store, source=source)
                list(migration.run())
            assert (migration.counts.moved, migration.counts.spectra) == (600, 5)
        assert {key: client.dump(key) for key in client.keys("*")} == before
        memory = MemoryStore()
        memory.update(alerts)
        memory.update(next_alerts(alerts[:10]))
        later = [replace(a, mjd=a.mjd + 5, light_curve=point("ztf", "", 0, 0, a.mjd + 5).light_curve) for a in alerts]
        for ours, theirs in zip(store.update(later), memory.update(later), strict=True):
            assert same(ours.light_curve, theirs.light_curve)
        states = store.update(later[:6])
        assert [state.spectrum is not None for state in states] == [True] * 5 + [False]
        store.put_observed([replace(sent[4], survey="ztf", object_id="ZTFspectrum")])
        gone = StateAdmin(store.connection, {"ztf": ANY_TIME}, 1000).forget(("ztf", "ZTFspectrum"))
        assert gone[0] == "trifid:ztf:ZTFspectrum:sp"
        (found,) = store.update([point("lsst", "7", alerts[500].ra, alerts[500].dec, 60_010.0)])
        assert found.associated == (f"ztf:{alerts[500].object_id}",)


def test_a_cluster_with_keys_of_before_is_migrated_first() -> None:
    """As where the old Redis was made a cluster."""
    alerts = objects(200)
    with RedisCluster() as cluster, cluster.client() as nodes:
        write_old(nodes, alerts)
        with closing(RedisStore(cluster.address)) as store:
            with pytest.raises(ConfigurationError, match="run `trifid state migrate` first"):
                store.update(alerts[:1])
            with pytest.raises(ConfigurationError, match="run `trifid state migrate` first"):
                store.check()
            migration = Migration(store)
            assert sum(migration.run()) == 200
            assert list(nodes.scan_iter("trifid:[^{]*:lc")) == []
            assert list(nodes.scan_iter("trifid:sky:*")) == []
        with closing(RedisStore(cluster.address)) as store:
            store.check()
            assert [state.remembered for state in store.update(next_alerts(alerts))] == [1] * 200
