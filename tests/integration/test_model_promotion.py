"""Promoting and rolling back a version under load: real Triton or ONNX Runtime, real Redis, workers that go on."""

from __future__ import annotations

import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from prometheus_client import REGISTRY

from broker.batch import BatchResult, IncomingMessage
from broker.build import build_pipeline, reference_set_in_redis
from broker.cli import main
from broker.config import CandidateSettings, Settings
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.inference.triton_client import loaded_models
from broker.models.build import build
from broker.models.repository import ModelRepository
from broker.state.memory import MemoryStore
from broker.streaming.serving import Serving
from broker.streaming.worker import worker as whole_worker
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.triton_server import TritonServer, triton_installed
from tests.random_models import build_random_repository
from tests.waiting import wait_until

OLD, NEW = "trifid-random 0.0.0", "trifid-random 0.0.10"
MESSAGES = [IncomingMessage(alert.payload, 60_000.0) for alert in simulate_alerts(16, 12, seed=4)]
WORKERS = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 0.0.0, which is served, 0.0.10 and 0.0.20."""
    folder = tmp_path_factory.mktemp("models") / "repository"
    for seed in (0, 10, 20):
        build(build_random_repository(tmp_path_factory.mktemp("run"), seed=seed), folder, "auto")
    return folder


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def settings_of(redis: RedisServer, folder: Path, engine: str = "onnx", url: str = "127.0.0.1:1") -> Settings:
    return Settings.model_validate(
        {
            "redis": {"url": redis.url},
            "triton": {"url": url, "retries": 0},  # a request that fails fails the test
            "similar": {"enabled": True},  # a version's embeddings come and go with it
            "inference": {"engine": engine, "model_repository": str(folder)},
        }
    )


def write_config(path: Path, settings: Settings, redis: RedisServer) -> Path:
    path.write_text(
        f'[redis]\nurl = "{redis.url}"\n[triton]\nurl = "{settings.triton.url}"\n'
        f'[inference]\nengine = "{settings.inference.engine}"\n'
        f'model_repository = "{settings.inference.model_repository}"\n'
    )
    return path


class Worker:
    """What ``trifid run`` does with batches, without Kafka: one batch after the other until told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.results: list[BatchResult] = []
        self.versions: list[str] = []
        self.notes: list[str | None] = []
        self.error: BaseException | None = None
        decoder, store = Decoder(), MemoryStore()
        self.serving = Serving(
            settings,
            lambda engine, reference, keeper: build_pipeline(
                settings, decoder, store, engine, reference, similar=keeper
            ),
            self.versions.append,
            self.notes.append,
        )

    def run(self, stop: threading.Event) -> None:
        with closing(self.serving):
            process = self.serving.prepare()
            while not stop.is_set():
                self.results.append(process(MESSAGES))


def expected(settings: Settings, version: str) -> dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The probabilities that a version publishes of each alert, once all of them are known."""
    with closing(OnnxEngine(settings.inference.model_repository, version=version)) as engine:
        pipeline = build_pipeline(settings, Decoder(), MemoryStore(), engine, reference_set_in_redis(settings, version))
        pipeline.process(MESSAGES)
        return {a.alert_id: np.array(a.probabilities) for a in pipeline.process(MESSAGES).annotations}


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 0.0.0, which is served, of before 2026.11.29: its classifier takes no ``event``, that of 0.0.10 does.

    Its run has no configuration, as none has that training wrote elsewhere than into ``model_repo``.
    """
    folder = tmp_path_factory.mktemp("across") / "repository"
    for seed in (0, 10):
        run = tmp_path_factory.mktemp("run")
        build_random_repository(run, seed=seed, other_threshold=0.5, event=seed > 0)
        (run / "classifier/config.pbtxt").unlink()
        build(run, folder, "auto")
    return folder


@pytest.mark.parametrize(("kind", "versions"), [("onnx", "built"), ("triton", "built"), ("triton", "across")])
def test_promote_and_roll_back_under_load(
    kind: str, versions: str, redis: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "triton" and not triton_installed():
        pytest.skip("no Triton: run `python -m deploy.local.triton_server setup`")
    folder = shutil.copytree(request.getfixturevalue(versions), tmp_path / "repository")
    with TritonServer(folder) if kind == "triton" else nullcontext() as server, ThreadPoolExecutor(WORKERS) as pool:
        settings = settings_of(redis, folder, kind, server.grpc_url if server else "127.0.0.1:1")
        config = str(write_config(tmp_path / "trifid.toml", settings, redis))
        workers = [Worker(settings) for _ in range(WORKERS)]
        stop = threading.Event()
        running = [pool.submit(worker.run, stop) for worker in workers]
        try:
            wait_until(lambda: all(len(worker.results) > 2 for worker in workers))
            for command, version in ((["promote", "0.0.10"], NEW), (["rollback"], OLD)):
                done = CliRunner().invoke(main, ["models", *command, "--config", config])
                assert done.exit_code == 0, done.output
                wait_until(lambda v=version: all(w.versions[-1].startswith(v + " with") for w in workers))  # type: ignore[misc]
                now = [len(worker.results) for worker in workers]
                wait_until(lambda n=now: all(len(w.results) > c + 1 for w, c in zip(workers, n, strict=True)))  # type: ignore[misc]
        finally:
            stop.set()
            for future in running:
                future.result()  # raises what a batch failed with: no request may
        if server is not None:
            assert failed_requests(server) == 0
    of_version = {OLD: expected(settings, "0.0.0"), NEW: expected(settings, "0.0.10")}
    for worker in workers:
        assert not any(result.dead_letters for result in worker.results)
        assert not any(worker.notes)
        assert all(len(result.annotations) == len(MESSAGES) for result in worker.results)
        names = [{annotation.model_version for annotation in result.annotations} for result in worker.results]
        assert all(len(name) == 1 for name in names)  # a batch has one version
        assert [key for key, _ in groupby(name.pop() for name in names)] == [OLD, NEW, OLD]
        for result in worker.results[1:]:  # the first sees each light curve grow
            for annotation in result.annotations:
                np.testing.assert_allclose(
                    annotation.probabilities, of_version[annotation.model_version][annotation.alert_id], atol=2e-4
                )
                if annotation.reference_set_version is not None:
                    assert annotation.model_version == f"trifid-random {annotation.reference_set_version}"
    scored = [a for w in workers for r in w.results for a in r.annotations if a.reference_set_version is not None]
    assert {a.reference_set_version for a in scored} == {"0.0.0", "0.0.10"}


def failed_requests(server: TritonServer) -> int:
    with urllib.request.urlopen(server.metrics_url) as response:
        metrics = response.read().decode()
    failures = re.findall(r"^nv_inference_request_failure\{.*\} (\d+)$", metrics, re.MULTILINE)
    assert failures
    return sum(map(int, failures))


def test_a_version_that_a_worker_uses_is_not_unloaded_by_later_promotions(
    built: Path, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not triton_installed():
        pytest.skip("no Triton: run `python -m deploy.local.triton_server setup`")
    monkeypatch.setattr("broker.models.promote._RECENT_S", 0.0)  # by what workers say alone
    folder = shutil.copytree(built, tmp_path / "repository")
    with TritonServer(folder) as server, ThreadPoolExecutor(2) as pool:

        def classifiers() -> set[int]:
            return set(loaded_models(server.grpc_url, None, 10)["classifier"])

        settings = settings_of(redis, folder, "triton", server.grpc_url)
        config = str(write_config(tmp_path / "trifid.toml", settings, redis))
        kept = settings.kafka.model_copy(update={"worker_id": "keeps-a"})
        still = settings.inference.model_copy(update={"follow_promotions": False})
        workers = [Worker(settings.model_copy(update={"kafka": kept, "inference": still})), Worker(settings)]
        stop = threading.Event()
        running = [pool.submit(worker.run, stop) for worker in workers]
        try:
            wait_until(lambda: all(len(worker.results) > 1 for worker in workers))
            for version in ("0.0.10", "0.0.20"):
                done = CliRunner().invoke(main, ["models", "promote", version, "--config", config])
                assert done.exit_code == 0, done.output
                wait_until(lambda v=version: workers[1].versions[-1].startswith(f"trifid-random {v} with"))  # type: ignore[misc]
            assert "0.0.0 is in use by trifid/keeps-a" in done.output
            now = [len(worker.results) for worker in workers]
            wait_until(lambda: all(len(w.results) > c + 2 for w, c in zip(workers, now, strict=True)))
            listed = CliRunner().invoke(main, ["models", "list", "--config", config]).output
            assert "0.0.0  served before, in use by trifid/keeps-a\n" in listed
            assert "0.0.20  served, in use by trifid/" in listed
            assert "0.0.10  served before\n" in listed
        finally:
            stop.set()
            for future in running:
                future.result()  # raises what a batch failed with: no request may
        assert failed_requests(server) == 0
        assert {a.model_version for r in workers[0].results for a in r.annotations} == {OLD}
        assert not any(r.dead_letters for w in workers for r in w.results)
        assert classifiers() == {1, 2, 3}
        # The workers have ended: nobody uses the first version any more, and it is not the one before.
        back = CliRunner().invoke(main, ["models", "rollback", "--config", config])
        assert back.exit_code == 0, back.output
        assert "in use" not in back.output
        assert classifiers() == {2, 3}


def test_a_server_that_cannot_load_a_version_serves_on_and_nothing_is_promoted(
    built: Path, redis: RedisServer, tmp_path: Path
) -> None:
    if not triton_installed():
        pytest.skip("no Triton: run `python -m deploy.local.triton_server setup`")
    folder = shutil.copytree(built, tmp_path / "repository")
    copy = shutil.copytree(built, tmp_path / "copy")
    before = (folder / "manifest.json").read_bytes()
    # The server has a repository of its own, whose version 2 of the classifier is no model.
    (copy / "classifier/2/model.onnx").write_bytes(b"no model")
    with TritonServer(copy) as server:
        settings = settings_of(redis, folder, "triton", server.grpc_url)
        config = str(write_config(tmp_path / "trifid.toml", settings, redis))
        other = CliRunner().invoke(main, ["models", "promote", "0.0.10", "--config", config])
        assert other.exit_code == 2
        assert "has not loaded" in other.output
        assert "does it serve this repository" in other.output
        own = write_config(tmp_path / "own.toml", settings_of(redis, copy, "triton", server.grpc_url), redis)
        damaged = CliRunner().invoke(main, ["models", "promote", "0.0.10", "--config", str(own)])
        assert damaged.exit_code == 2
        assert "is not the model that" in damaged.output
        worker = Worker(settings)
        with closing(worker.serving):
            assert {a.model_version for a in worker.serving.prepare()(MESSAGES).annotations} == {OLD}
    assert (folder / "manifest.json").read_bytes() == before
    assert "versions: [1] }" in (folder / "classifier/config.pbtxt").read_text()


def test_a_worker_goes_on_with_the_version_at_hand_where_the_promoted_one_cannot_be_used(
    built: Path, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streaming.serving._LOOK_S", 0.05)
    monkeypatch.setattr("broker.streaming.serving._FIRST_PAUSE_S", 0.2)
    folder = shutil.copytree(built, tmp_path / "repository")
    settings = settings_of(redis, folder)
    worker = Worker(settings)
    with closing(worker.serving):
        process = worker.serving.prepare()
        model = folder / ModelRepository(folder).manifest("0.0.10").path_of("classifier")
        data = model.read_bytes()
        model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        ModelRepository(folder).serve("0.0.10", ["0.0.0"])  # as a copy of the repository that was damaged on its way
        wait_until(lambda: bool(worker.notes))
        assert worker.notes[-1] is not None
        assert "0.0.10 was promoted and cannot be used, trifid-random 0.0.0 goes on" in worker.notes[-1]
        assert "is not the model that" in worker.notes[-1]
        assert {a.model_version for a in process(MESSAGES).annotations} == {OLD}
        model.write_bytes(data)  # copied again: it is tried again
        wait_until(lambda: worker.serving._next is not None)
        assert {a.model_version for a in process(MESSAGES).annotations} == {NEW}
        assert worker.notes[-1] is None
        assert worker.versions == [f"{OLD} with reference set 0.0.0", f"{NEW} with reference set 0.0.10"]


def test_following_can_be_turned_off(
    built: Path, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streaming.serving._LOOK_S", 0.01)
    folder = shutil.copytree(built, tmp_path / "repository")
    settings = settings_of(redis, folder)
    still = settings.inference.model_copy(update={"follow_promotions": False})
    worker = Worker(settings.model_copy(update={"inference": still}))
    looked = threading.Event()
    monkeypatch.setattr(worker.serving.leases, "renew", looked.set)
    with closing(worker.serving):
        worker.serving.prepare()
        ModelRepository(folder).serve("0.0.10", ["0.0.0"])
        for _ in range(2):  # the second time, all of the first round is done
            looked.clear()
            assert looked.wait(300)
        assert worker.serving._next is None
        assert {a.model_version for a in worker.serving.process(MESSAGES).annotations} == {OLD}


@pytest.mark.parametrize("publish", [False, True])
def test_a_worker_with_a_candidate_that_triton_was_told_to_load(
    publish: bool, built: Path, redis: RedisServer, tmp_path: Path
) -> None:
    if not triton_installed():
        pytest.skip("no Triton: run `python -m deploy.local.triton_server setup`")
    folder = shutil.copytree(built, tmp_path / "repository")
    with TritonServer(folder) as server:
        settings = settings_of(redis, folder, "triton", server.grpc_url)
        config = str(write_config(tmp_path / "trifid.toml", settings, redis))
        loaded = CliRunner().invoke(main, ["models", "load", "0.0.10", "--config", config])
        assert loaded.exit_code == 0, loaded.output
        assert ModelRepository(folder).served().model_version == "0.0.0"
        candidate = CandidateSettings(version="0.0.10", share=1.0, publish=publish)
        with whole_worker(settings.model_copy(update={"candidate": candidate})) as service:
            process = service._prepare()
            compared = Counted()
            wait_until(lambda: {a.model_version for a in process(MESSAGES).annotations} == {NEW if publish else OLD}
                       and compared.now() > 0)  # fmt: skip
            scored = [a for a in process(MESSAGES).annotations if a.reference_set_version is not None]
            assert {a.reference_set_version for a in scored} == {"0.0.10" if publish else "0.0.0"}


class Counted:
    """Objects that were compared since this was made."""

    def __init__(self) -> None:
        self._before = self._sum()

    def now(self) -> float:
        return self._sum() - self._before

    def _sum(self) -> float:
        return REGISTRY.get_sample_value("trifid_candidate_divergence_count") or 0.0
