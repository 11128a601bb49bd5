"""Drift over a real Redis: workers' counts add up over restarts, versions never mix, and the command says what is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner
from prometheus_client import REGISTRY

from broker.anomaly.reference_set import ReferenceSet
from broker.batch import IncomingMessage
from broker.build import build_pipeline, reference_set_in_redis
from broker.cli import main
from broker.config import Settings
from broker.drift.counts import SIZE, Counts
from broker.drift.stored import Baseline, DriftStore, space_of
from broker.drift.watch import DriftWatch
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
from broker.inference.onnx import OnnxEngine
from broker.npz import from_npz, to_npz
from broker.redis_client import RedisConnection
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import build_random_repository

HOUR, DAY = 3600, 86_400
NOW = 20_000.5 * DAY
ZTF = ("ztf", "ztf:g")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_repository(tmp_path_factory.mktemp("model"))


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def settings(server: RedisServer, repository: Path) -> Settings:
    return Settings.model_validate({"redis": {"url": server.url}, "inference": {"model_repository": repository}})


def run(watch: DriftWatch, settings: Settings, reference: ReferenceSet, seed: int, objects: int = 12) -> int:
    """A worker's batches; how many alerts they were."""
    messages = [IncomingMessage(alert.payload, 60_000.0) for alert in simulate_alerts(objects, 12, seed=seed)]
    engine = OnnxEngine(settings.inference.model_repository)
    counter = watch.counter(reference)
    watch.watch(counter)
    with closing(engine):
        pipeline = build_pipeline(settings, Decoder(), MemoryStore(), engine, reference, drift=counter)
        result = pipeline.process(messages)
    assert not result.dead_letters
    return len(result.annotations)


def counts(alerts: int, index: int = 1) -> Counts:
    vector = np.zeros(SIZE, np.int64)
    vector[[0, index]] = alerts
    return {ZTF: vector}


def total(found: Counts) -> int:
    return sum(int(vector[0]) for vector in found.values())


def series(name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_counts_of_workers_add_up_over_a_restart_and_writing_twice(server: RedisServer, repository: Path) -> None:
    own = settings(server, repository)
    reference, clock = reference_set_in_redis(own), Clock(NOW)
    alerts = 0
    for seed in (1, 2):  # two workers, or one before and after a restart
        watch = DriftWatch(RedisConnection(server.url), 24, clock)
        alerts += run(watch, own, reference, seed)
        watch.look()
        watch.look()
        watch.close()
    store = DriftStore(RedisConnection(server.url), space_of(reference))
    with closing(store.connection):
        assert total(store.window(NOW, 1)) == alerts > 100
        assert {survey for survey, _ in store.window(NOW, 1)} == {"ztf"}
        (day,) = store.read("day", [int(NOW // DAY)])
        assert total(day) == alerts
        assert series("trifid_drift_window_alerts") == {
            (band, survey): float(vector[0]) for (survey, band), vector in day.items()
        }
    with redis.Redis.from_url(server.url) as client:
        assert 0 < client.ttl(store.key("hour", int(NOW // HOUR))) <= 72 * HOUR
        assert 72 * HOUR < client.ttl(store.key("day", int(NOW // DAY))) <= 60 * DAY


def test_hours_that_have_ended_are_kept_and_leave_the_window(server: RedisServer, repository: Path) -> None:
    own = settings(server, repository)
    reference, clock = reference_set_in_redis(own), Clock(NOW)
    watch = DriftWatch(RedisConnection(server.url), 2, clock)
    store = DriftStore(RedisConnection(server.url), space_of(reference))
    with closing(watch), closing(store.connection):
        first = run(watch, own, reference, 1)
        watch.look()
        clock.now += HOUR
        second = run(watch, own, reference, 2)
        watch.look()  # the first hour is written for the last time
        watch.look()
        assert total(store.window(clock.now, 2)) == first + second
        clock.now += 2 * HOUR
        watch.look()
        assert total(store.window(clock.now, 2)) == second
        assert sum(series("trifid_drift_window_alerts").values()) == second
        clock.now += HOUR
        watch.look()
        assert series("trifid_drift_window_alerts") == {}  # nothing is said of what has stopped coming
        assert [total(c) for c in store.read("hour", [int(NOW // HOUR), int(NOW // HOUR) + 1])] == [first, second]


def test_another_model_or_reference_set_has_counts_and_a_baseline_of_its_own(
    server: RedisServer, repository: Path
) -> None:
    own = settings(server, repository)
    reference = reference_set_in_redis(own)
    rebuilt = replace(reference, version=f"{reference.version}+stream")
    watch = DriftWatch(RedisConnection(server.url), 24, Clock(NOW))
    with closing(watch):
        first = run(watch, own, reference, 1)
        second = run(watch, own, rebuilt, 2, objects=5)
        watch.look()
        stores = [DriftStore(watch._connection, space_of(each)) for each in (reference, rebuilt)]
        assert [total(store.window(NOW, 1)) for store in stores] == [first, second]
        assert sum(series("trifid_drift_window_alerts").values()) == second  # those of the version in use
        for day in range(3):
            stores[0].write("past", {("day", int(NOW // DAY) - 1 - day): counts(500)})
        stores[0].make_baseline(NOW, 7)
        assert stores[1].baseline() is None
        watch.look()
        assert series("trifid_drift_baseline") == {(): 0.0}
        # What somebody has put in the wrong place is refused, not compared with.
        data = watch._connection.get(stores[0].baseline_key())
        watch._connection.commands([("SET", stores[1].baseline_key(), data)])
        with pytest.raises(ConfigurationError, match="is that of"):
            stores[1].baseline()


def test_a_baseline_of_days_or_of_hours_and_back_from_bytes(server: RedisServer) -> None:
    with closing(RedisConnection(server.url)) as connection:
        store = DriftStore(connection, "model 1:set 1:1")
        with pytest.raises(ConfigurationError, match="alerts of 0 days and 0 hours, of 3 at least"):
            store.make_baseline(NOW, 7)
        for hour in range(3):
            number = int(NOW // HOUR) - hour
            store.write("a", {("hour", number): counts(10 + hour), ("day", int(NOW // DAY)): counts(33)})
        made = store.make_baseline(NOW, 7)
        assert (made.spans, made.alerts, [total(block) for block in made.blocks]) == ("3 hours", 33, [12, 11, 10])
        for day in range(9):
            store.write("a", {("day", int(NOW // DAY) - day): counts(100 + day)})
        made = store.make_baseline(NOW, 7)
        assert made.spans == "7 days"
        again = store.baseline()
        assert again is not None
        assert [total(block) for block in again.blocks] == [106, 105, 104, 103, 102, 101, 100]
        np.testing.assert_array_equal(again.blocks[0][ZTF], counts(106)[ZTF])
        assert again.made == NOW
        arrays = from_npz(made.to_bytes(), None, "")
        for wrong in (
            b"no file",
            made.to_bytes()[:-30],
            to_npz(**arrays | {"block": np.full(7, -1)}),
            to_npz(**arrays | {"block": np.full(7, 2**31 - 1)}),
        ):
            with pytest.raises(ConfigurationError, match="cannot be read"):
                Baseline.from_bytes(wrong, store.space)
        # Fields that are no counts are passed over.
        connection.commands([("HSET", store.key("hour", 1), "a|ztf|g", "x", "b", b"y")])
        assert store.read("hour", [1]) == [{}]


def test_the_command_says_what_drifts(server: RedisServer, repository: Path, tmp_path: Path) -> None:
    import time

    own, now = settings(server, repository), time.time()
    config = tmp_path / "trifid.toml"
    config.write_text(f'[redis]\nurl = "{server.url}"\n[inference]\nmodel_repository = "{repository}"\n')

    def command(*words: str) -> str:
        result = CliRunner().invoke(main, ["drift", *words, "--config", str(config)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "no baseline: make one with `trifid drift baseline`" in command()
    refused = CliRunner().invoke(main, ["drift", "baseline", "--config", str(config)])
    assert (refused.exit_code, "0 days and 0 hours" in refused.output) == (2, True)
    with closing(RedisConnection(server.url)) as connection:
        store = DriftStore(connection, space_of(reference_set_in_redis(own)))
        rng = np.random.default_rng(0)
        for day in range(1, 4):
            store.write("a", {("day", int(now // DAY) - day): _two_classes(rng, 0.2)})
        assert "3 days, 3000 alerts" in command("baseline", "--days", "5")
        store.write("a", {("hour", int(now // HOUR)): _two_classes(rng, 0.2)})
        output = command()
        assert "ztf ztf:g: 1000 alerts in the window" in output
        assert "baseline: 3 days, 3000 alerts" in output
        assert "DRIFT" not in output
        store.write("a", {("hour", int(now // HOUR)): _two_classes(rng, 0.4)})
        output = command("--hours", "3")
        (line,) = [line for line in output.splitlines() if "DRIFT" in line]
        assert line.split()[:3] == ["ztf", "ztf:g", "classes"]
        rows = [json.loads(line) for line in command("--json").splitlines()]
        (row,) = [row for row in rows if row["detected"]]
        assert (row["quantity"], row["alerts"]) == ("classes", 1000)
        # As the metrics of a worker have it, which alarms go by.
        watch = DriftWatch(RedisConnection(server.url), 24)
        with closing(watch):
            watch.watch(watch.counter(reference_set_in_redis(own)))
            # Of a version that was made ready and then refused: the one before is watched on.
            watch.counter(replace(reference_set_in_redis(own), version="refused"))
            watch.look()
        assert series("trifid_drift_detected")["ztf:g", "classes", "ztf"] == 1.0
        assert series("trifid_drift_significance")["ztf:g", "classes", "ztf"] == pytest.approx(row["significance"])
        assert series("trifid_drift_baseline") == {(): 1.0}


def _two_classes(rng: np.random.Generator, share: float) -> Counts:
    vector = np.zeros(SIZE, np.int64)
    vector[0] = 1000
    vector[[1, 2]] = rng.multinomial(1000, [share, 1 - share])
    return {ZTF: vector}
