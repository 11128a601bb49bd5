"""The state of objects in a real Redis Cluster: the same as in memory and on a single Redis, wherever objects lie."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import hpgeom
import numpy as np
import pytest
from numpy.typing import NDArray

from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.metrics import STATE_LOST
from broker.records import Alert, KeptSearch, ObjectState
from broker.state.encoding import decode_object
from broker.state.keys import split_object_key
from broker.state.memory import MemoryStore
from broker.state.places import HOME_ORDER, own_homes
from broker.state.redis import RedisStore
from deploy.local.redis_cluster import RedisCluster
from tests.integration.test_redis_store import ALERTS, point, spectrum_of
from tests.unit.state.test_merge import same


@pytest.fixture
def store(cluster: RedisCluster, nodes: Any) -> Iterator[RedisStore]:
    with closing(RedisStore(cluster.address)) as store:
        yield store


def at_borders() -> NDArray[np.float64]:
    """(n, 2) positions on corners and edges of coarse cells, at both poles and at RA 0, ICRS degrees."""
    rng = np.random.default_rng(11)
    cells = rng.choice(hpgeom.nside_to_npixel(1 << HOME_ORDER), 60, replace=False)
    ra, dec = hpgeom.boundaries(1 << HOME_ORDER, cells, 2)
    places = np.stack([ra.ravel(), dec.ravel()], axis=1)
    special = [(0.0, 90.0), (0.0, -90.0), (123.4, 89.9999), (0.0, 0.0), (359.9999, 12.3), (0.0001, -45.6), (45.0, 0.0)]
    return np.concatenate([places, np.array(special)])


def scattered(survey: str, number: int, ra: float, dec: float, mjd: float, rng: np.random.Generator) -> Alert:
    """An alert of object ``number`` within 0.3 arcsec of where it is: mostly on another side of a border."""
    offset, angle = 0.3 / 3600 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    new_dec = dec + offset * np.sin(angle)
    if abs(new_dec) > 90:
        new_dec = np.sign(new_dec) * 180 - new_dec
        ra += 180
    new_ra = (ra + offset * np.cos(angle) / max(np.cos(np.radians(new_dec)), 1e-9)) % 360
    return point(survey, f"{survey}{number:05d}", new_ra, new_dec, mjd)


def assert_equal(ours: list[ObjectState], theirs: list[ObjectState]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.object_id, one.ra, one.dec, one.associated) == (
            other.object_id,
            other.ra,
            other.dec,
            other.associated,
        )
        assert same(one.light_curve, other.light_curve)
        assert (one.remembered, one.history_start) == (other.remembered, other.history_start)
        assert (one.spectrum is None) == (other.spectrum is None)


def test_objects_at_borders_poles_and_ra_0_are_those_of_the_store_in_memory(
    store: RedisStore, cluster: RedisCluster
) -> None:
    """Eight alerts of each object, of two surveys, scattered over the border: one object each, with its counterpart."""
    rng = np.random.default_rng(12)
    places = at_borders()
    memory = MemoryStore()
    spectra = [spectrum_of(point("ztf", f"{row}", ra, dec, 60_000.0)) for row, (ra, dec) in enumerate(places)]
    homes_of: dict[str, set[str]] = {}
    with RedisServer() as server, closing(RedisStore(server.url)) as single:
        for either in (store, single, memory):
            either.put_observed(spectra[:100])
        for round_ in range(8):
            batch = [
                scattered("ztf" if round_ % 2 else "lsst", row, ra, dec, 60_001.0 + round_, rng)
                for row, (ra, dec) in enumerate(places)
            ]
            for alert, home in zip(batch, own_homes(batch), strict=True):
                homes_of.setdefault(alert.object_id, set()).add(home)
            expected = memory.update(batch)
            assert_equal(store.update(batch), expected)
            assert_equal(single.update(batch), expected)
        assert sum(len(homes) > 1 for homes in homes_of.values()) > 300  # so it was about borders
        assert all(len(state.light_curve) == 8 for state in expected)
        assert all(state.associated for state in expected)
        of_store = store.objects_of(spectra)
        for ours, theirs in zip(of_store, memory.objects_of(spectra), strict=True):
            assert [(a.survey, a.object_id) for a, _ in ours] == [(a.survey, a.object_id) for a, _ in theirs]
            assert len(ours) == 2
    with cluster.client() as client:
        keys = Counter(key.decode().partition("}:")[2] for key in client.scan_iter("trifid:*:lc"))
    assert len(keys) == 2 * len(places)
    assert set(keys.values()) == {1}  # each in one place


def test_replay_of_real_packets_is_the_same(store: RedisStore) -> None:
    memory = MemoryStore()
    for start in range(0, len(ALERTS), 37):
        batch = ALERTS[start : start + 37]
        assert_equal(store.update(batch), memory.update(batch))


def test_a_star_that_drifts_over_borders_stays_one_object(store: RedisStore, nodes: Any) -> None:
    """6 arcsec from alert to alert, through a coarse cell and the next: it gets a new home on the way."""
    memory = MemoryStore()
    homes = set()
    for step in range(200):
        alert = point("ztf", "ZTF18fast", 10.0 + step * 6 / 3600, 0.01, 60_000.0 + step)
        assert_equal(store.update([alert]), memory.update([alert]))
        (key,) = list(nodes.scan_iter("trifid:*:ZTF18fast:lc"))
        homes.add(key)
    assert len(homes) >= 2
    (found,) = store.update([point("lsst", "7", alert.ra, alert.dec, 60_300.0)])
    assert found.associated == ("ztf:ZTF18fast",)
    assert len(found.light_curve) == 201


def test_two_workers_that_begin_an_object_on_both_sides_lose_nothing(store: RedisStore, cluster: RedisCluster) -> None:
    """Each reads before the other writes; the next alert finds both, and leaves one."""
    ra, dec = (float(x[0, 0]) for x in hpgeom.boundaries(1 << HOME_ORDER, np.array([300_000]), 1))
    rng = np.random.default_rng(2)
    alerts = [scattered("ztf", 1, ra, dec, 60_000.0 + n, rng) for n in range(12)]
    here = alerts[0]
    there = next(alert for alert in alerts if own_homes([alert]) != own_homes([here]))
    with closing(RedisStore(cluster.address)) as other:
        write = store._writer.write

        def late(*given: Any, **named: Any) -> Any:
            other.update([there])
            return write(*given, **named)

        store._writer.write = late  # type: ignore[method-assign]
        store.update([here])
        store._writer.write = write  # type: ignore[method-assign]
        with cluster.client() as client:
            assert len(list(client.scan_iter("trifid:*:ztf00001:lc"))) == 2
            (state,) = store.update([alerts[11]])
            assert len(state.light_curve) == 3
            assert len(list(client.scan_iter("trifid:*:ztf00001:lc"))) == 1
            assert [n for key in list(client.scan_iter("trifid:*sky:objects*")) for n in client.hkeys(key)] == [
                b"ztf:ztf00001"
            ]


def test_named_spectra_searches_and_moving_bodies(store: RedisStore, nodes: Any) -> None:
    """A spectrum by name is found wherever its header says that the telescope pointed, also by a counterpart."""
    star = point("ztf", "ZTF18a", 10.0, 20.0, 60_000.0)
    body = replace(point("lsst", "sso:77", 11.0, 20.0, 60_000.0), solar_system=True)
    store.put_observed([replace(spectrum_of(star), ra=200.0, dec=-70.0, survey="ztf", object_id="ZTF18a")])
    first, second = store.update([star, body])
    assert first.spectrum is not None
    assert second.spectrum is None
    (counterpart,) = store.update([point("lsst", "8", 10.0, 20.0, 60_001.0)])
    assert counterpart.spectrum is not None
    search = KeptSearch(1, 2, 3, 59_000.0, 60_000.0, (1, 2), ((0.5, 0.9),))
    store.keep_searches({("ztf", "ZTF18a"): search, ("lsst", "sso:77"): search})
    # The body is elsewhere on the sky by now.
    again = store.update([star, replace(body, ra=97.0, dec=-20.0, mjd=60_100.0)])
    assert [state.kept_search for state in again] == [search, search]
    assert [n for key in list(nodes.scan_iter("trifid:*sky:objects*")) for n in nodes.hkeys(key)].count(
        b"lsst:sso:77"
    ) == 0
    # And by position: sent again elsewhere, it leaves its place.
    sent = spectrum_of(star)
    store.put_observed([replace(sent, ra=30.0)])
    store.put_observed([replace(sent, ra=31.0, survey="ztf", object_id="ZTF18b")])
    store.put_observed([replace(sent, ra=32.0)])
    there, left, gone = store.update(
        [
            point("ztf", "c", 32.0, 20.0, 60_000.0),
            point("ztf", "ZTF18b", 31.0, 20.0, 6e4),
            point("ztf", "d", 30.0, 20.0, 6e4),
        ]
    )
    assert (there.spectrum is not None, left.spectrum, gone.spectrum) == (True, None, None)


def test_a_primary_that_comes_back_empty_is_noticed(store: RedisStore, nodes: Any) -> None:
    before = STATE_LOST._value.get()
    store.check()
    assert len(list(nodes.scan_iter("trifid:marker:*"))) == 3
    store.check()
    assert STATE_LOST._value.get() == before
    nodes.flushall(target_nodes=nodes.get_primaries()[0])
    store.check()
    assert STATE_LOST._value.get() == before + 1


def test_a_primary_killed_between_writes_loses_no_point_that_a_replica_acknowledged() -> None:
    """Batches go on, tried again until a replica is primary, as the service does; in the end every point is there."""
    rng = np.random.default_rng(5)
    count = 300
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    problems = set()
    with RedisCluster() as cluster, closing(RedisStore(cluster.address, wait_replicas=1, timeout=2)) as store:
        for night in range(12):
            if night == 4:
                cluster.primaries[0].kill()
            batch = [point("ztf", f"Z{n}", ra[n], dec[n], 60_000.0 + night) for n in range(count)]
            for first in range(0, count, 50):
                end = time.monotonic() + 300
                while True:
                    try:
                        states = store.update(batch[first : first + 50])
                        break
                    except DependencyUnavailableError as error:
                        problems.add(str(error)[:60])
                        assert time.monotonic() < end, problems
                        if "replicas acknowledged" in str(error) and not cluster.primaries[0].running:
                            cluster.primaries[0].start()  # back, as the replica that is waited for
                        time.sleep(0.1)
                assert [len(state.light_curve) for state in states] == [night + 1] * 50
        assert problems
        with cluster.client() as client:
            keys = [key.decode() for key in client.scan_iter("trifid:*:lc")]
            assert len(keys) == count
            for key in keys:
                home, name = split_object_key("trifid", key)
                assert len(decode_object(client.get(key), *name)[0]) == 12, (home, name)
