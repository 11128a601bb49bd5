"""The store against a real Redis: the same as in memory, in two round trips, through crashes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import redis

from broker.anomaly.reference_set import ReferenceSet
from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.records import Alert, ObjectState, SourceMetadata, Spectrum
from broker.state.memory import MemoryStore
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.unit.state.test_merge import same

DECODER = Decoder()
ALERTS = [DECODER.decode(a.payload)[0] for a in simulate_alerts(20, 30, seed=5)]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(persistent=True) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(server.url)
    yield store
    store.close()


def final_states(store: RedisStore | MemoryStore, alerts: list[Alert], batch: int = 64) -> dict[str, ObjectState]:
    states: dict[str, ObjectState] = {}
    for start in range(0, len(alerts), batch):
        for state in store.remember(alerts[start : start + batch]):
            states[state.object_id] = state
    return states


def assert_same(first: dict[str, ObjectState], second: dict[str, ObjectState]) -> None:
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert same(state.light_curve, second[name].light_curve)
        assert (state.ra, state.dec) == (second[name].ra, second[name].dec)


def test_order_and_repetition_do_not_matter(store: RedisStore) -> None:
    expected = final_states(MemoryStore(), ALERTS)
    shuffled = [ALERTS[i] for i in np.random.default_rng(1).permutation(len(ALERTS))]
    final_states(store, shuffled)
    assert_same(final_states(store, ALERTS), expected)


def test_a_batch_takes_two_round_trips(store: RedisStore, server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        store.remember(ALERTS[:10])
        before = client.info("stats")["total_net_input_bytes"], client.info("commandstats")
        store.remember(ALERTS[10:200])
        after = client.info("commandstats")
    assert before
    assert after["cmdstat_mget"]["calls"] - before[1]["cmdstat_mget"]["calls"] == 1
    written = after["cmdstat_set"]["calls"] - before[1]["cmdstat_set"]["calls"]
    assert written == len({alert.object_id for alert in ALERTS[10:200]})


def test_what_was_remembered_survives_a_crash_of_redis(store: RedisStore, server: RedisServer) -> None:
    expected = final_states(MemoryStore(), ALERTS)
    final_states(store, ALERTS[:300])
    server.kill()
    with pytest.raises(DependencyUnavailableError):
        store.remember(ALERTS[:10])
    assert not store.ready()
    server.start()
    assert store.ready()
    states = final_states(store, ALERTS[300:])
    final = {state.object_id: state for state in store.remember(list({a.object_id: a for a in ALERTS}.values()))}
    assert states
    assert_same(final, expected)


def test_spectra_and_metadata_join_the_object(store: RedisStore) -> None:
    alert = ALERTS[0]
    store.put_spectra("ztf", {alert.object_id: Spectrum(np.arange(4000.0, 4100.0), *np.ones((2, 100), np.float32))})
    store.put_metadata("ztf", {alert.object_id: SourceMetadata(np.arange(34, dtype=np.float32))})
    (state,) = store.remember([alert])
    assert state.spectrum is not None
    assert len(state.spectrum.flux) == 100
    assert state.metadata is not None
    assert state.metadata.values[33] == 33


def test_a_damaged_value_is_set_aside_and_not_lost(store: RedisStore, server: RedisServer) -> None:
    alert = ALERTS[0]
    key = f"trifid:ztf:{alert.object_id}:lc"
    with redis.Redis.from_url(server.url) as client:
        client.set(key, b"\x63garbage")
        (state,) = store.remember([alert])
        assert same(state.light_curve, alert.light_curve)
        assert client.get(f"{key}:damaged") == b"\x63garbage"


def test_the_reference_set_comes_back_from_redis(server: RedisServer) -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = np.array([f"star {i}" for i in range(50)])
    reference = ReferenceSet("v1", embeddings, names, names, 3, np.linspace(0, 1, 50, dtype=np.float32))
    assert ReferenceSet.from_redis(server.url) is None
    reference.to_redis(server.url)
    again = ReferenceSet.from_redis(server.url)
    assert again is not None
    assert again.version == "v1"
    np.testing.assert_allclose(again.embeddings, embeddings, atol=1e-3)
    np.testing.assert_array_equal(again.object_ids, names)
