"""The store against a real Redis: the same as in memory, in two round trips, through crashes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from broker.avro.wire import confluent_message
from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError
from broker.metrics import REDIS_EVICTED, REDIS_MAY_EVICT, STATE_LOST
from broker.records import (
    BAND_CODE,
    METADATA_FEATURES,
    Alert,
    LightCurve,
    ObjectState,
    ObservedSpectrum,
    Spectrum,
)
from broker.state.encoding import decode_object, encode_spectrum, is_current
from broker.state.memory import MemoryStore
from broker.state.merge import merge
from broker.state.migrate import Migration
from broker.state.places import StoredPlace, own_cells, own_homes
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import simulate_alerts
from tests.integration.proxy import CountingProxy
from tests.redis_keys import key_at, key_of, old_key, old_spectrum, places, spectrum_key
from tests.unit.state.test_encoding import version_1
from tests.unit.state.test_merge import same

CASES = Path(__file__).resolve().parents[1] / "data" / "cases" / "13-lsst-sso" / "star"
DECODER = Decoder()
JUMP = (10.05, 0.0)
"""From (10, 0) in the next fine cell but one, and in the same coarse one."""
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
        for state in store.update(alerts[start : start + batch]):
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


def test_a_batch_takes_two_round_trips(server: RedisServer, tmp_path: Path) -> None:
    """Whatever there is: objects of both surveys, counterparts, spectra, catalogues. Counted by a proxy."""
    alerts = two_surveys(512)
    with CountingProxy(server.port) as proxy, closing(RedisStore(f"redis://127.0.0.1:{proxy.port}/0")) as store:
        store.put_observed([spectrum_of(alert) for alert in alerts[:50]])
        load_catalog(server, tmp_path, alerts[:100])
        store.update(alerts[:10])
        before = proxy.round_trips
        states = store.update(alerts)
        assert proxy.round_trips - before <= 2
    assert sum(bool(state.associated) for state in states) > 100
    assert sum(state.spectrum is not None for state in states) >= 50
    assert sum(state.metadata is not None for state in states) >= 100


def test_stored_state_survives_a_crash_of_redis(store: RedisStore, server: RedisServer) -> None:
    expected = final_states(MemoryStore(), ALERTS)
    final_states(store, ALERTS[:300])
    server.kill()
    with pytest.raises(DependencyUnavailableError):
        store.update(ALERTS[:10])
    with pytest.raises(DependencyUnavailableError):
        store.check()
    server.start()
    store.check()
    states = final_states(store, ALERTS[300:])
    final = {state.object_id: state for state in store.update(list({a.object_id: a for a in ALERTS}.values()))}
    assert states
    assert_same(final, expected)


def test_a_spectrum_joins_the_object(store: RedisStore) -> None:
    alert = ALERTS[0]
    spectrum = Spectrum(np.arange(4000.0, 4100.0), *np.ones((2, 100), np.float32))
    store.put_observed(
        [ObservedSpectrum("s:1", alert.ra, alert.dec, alert.mjd, spectrum, alert.survey, alert.object_id)]
    )
    (state,) = store.update([alert])
    assert state.spectrum is not None
    assert len(state.spectrum.flux) == 100


def test_a_damaged_value_is_set_aside_and_not_lost(store: RedisStore, server: RedisServer) -> None:
    alert = ALERTS[0]
    key = key_at(alert)
    with redis.Redis.from_url(server.url) as client:
        client.set(key, b"\x63garbage")
        (state,) = store.update([alert])
        assert same(state.light_curve, alert.light_curve)
        assert client.get(f"{key}:damaged") == b"\x63garbage"


def two_surveys(count: int) -> list[Alert]:
    """Alerts of ZTF, every second one seen by LSST half an arcsecond away, too."""
    rng = np.random.default_rng(7)
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    alerts = []
    for row in range(count // 2):
        alerts.append(point("ztf", f"ZTF18{row:07d}", ra[row], dec[row], 60000.0 + row))
        if row % 2:
            alerts.append(point("lsst", str(10**17 + row), ra[row], dec[row] + 0.5 / 3600, 60000.5 + row))
        else:
            alerts.append(point("lsst", str(10**17 + row), ra[-row - 1], dec[-row - 1], 60000.5 + row))
    return alerts


def point(survey: str, name: str, ra: float, dec: float, mjd: float) -> Alert:
    one = np.ones(1, np.float32)
    band = np.array([BAND_CODE[f"{survey}:g"]], np.uint8)
    curve = LightCurve(np.array([mjd]), one, one, one, band, np.zeros(1, np.uint8))
    return Alert(survey, int(mjd * 10), int(mjd * 10), name, float(ra), float(dec), mjd, f"{survey}:g", curve, "")


def spectrum_of(alert: Alert) -> ObservedSpectrum:
    spectrum = Spectrum(np.arange(4000.0, 8000.0, 2.0), *np.ones((2, 2000), np.float32))
    return ObservedSpectrum(f"of:{alert.object_id}", alert.ra, alert.dec, alert.mjd, spectrum)


def test_counterparts_and_spectra_are_those_of_the_store_in_memory(store: RedisStore) -> None:
    alerts = two_surveys(300)
    memory = MemoryStore()
    for either in (store, memory):
        either.put_observed([spectrum_of(alert) for alert in alerts[:60]])
    for start in range(0, len(alerts), 37):
        batch = alerts[start : start + 37] * 2
        for ours, theirs in zip(store.update(batch), memory.update(batch), strict=True):
            assert same(ours.light_curve, theirs.light_curve)
            assert ours.associated == theirs.associated
            assert (ours.spectrum is None) == (theirs.spectrum is None)
    spectra = [spectrum_of(alert) for alert in alerts[:60]]
    for ours_of, theirs_of in zip(store.objects_of(spectra), memory.objects_of(spectra), strict=True):
        assert [(a.survey, a.object_id, a.alert_id) for a, _ in ours_of] == [
            (a.survey, a.object_id, a.alert_id) for a, _ in theirs_of
        ]
        assert [s.associated for _, s in ours_of] == [s.associated for _, s in theirs_of]
        assert all(same(s.light_curve, t.light_curve) for (_, s), (_, t) in zip(ours_of, theirs_of, strict=True))
    assert any(len(found) == 2 for found in store.objects_of(spectra))


def test_a_counterpart_that_moved_to_another_cell_or_expired_is_not_found_there(
    store: RedisStore, server: RedisServer
) -> None:
    with redis.Redis.from_url(server.url) as client:
        first = point("ztf", "ZTF18a", 10.0, 0.0, 60000.0)
        moved = point("ztf", "ZTF18a", *JUMP, 60001.0)
        assert own_homes([first]) == own_homes([moved])
        assert own_cells([first]) != own_cells([moved])
        store.update([first])
        store.update([moved])
        assert len(client.keys("trifid:{*}:sky:objects:*")) == 1
        here, there = store.update([point("lsst", "1", *JUMP, 60002.0), point("lsst", "2", 10.0, 0.0, 60002.0)])
        assert here.associated == ("ztf:ZTF18a",)
        assert there.associated == ()
        client.delete(key_of(client, "ZTF18a"))
        (alone,) = store.update([point("lsst", "1", *JUMP, 60003.0)])
        assert alone.associated == ()
        assert places(client) == [b"lsst:1", b"lsst:2"]


def test_a_late_alert_leaves_the_place_alone(store: RedisStore) -> None:
    store.update([point("ztf", "ZTF18a", 10.0, 0.0, 60001.0)])
    (state,) = store.update([point("ztf", "ZTF18a", *JUMP, 60000.0)])
    assert (state.ra, len(state.light_curve)) == (10.0, 2)
    (found,) = store.update([point("lsst", "1", 10.0, 0.0, 60002.0)])
    assert found.associated == ("ztf:ZTF18a",)


def test_objects_of_version_1_are_read_where_they_are_and_get_a_home(store: RedisStore, server: RedisServer) -> None:
    old = {alert.object_id: alert for alert in ALERTS}
    with redis.Redis.from_url(server.url) as client:
        for name, alert in old.items():
            client.set(old_key("ztf", name), version_1(alert.light_curve, alert.ra, alert.dec, alert.mjd))
        client.set(old_key("ztf", "bad"), b"\x63garbage")
        first, *others = old.values()
        (state,) = store.update([first])
        assert same(state.light_curve, merge(first.light_curve, LightCurve.empty()))
        assert client.exists(old_key("ztf", first.object_id)) == 0
        migration = Migration(store)
        assert sum(migration.run()) == len(others) + 1
        assert (migration.counts.moved, migration.counts.damaged) == (len(others), [old_key("ztf", "bad")])
        assert client.get(f"{old_key('ztf', 'bad')}:damaged") == b"\x63garbage"
        assert client.keys("trifid:[^{]*:lc") == []
        again = Migration(store)
        assert (sum(again.run()), again.counts.moved) == (0, 0)
        for alert in others:
            value = client.get(key_at(alert))
            assert isinstance(value, bytes)
            assert is_current(value)
            curve, latest = decode_object(value, "ztf", alert.object_id)
            assert same(curve, alert.light_curve)
            assert (latest.ra, latest.mjd) == (alert.ra, alert.mjd)
    other = others[0]
    (found,) = store.update([point("lsst", "1", other.ra, other.dec, 60002.0)])
    assert found.associated == (f"ztf:{other.object_id}",)


def load_catalog(server: RedisServer, folder: Path, alerts: list[Alert], magnitude: float = 15.0) -> None:
    """Stars of a catalogue at the places of alerts."""
    columns = {"ra": [a.ra for a in alerts], "dec": [a.dec for a in alerts]}
    columns |= {"phot_g_mean_mag": [magnitude] * len(alerts), "pmra": [0.0] * len(alerts), "pmdec": [0.0] * len(alerts)}
    path = folder / "stars.parquet"
    pq.write_table(pa.table(columns), path)
    command = [sys.executable, "-m", "broker.cli", "catalog", "load", "stars", str(path), "--replace"]
    environment = os.environ | {"TRIFID_REDIS__URL": server.url}
    subprocess.run([*command, "--preset", "gaia"], env=environment, check=True, capture_output=True)


def test_catalogues_that_come_and_go_are_noticed_at_once(
    store: RedisStore, server: RedisServer, tmp_path: Path
) -> None:
    alert = point("ztf", "ZTF18a", 10.0, 20.0, 61000.0)
    (before,) = store.update([alert])
    assert before.metadata is None
    for magnitude in (15.0, 16.0):
        load_catalog(server, tmp_path, [alert], magnitude)
        star, body = store.update([alert, replace(alert, object_id="sso:1", solar_system=True)])
        assert star.metadata is not None
        assert star.metadata.values[METADATA_FEATURES.index("phot_g_mean_mag")] == magnitude
        assert body.metadata is None


def test_workers_at_the_same_object_lose_nothing(server: RedisServer) -> None:
    """Ten threads, each with its own store, on the same few objects, as a topic that is not keyed would have it."""
    alerts = [point("ztf", f"ZTF18{row % 3}", 10.0 + row % 3, 0.0, 60000.0 + row) for row in range(300)]

    def work(number: int) -> None:
        with closing(RedisStore(server.url)) as store:
            for start in range(number, len(alerts), 50):
                store.update(alerts[start : start + 50 : 10])

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(work, range(10)))
    with closing(RedisStore(server.url)) as store:
        for state in store.update(alerts[:3]):
            assert len(state.light_curve) == 100


def with_body(payload: bytes) -> bytes:
    """An LSST packet with an ssObjectId beside its diaObjectId."""
    version = int.from_bytes(payload[1:5], "big")
    schema = fastavro.parse_schema(lsst_schema(version))
    record: Any = fastavro.schemaless_reader(io.BytesIO(payload[5:]), schema, None)
    record["diaSource"]["ssObjectId"] = 77
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return confluent_message(version, out.getvalue())


def test_a_star_of_lsst_that_an_asteroid_passes_by_keeps_what_it_has(
    store: RedisStore, server: RedisServer, tmp_path: Path
) -> None:
    """The star of ../shared/cases/13; the packets there have no ssObjectId, which their later ones are to have."""
    first, second = (DECODER.decode(with_body((CASES / f"{name}.avro").read_bytes()))[0] for name in ("030", "039"))
    assert isinstance(first, Alert)
    assert isinstance(second, Alert)
    assert first.solar_system
    assert second.solar_system
    load_catalog(server, tmp_path, [first])
    store.put_observed([spectrum_of(first)])
    store.update([point("ztf", "ZTF18a", first.ra, first.dec, first.mjd - 1)])
    for alert in (first, second):
        (state,) = store.update([alert])
        assert state.associated == ("ztf:ZTF18a",)
        assert state.spectrum is not None
        assert state.metadata is not None
        assert state.metadata.values[METADATA_FEATURES.index("phot_g_mean_mag")] == 15.0
    (back,) = store.update([point("ztf", "ZTF18a", first.ra, first.dec, first.mjd)])
    assert back.associated == (f"lsst:{first.object_id}",)
    (((latest, again),),) = store.objects_of([replace(spectrum_of(first), survey="lsst", object_id=first.object_id)])
    assert latest.object_id == first.object_id
    assert again.associated == ("ztf:ZTF18a",)


def test_the_number_of_stored_points_is_published_and_the_same_when_a_batch_is_tried_again(store: RedisStore) -> None:
    early, late = (alert for alert in ALERTS if alert.object_id == ALERTS[-1].object_id), ALERTS[-1]
    first = next(early)
    beyond = len(merge(first.light_curve, late.light_curve)) - len(late.light_curve)
    assert beyond > 0
    (fresh,) = store.update([first])
    assert (fresh.remembered, fresh.history_start) == (0, first.light_curve.mjd[0])
    for _ in range(2):
        (state,) = store.update([late])
        assert (state.remembered, state.history_start) == (beyond, first.light_curve.mjd[0])


def cells_of(client: redis.Redis, spectrum_id: str) -> list[bytes]:
    return [key for key in client.keys("trifid:*sky:spectra:*") if client.hexists(key, spectrum_id)]


@pytest.mark.parametrize("written_by", ["this release", "an earlier one"])
def test_a_spectrum_sent_again_is_where_it_was_sent_last(
    store: RedisStore, server: RedisServer, written_by: str
) -> None:
    """An earlier release did not say where a spectrum is, so that it stayed in its old place as well."""
    here, there = point("ztf", "here", 10.0, 0.0, 60000.0), point("ztf", "there", 50.0, 20.0, 60000.0)
    nearby = point("ztf", "near", 10.0, 4.0 / 3600, 60000.0)  # in the cell of the first
    sent = spectrum_of(here)
    with redis.Redis.from_url(server.url) as client:
        if written_by == "this release":
            store.put_observed([sent])
        else:
            place = StoredPlace(sent.ra, sent.dec, sent.mjd).pack()
            old_spectrum(client, sent, encode_spectrum(sent.spectrum), place)
        for at, others in ((there, [here, nearby]), (nearby, [here, there]), (here, [there, nearby])):
            store.put_observed([replace(sent, ra=at.ra, dec=at.dec)])
            (state,) = store.update([at])
            assert state.spectrum is not None
            assert [s.spectrum for s in store.update(others)] == [None, None]
            assert len(cells_of(client, sent.spectrum_id)) == 1
        # Named now, and then of another object: never of two.
        store.put_observed([replace(sent, survey="ztf", object_id="there")])
        assert [s.spectrum is not None for s in store.update([here, there])] == [False, True]
        assert cells_of(client, sent.spectrum_id) == []
        assert client.get(spectrum_key(sent)) is None
        store.put_observed([replace(sent, survey="ztf", object_id="here")])
        assert [s.spectrum is not None for s in store.update([here, there])] == [True, False]
        # Another spectrum of that object is not taken away by the first one's leaving.
        store.put_observed([replace(sent, spectrum_id="other", survey="ztf", object_id="here")])
        store.put_observed([sent])
        client.delete(spectrum_key(sent))
        assert [s.spectrum is not None for s in store.update([here, there])] == [True, False]


def test_a_place_of_before_the_value_was_damaged_is_passed_over(store: RedisStore, server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        store.update([point("ztf", "ZTF18a", 10.0, 0.0, 60000.0)])
        client.set(key_of(client, "ZTF18a"), b"\x63garbage")
        store.update([point("ztf", "ZTF18a", *JUMP, 60001.0)])
        assert len(client.keys("trifid:{*}:sky:objects:*")) == 2
        here, there = store.update([point("lsst", "1", *JUMP, 60002.0), point("lsst", "2", 10.0, 0.0, 60002.0)])
        assert (here.associated, there.associated) == (("ztf:ZTF18a",), ())


# Redis that loses what it held.


def test_a_redis_that_was_emptied_is_noticed(
    store: RedisStore, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = STATE_LOST._value.get()
    for _ in range(2):
        store.check()
    with closing(RedisStore(server.url)) as other:
        other.check()
        server.kill()
        server.start()  # persistent
        store.check()
        assert STATE_LOST._value.get() == before
        assert "lost" not in caplog.text
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        for each in (store, other, store, other):
            each.check()
        assert STATE_LOST._value.get() == before + 2
        assert "Redis has lost what it held: trifid:marker is gone or another" in caplog.text


def test_a_redis_without_persistence_that_restarts_is_noticed() -> None:
    before = STATE_LOST._value.get()
    with RedisServer() as server, closing(RedisStore(server.url)) as store:
        store.check()
        server.kill()
        with pytest.raises(DependencyUnavailableError):
            store.check()
        server.start()
        store.check()
    assert STATE_LOST._value.get() == before + 1


def test_evictions_are_noticed(server: RedisServer, store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    with redis.Redis.from_url(server.url) as client:
        store.check()
        assert (REDIS_MAY_EVICT._value.get(), REDIS_EVICTED._value.get()) == (0, 0)
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 2_000_000)
        client.config_set("maxmemory-policy", "volatile-lru")
        store.check()
        assert REDIS_MAY_EVICT._value.get() == 1
        assert "maxmemory-policy is volatile-lru, and must be noeviction" in caplog.text
        for number in range(200):
            client.set(f"trifid:ztf:{number}:lc", b"x" * 50_000, ex=1000)
        store.check()
        assert REDIS_EVICTED._value.get() == client.info("stats")["evicted_keys"] > 0
        client.config_set("maxmemory-policy", "noeviction")
        store.check()
        assert REDIS_MAY_EVICT._value.get() == 0


def test_a_user_who_may_not_ask_for_evictions_can_work(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "old", "on", ">word", "~trifid:*", "+@all", "-info")
    with closing(RedisStore(f"redis://old:word@127.0.0.1:{server.port}/0")) as store:
        for _ in range(2):
            store.check()
        assert store.update([ALERTS[0]])[0].object_id == ALERTS[0].object_id
    assert caplog.text.count("evictions by Redis are not watched") == 1
