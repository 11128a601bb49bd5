"""A reference set from the stream: made of the state in a real Redis, taken over and back by a worker that goes on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result
from prometheus_client import REGISTRY

from broker.anomaly.stored import key_of
from broker.batch import IncomingMessage
from broker.build import build_pipeline, build_store, load_reference_set, own_reference_set, reference_set_in_redis
from broker.cli import main
from broker.config import Settings, load_settings
from broker.drift.stored import space_of
from broker.embedded.redis import RedisServer
from broker.records import Alert
from broker.state.memory import MemoryStore
from broker.streaming.serving import Serving
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import MODEL_REPO

ALERTS = list(simulate_alerts(460, 18, seed=11))
MESSAGES = [IncomingMessage(alert.payload, 60_000.0) for alert in ALERTS[-64:]]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def config(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a Redis that has the state of simulated objects."""
    folder = tmp_path_factory.mktemp("reference")
    path = folder / "trifid.toml"
    path.write_text(
        f'[redis]\nurl = "{server.url}"\n[inference]\nengine = "onnx"\nmodel_repository = "{MODEL_REPO}"\n'
        f'[web]\ndatabase = "sqlite:///{folder / "web.sqlite"}"\n'
    )
    decoder = Decoder()
    with closing(build_store(load_settings(path))) as store:
        for first in range(0, len(ALERTS), 256):
            decoded = decoder.decode_batch([alert.payload for alert in ALERTS[first : first + 256]])
            store.update([record for records in decoded for record in records if isinstance(record, Alert)])  # type: ignore[union-attr]
    return path


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["reference", *arguments, "--config", str(config)])


@pytest.fixture(scope="module")
def built(config: Path) -> str:
    """The version of a set that was made, and not promoted."""
    done = run(config, "build", "--detections", "8")
    assert done.exit_code == 0, done.output
    assert "in neither set nor calibration" in done.output
    (made,) = (json.loads(line) for line in run(config, "list", "--json").output.splitlines())
    assert not made["in_use"]
    assert made["strata"] >= 1
    assert f"trifid reference promote {made['version']}" in done.output
    version: str = made["version"]
    return version


@pytest.fixture
def own_in_use(config: Path, built: str, server: RedisServer) -> Iterator[None]:
    """Each test begins and ends with the model's own set in use."""
    with redis.Redis.from_url(server.url) as client:
        promoted = f"{key_of(own_reference_set(load_settings(config))[1])}:promoted"
        client.delete(promoted)
        yield
        client.delete(promoted)


class Worker:
    """What ``trifid run`` does with batches, without Kafka."""

    def __init__(self, settings: Settings) -> None:
        self.names: list[str] = []
        self.notes: list[str | None] = []
        decoder, store = Decoder(), MemoryStore()
        self.serving = Serving(
            settings,
            lambda engine, reference, keeper: build_pipeline(
                settings, decoder, store, engine, reference, similar=keeper
            ),
            self.names.append,
            self.notes.append,
        )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.usefixtures("own_in_use")
def test_a_worker_takes_it_over_and_back_without_a_restart(
    config: Path, built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streaming.serving._LOOK_S", 0.05)
    settings = load_settings(config)
    own = own_reference_set(settings)[0].version
    worker = Worker(settings)
    with closing(worker.serving):
        process = worker.serving.prepare()
        engine = worker.serving._engine
        done = metric("trifid_model_switches_total", outcome="done")
        for command, expected, stream in ((["promote", built], built, 1.0), (["rollback"], own, 0.0)):
            before = process(MESSAGES).annotations
            assert {a.reference_set_version for a in before if a.reference_set_version} <= {own, built}
            said = run(config, *command)
            assert said.exit_code == 0, said.output
            wait_until(lambda: worker.serving._next is not None)
            after = process(MESSAGES).annotations
            assert {a.reference_set_version for a in after if a.combined_anomaly is not None} == {expected}
            assert metric("trifid_reference_from_stream") == stream
            # What the class is has nothing to do with it.
            assert [a.probabilities for a in process(MESSAGES).annotations] == [a.probabilities for a in after]
        assert worker.serving._engine is engine
        assert metric("trifid_model_switches_total", outcome="done") == done + 2
        assert [name.rpartition(" ")[2] for name in worker.names] == [own, built, own]
        assert not any(worker.notes)


@pytest.mark.usefixtures("own_in_use")
def test_whatever_compares_with_it_uses_the_one_in_use(config: Path, built: str) -> None:
    """Counts of drift and corrections by answers are of one set each: their keys name it."""
    settings = load_settings(config)
    own = reference_set_in_redis(settings)
    assert run(config, "promote", built).exit_code == 0
    used = reference_set_in_redis(settings)
    assert (used.version, used.base and used.base.version) == (built, own.version)
    assert space_of(used) != space_of(own)
    assert load_reference_set(settings).version == own.version  # without Redis there is the model's own
    assert "in use" in run(config, "list").output.splitlines()[1]
    assert run(config, "promote", built).exit_code == 2  # it is in use already
    back = run(config, "promote", "own")
    assert back.exit_code == 0, back.output
    assert reference_set_in_redis(settings).version == own.version
    assert run(config, "rollback").exit_code == 0
    assert reference_set_in_redis(settings).version == built
    # A set that the operator names always wins.
    anomaly = settings.anomaly.model_copy(update={"reference_set": MODEL_REPO / "reference_set.npz"})
    assert reference_set_in_redis(settings.model_copy(update={"anomaly": anomaly})).version == own.version


@pytest.mark.usefixtures("own_in_use")
@pytest.mark.parametrize("how", ["gone", "damaged", "other base"])
def test_one_that_cannot_be_used_is_refused_and_the_one_at_hand_goes_on(
    how: str, config: Path, built: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streaming.serving._LOOK_S", 0.05)
    settings = load_settings(config)
    own, identity = own_reference_set(settings)
    made, promoted = f"{key_of(identity)}:made", f"{key_of(identity)}:promoted"
    worker = Worker(settings)
    with closing(worker.serving), redis.Redis.from_url(server.url) as client:
        process = worker.serving.prepare()
        data, listed = client.get(f"{made}:{built}"), client.hget(made, built)
        assert isinstance(data, bytes)
        assert isinstance(listed, bytes)
        if how == "gone":
            client.delete(f"{made}:{built}")
        elif how == "damaged":
            client.set(f"{made}:{built}", data[:-1])
        else:
            client.hset(made, built, json.dumps({**json.loads(listed), "base": "1.0+00000000"}))
        assert run(config, "promote", built).exit_code == 2
        assert reference_set_in_redis(settings).version == own.version
        client.set(promoted, json.dumps({"version": built, "before": []}))  # as where it was damaged afterwards
        wait_until(lambda: bool(worker.notes))
        assert worker.notes[-1] is not None
        assert "was promoted and cannot be used" in worker.notes[-1]
        assert {a.reference_set_version for a in process(MESSAGES).annotations if a.reference_set_version} == {
            own.version
        }
        # A worker that starts now has the model's own, and says why.
        failed = metric("trifid_model_switches_total", outcome="failed")
        other = Worker(settings)
        with closing(other.serving):
            other.serving.prepare()
            assert other.names[-1].endswith(own.version)
            assert other.notes[0] is not None
            assert metric("trifid_model_switches_total", outcome="failed") > failed
        client.set(f"{made}:{built}", data)
        client.hset(made, built, listed)


@pytest.mark.usefixtures("own_in_use")
def test_answers_of_people_count(config: Path) -> None:
    """Objects that are interesting are no known stars, and a class that a person gives is believed."""
    from broker.web import feedback
    from broker.web.index import Index

    names = sorted({alert.object_id for alert in ALERTS})[:30]
    settings = load_settings(config)
    index = Index(settings.web.database.get_secret_value())
    with closing(index):
        for name in names:
            feedback.add(index.engine, "ztf", name, "interesting", None, "", "somebody")
        assert feedback.of_objects(index.engine)["ztf", names[0]] == ("interesting", None)
        feedback.add(index.engine, "ztf", names[0], "boring", None, "", "somebody")
        feedback.add(index.engine, "ztf", names[1], "boring", None, "", "somebody else")
        found = feedback.of_objects(index.engine)
        assert found["ztf", names[0]] == ("boring", None)
        assert found["ztf", names[1]] == ("interesting", None)
    with_answers = run(config, "build", "--detections", "8")
    assert with_answers.exit_code == 0, with_answers.output
    set_aside = re.search(r"set aside by answers: (\d+)", with_answers.output)
    assert set_aside is not None
    assert 20 <= int(set_aside[1]) <= 29  # some have too few detections, and one is boring
    without = run(config, "build", "--detections", "8", "--no-answers", "--promote")
    assert without.exit_code == 0, without.output
    assert "set aside by answers" not in without.output
    assert reference_set_in_redis(settings).base is not None


def test_only_the_latest_are_kept(config: Path, built: str, server: RedisServer) -> None:
    for least in range(6, 8):
        done = run(config, "build", "--detections", str(least), "--no-answers")
        assert done.exit_code == 0, done.output
    kept = [json.loads(line)["version"] for line in run(config, "list", "--json").output.splitlines()]
    assert 1 <= len(kept) <= 4
    with redis.Redis.from_url(server.url) as client:
        keys = {key.decode() for key in client.scan_iter("trifid:reference_set:*:made:*")}
        assert {key.rpartition(":made:")[2] for key in keys} == set(kept)
        scores = {key.decode().rpartition(":scores:")[2] for key in client.scan_iter("trifid:reference_set:*:scores:*")}
        assert set(kept) < scores
        assert all(0 < client.ttl(key) <= 180 * 86_400 for key in keys)
