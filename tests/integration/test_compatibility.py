"""State that earlier releases wrote is read; state of later ones is left alone."""

from __future__ import annotations

import base64
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.dead_letters import isolate
from broker.records import Alert, ObjectState
from broker.state.encoding import VERSION, StateError, decode_object, encode_object, is_current
from broker.state.migrate import Migration
from broker.state.redis import RedisStore
from tests.integration.test_redis_store import point
from tests.redis_keys import key_at, old_key
from tests.unit.state.test_merge import same

FOLDER = Path(__file__).resolve().parents[1] / "data" / "state"
RELEASES = {
    "6dc263e": 1,  # version 1
    "881d480": 2,  # version 2 before it had the revision: 199 of 419 objects of a real upgrade
    "cb82431": 2,  # the last one of version 2
    "8826f96": 3,  # the last one that kept no homes
}


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("write_state", FOLDER / "write_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITTEN = _script()


def load(client: redis.Redis, release: str) -> None:
    for key, value in json.loads((FOLDER / f"{release}.json").read_text()).items():
        if isinstance(value, dict):
            client.hset(key, mapping={name: base64.b64decode(text) for name, text in value.items()})
        else:
            client.set(key, base64.b64decode(value))


@pytest.mark.parametrize(("release", "version"), RELEASES.items())
def test_what_a_release_wrote_is_read_whole(store: RedisStore, client: redis.Redis, release: str, version: int) -> None:
    load(client, release)
    for number in range(WRITTEN.OBJECTS):
        before = WRITTEN.alert(number)
        value = client.get(f"trifid:ztf:{before.object_id}:lc")
        assert isinstance(value, bytes)
        assert value[0] == version
        assert is_current(value) == (version == VERSION)
        curve, latest = decode_object(value, "ztf", before.object_id)
        assert same(curve, before.light_curve)
        assert (latest.ra, latest.dec, latest.mjd) == (before.ra, before.dec, before.mjd)
        if version > 1:
            assert (latest.alert_id, latest.band, latest.star_score) == (before.alert_id, "ztf:g", before.star_score)
        # Its next alert finds all points, and writes the present form.
        later = point("ztf", before.object_id, before.ra, before.dec, before.mjd + 10)
        (state,) = store.update([later])
        assert state.remembered == len(before.light_curve)
        assert state.light_curve.mjd.tolist() == [*before.light_curve.mjd, later.mjd]
        assert (state.spectrum is not None) == (number == 1)
        assert client.get(f"trifid:ztf:{before.object_id}:lc") is None
        assert is_current(client.get(key_at(before)))  # type: ignore[arg-type]
    assert client.keys("*:damaged") == []


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_wrote_is_migrated(store: RedisStore, client: redis.Redis, release: str) -> None:
    load(client, release)
    migration = Migration(store)
    assert sum(migration.run()) == WRITTEN.OBJECTS
    assert migration.counts.moved == WRITTEN.OBJECTS
    assert client.keys("trifid:[^{]*:lc") == client.keys("trifid:sky:*") == []
    assert client.get("trifid:layout") == b"homes"
    for number in range(WRITTEN.OBJECTS):
        before = WRITTEN.alert(number)
        value = client.get(key_at(before))
        assert isinstance(value, bytes)
        assert is_current(value)
        assert same(decode_object(value, "ztf", before.object_id)[0], before.light_curve)
        (found,) = store.update([point("lsst", str(number), before.ra, before.dec, before.mjd)])
        assert found.associated == (f"ztf:{before.object_id}",)
    assert client.keys("*:damaged") == []


@pytest.mark.parametrize("homes", [True, False])
def test_what_a_later_release_wrote_is_left_alone(store: RedisStore, client: redis.Redis, homes: bool) -> None:
    """Its alerts fail one by one, and become dead letters that can be replayed; those of other objects go on."""
    later = point("ztf", "later", 10.0, 0.0, 60_000.0)
    other = point("ztf", "other", 20.0, 0.0, 60_000.0)
    store.update([later, other])
    value = client.get(key_at(later))
    assert isinstance(value, bytes)
    newer = bytes([VERSION + 1]) + value[1:] + b"more"
    key = key_at(later) if homes else old_key("ztf", "later")
    client.set(key, newer)
    if not homes:
        client.delete(key_at(later), "trifid:layout")
        store.check()
    refused: list[str] = []

    def failed(alert: Alert, error: Exception) -> list[ObjectState]:
        assert isinstance(error, StateError)
        refused.append(f"{alert.object_id}: {error}")
        return []

    batch = [replace(a, mjd=60_001.0) for a in (later, other)]
    states = isolate(batch, store.update, failed)
    assert [state.object_id for state in states] == ["other"]
    assert refused == [
        "later: state of ztf:later: a later release of Trifid wrote it, in version 4; this one reads versions 1 to 3"
    ]
    (near,) = store.update([point("lsst", "7", 10.0, 0.0, 60_002.0)])
    assert near.associated == ()
    migration = Migration(store)
    list(migration.run())
    assert migration.counts.newer == ([] if homes else [key])
    assert client.get(key) == newer
    assert client.keys("*:damaged") == []


def test_the_layout_of_a_version_does_not_change() -> None:
    """If this fails, the layout is another: it needs a new version, and its reader (docs/state.md)."""
    fixture = json.loads((FOLDER / "cb82431.json").read_text())
    for number in range(WRITTEN.OBJECTS):
        written = base64.b64decode(fixture[f"trifid:ztf:{WRITTEN.alert(number).object_id}:lc"])
        # Version 3 is laid out as version 2 was.
        assert encode_object(WRITTEN.curve(number), WRITTEN.alert(number)) == bytes([VERSION]) + written[1:]
