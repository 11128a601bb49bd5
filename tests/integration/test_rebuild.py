"""`trifid state rebuild` on a real Redis that has lost its state."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from broker import rebuild
from broker.cli import main, state_rebuild
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.errors import DependencyUnavailableError, TrifidError
from broker.records import Alert, ObjectState, ObservedSpectrum, Spectrum
from broker.spectra.message import write
from broker.state.progress import Progress
from broker.state.redis import RedisStore
from broker.streaming.stored_topic import Span
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.redis_cluster import RedisCluster

PAYLOADS = [alert.payload for alert in simulate_alerts(6, 12, seed=21)]
ALERTS = [a for payload in PAYLOADS for a in Decoder().decode(payload) if isinstance(a, Alert)]
SPECTRUM = ObservedSpectrum(
    "one",
    ALERTS[0].ra,
    ALERTS[0].dec,
    ALERTS[0].mjd,
    Spectrum(np.arange(3850.0, 9000.0, 2.0), np.linspace(1, 2, 2575, dtype="f4"), np.full(2575, 0.01, "f4")),
    survey=ALERTS[0].survey,
    object_id=ALERTS[0].object_id,
)


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))


def states(store: RedisStore) -> dict[str, ObjectState]:
    """By object, upon an alert that is in the state already."""
    latest = {alert.object_id: alert for alert in ALERTS}
    return dict(zip(latest, store.update(list(latest.values())), strict=True))


def test_partitions_are_shared_out_by_what_is_left_of_them() -> None:
    spans = {p: Span(100, 100 + left) for p, left in enumerate((5, 60, 0, 30, 40, 10))}
    parts = rebuild._shared(spans, 3)
    assert [sorted(part) for part in parts] == [[1], [0, 4], [3, 5]]
    assert rebuild._shared({0: Span(7, 7), 1: Span(7, 9)}, 2) == [{1: Span(7, 9)}]


def test_what_is_absorbed_is_stored_as_what_is_updated(client: redis.Redis, store: RedisStore) -> None:
    """Counterparts in another survey and a body of the solar system among it, in batches that repeat objects."""
    twins = [replace(alert, survey="lsst", ra=alert.ra + 1e-4) for alert in ALERTS]
    bodies = [replace(alert, object_id="sso:17", solar_system=True) for alert in ALERTS[::9]]
    alerts = [alert for group in zip(ALERTS, twins, strict=True) for alert in group] + bodies
    stored = []
    for merge in (store.update, store.absorb):
        client.flushall()
        for start in range(0, len(alerts), 25):
            merge(alerts[start : start + 25])
            merge(alerts[start : start + 5])
        stored.append({key: client.hgetall(key) if client.type(key) == b"hash" else client.get(key)
                       for key in client.scan_iter() if b":{" in key})  # fmt: skip
    assert stored[0] == stored[1]
    assert len(stored[0]) > 12


def test_the_state_of_all_objects_comes_back(
    tmp_path: Path, server: RedisServer, client: redis.Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    store.put_observed([SPECTRUM])
    for alert in ALERTS:  # one by one, as a stream
        store.update([alert])
    before = states(store)
    client.flushall()
    names = {f"{n}.avro": payload for n, payload in enumerate([*PAYLOADS[30:], *PAYLOADS[:30]])}
    archive(tmp_path / "night.tar.gz", {**names, "spectrum.avro": write(SPECTRUM), "bad.avro": b"no alert"})

    result = CliRunner().invoke(main, ["state", "rebuild", "--from", str(tmp_path), "--processes", "2"])
    assert result.exit_code == 1  # of bad.avro
    assert (
        f"{len(ALERTS)} alerts and 1 spectra of {len(PAYLOADS) + 1} packets in the state, 1 not readable"
        in result.output
    )
    assert "bad.avro" in result.output
    after = states(store)
    assert set(after) == set(before)
    assert len(before) == 6
    for name, state in before.items():
        assert len(state.light_curve) == len(after[name].light_curve) >= 12
        for column in ("mjd", "flux", "flux_error", "band"):
            np.testing.assert_array_equal(getattr(state.light_curve, column), getattr(after[name].light_curve, column))
    assert after[ALERTS[0].object_id].spectrum is not None

    again = CliRunner().invoke(main, ["state", "rebuild", "--from", str(tmp_path), "--processes", "1"])
    assert again.exit_code == 1
    for name, state in states(store).items():
        np.testing.assert_array_equal(state.light_curve.mjd, before[name].light_curve.mjd)


def test_an_interrupted_rebuild_goes_on_with_the_next_archive(
    tmp_path: Path, server: RedisServer, client: redis.Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    monkeypatch.setattr(state_rebuild, "_SAVE_S", 0.0)
    monkeypatch.setattr(state_rebuild, "_SMALL", 0)
    half = len(PAYLOADS) // 2
    for name, some in (("a.tar.gz", PAYLOADS[:half]), ("b.tar.gz", PAYLOADS[half:])):
        archive(tmp_path / name, {f"{n}.avro": payload for n, payload in enumerate(some)})
    merge = rebuild.merge
    monkeypatch.setattr(rebuild, "BATCH", half)

    def merged(packets: list[rebuild.Packet], *given: object) -> rebuild.Rebuilt:
        if "a.tar.gz" not in packets[0].name:
            raise DependencyUnavailableError("Redis: gone")
        return merge(packets, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "merge", merged)
    command = ["state", "rebuild", "--from", str(tmp_path), "--processes", "1"]
    assert CliRunner().invoke(main, command).exit_code == 1
    monkeypatch.setattr(rebuild, "merge", merge)
    # The end of the first archive is only seen with the packet after it: both are read, and nothing is left out.
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert set(states(store)) == {alert.object_id for alert in ALERTS}
    monkeypatch.setattr(rebuild, "BATCH", half + 1)
    monkeypatch.setattr(rebuild, "merge", merged)
    assert CliRunner().invoke(main, command).exit_code == 1
    monkeypatch.setattr(rebuild, "merge", merge)
    result = CliRunner().invoke(main, command)
    assert "a.tar.gz: read by an earlier run" in result.output
    assert f"of {len(PAYLOADS) - half} packets in the state" in result.output
    result = CliRunner().invoke(main, [*command, "--again"])
    assert f"of {len(PAYLOADS)} packets in the state" in result.output


def test_no_process_is_left_where_the_command_is_killed(
    tmp_path: Path, server: RedisServer, client: redis.Redis
) -> None:
    archive(tmp_path / "a.tar.gz", {f"{n}.avro": payload for n, payload in enumerate(PAYLOADS * 200)})
    command = ["state", "rebuild", "--from", str(tmp_path), "--processes", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", *command],
        env={**os.environ, "TRIFID_REDIS__URL": server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while client.dbsize() < len({alert.object_id for alert in ALERTS}):
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.communicate(timeout=300)  # which ends when nobody has its output any more


def test_where_redis_loses_its_state_meanwhile_the_run_is_not_a_good_one(
    tmp_path: Path, server: RedisServer, client: redis.Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    monkeypatch.setattr(state_rebuild, "_SAVE_S", 0.0)
    archive(tmp_path / "a.tar.gz", {f"{n}.avro": payload for n, payload in enumerate(PAYLOADS)})
    merge = rebuild.merge
    monkeypatch.setattr(rebuild, "BATCH", len(PAYLOADS) // 2)

    def merged(packets: list[rebuild.Packet], *given: object) -> rebuild.Rebuilt:
        if packets[0].payload != PAYLOADS[0]:  # the second half
            client.flushall()
        return merge(packets, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "merge", merged)
    command = ["state", "rebuild", "--from", str(tmp_path), "--processes", "1"]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, "lost what it held meanwhile" in result.output) == (1, True), result.output
    monkeypatch.setattr(rebuild, "merge", merge)
    assert CliRunner().invoke(main, command).exit_code == 0
    assert set(states(store)) == {alert.object_id for alert in ALERTS}


def test_a_process_that_is_killed_is_told(server: RedisServer, client: redis.Redis) -> None:
    settings = Settings.model_validate({"redis": {"url": server.url}})
    packets = [rebuild.Packet(str(n), payload) for n, payload in enumerate(PAYLOADS)]

    def batches() -> Iterator[rebuild.Batch]:
        for number in range(1000):
            if number == 3:
                multiprocessing.active_children()[0].kill()
            yield rebuild.Batch(packets)

    with pytest.raises(TrifidError, match="has ended or was killed"):
        list(rebuild.rebuild(batches(), settings, 2))


def test_how_far_it_came_counts_no_more_where_one_primary_lost_its_part(cluster: RedisCluster, nodes: Any) -> None:
    with closing(RedisStore(cluster.address)) as store:
        store.check()
        progress = Progress(store, "source")
        progress.save({"0": 5})
        assert Progress(store, "source").load() == {"0": 5}
        home = nodes.get_node_from_key(progress.key).name
        other = next(node for node in nodes.get_primaries() if node.name != home)
        nodes.flushall(target_nodes=other)
        store.check()
        assert Progress(store, "source").load() == {}


def test_what_is_no_progress_in_redis_is_passed_over(store: RedisStore, client: redis.Redis) -> None:
    store.check()
    progress = Progress(store, "source")
    for wrong in (b"no JSON", b"[1]", b'{"0": 1e999}', b'{"0": null}'):
        client.set(progress.key, wrong)
        assert progress.load() == {}
    client.delete(progress.key)
    client.hset(progress.key, "field", "value")
    assert progress.load() == {}
    progress.save({"0": 5})
    assert progress.load() == {"0": 5}
