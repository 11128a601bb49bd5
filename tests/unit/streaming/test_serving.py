"""A worker's change from one version of the model to another, with engines that fail at the worst moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from broker.config import Settings
from broker.errors import DependencyUnavailableError
from broker.models.leases import Leases
from broker.streaming import serving
from broker.streaming.serving import Model, Serving


class Engine:
    """One version, with what it was asked."""

    def __init__(self, version: str) -> None:
        self.model_version, self.closed, self.fails = version, False, False

    def device(self) -> str:
        if self.fails:
            raise DependencyUnavailableError("Triton is unavailable")
        return "cpu"

    def close(self) -> None:
        self.closed = True


def pipeline(engine: Any, *_: object) -> Any:
    return SimpleNamespace(process_next=lambda _: engine.model_version if not engine.closed else "closed")


def model(version: str) -> Model:
    reference: Any = SimpleNamespace(version="1", base=None)
    engine: Any = Engine(version)
    return Model(engine, reference, None)


def test_where_a_promoted_version_fails_as_it_is_taken_the_one_before_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipeline was in use before its server was asked: it was then closed, and answered the alerts."""
    first, second = model("A"), model("B")
    monkeypatch.setattr(serving, "build_engine", lambda *_, **__: first.engine)
    monkeypatch.setattr(serving, "build_keeper", lambda *_: None)
    notes: list[str | None] = []
    worker = Serving(Settings(), pipeline, lambda _: None, notes.append)
    worker._use(first)
    second.engine.fails = True  # type: ignore[union-attr]
    worker._next = second
    assert worker.process([]) == "A"  # type: ignore[comparison-overlap]
    assert (first.engine.closed, second.engine.closed) == (False, True)  # type: ignore[union-attr]
    assert notes[-1] is not None
    assert "B with reference set 1 was promoted and cannot be used, A goes on" in notes[-1]
    third = model("C")
    worker._next = third
    assert worker.process([]) == "C"  # type: ignore[comparison-overlap]
    assert notes[-1] is None


def test_workers_that_could_not_load_the_same_set_do_not_try_again_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All see a promotion within two seconds, and would all come back to the same Redis together, each time."""
    pauses: list[float] = []

    def jittered(seconds: float) -> float:
        pauses.append(seconds)
        return -1.0

    def unreadable(*_: object) -> None:
        raise ValueError("not a set")

    only = model("A")
    monkeypatch.setattr(serving, "build_engine", lambda *_, **__: only.engine)
    monkeypatch.setattr(serving, "build_keeper", lambda *_: None)
    monkeypatch.setattr(serving, "jittered", jittered)
    monkeypatch.setattr(serving, "Versions", unreadable)
    worker = Serving(Settings(), pipeline, lambda _: None, lambda _: None)
    worker._use(only)
    for _ in range(7):
        worker._look_for_reference()
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]


class Served:
    """A worker that runs version A, and a repository of which ``promoted`` was promoted as often as ``times`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.promoted, self.times = "A", 1
        self.made: list[Any] = []
        self.build_fails = False
        self.shared = ""
        """Of which version what all pipelines share is, such as people's answers."""

        def build(*arguments: Any, **_: object) -> Any:
            if self.build_fails:
                raise DependencyUnavailableError("Triton is unavailable")
            engine = Engine(arguments[2] or "A")
            engine.manifest = manifest(engine.model_version)  # type: ignore[attr-defined]
            engine.check = lambda: None  # type: ignore[attr-defined]
            engine.embedding_width = lambda: 512  # type: ignore[attr-defined]
            self.made.append(engine)
            return engine

        def manifest(version: str) -> Any:
            return SimpleNamespace(model_version=version, identity=version, sha256="", reference_set_sha256="")

        def make(engine: Any, *_: object) -> Any:
            self.shared = engine.model_version
            return pipeline(engine)

        monkeypatch.setattr(serving, "build_engine", build)
        monkeypatch.setattr(serving, "build_keeper", lambda *_: None)
        monkeypatch.setattr(serving, "jittered", lambda _: -1.0)
        monkeypatch.setattr(serving, "fingerprint", lambda _: (self.times, 0, 0))
        monkeypatch.setattr(serving, "load_manifest", lambda *_, **__: manifest(self.promoted))
        monkeypatch.setattr(Leases, "hold", lambda *_: None)
        monkeypatch.setattr(Leases, "release", lambda *_: None)
        monkeypatch.setattr(Serving, "_reference", lambda own, *_, **__: self.reference("1"))
        self.notes: list[str | None] = []
        self.worker = Serving(Settings(), make, lambda _: None, self.notes.append)
        self.worker._use(Model(self.worker._engine, self.reference("1"), None))

    @staticmethod
    def reference(version: str) -> Any:
        return SimpleNamespace(version=version, base=None, check_model=lambda *_: None)

    def process(self) -> str:
        return str(self.worker.process([]))


def test_a_version_whose_server_was_away_as_it_was_taken_is_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counted as seen, so that the worker stayed with the version before until another one was promoted."""
    served = Served(monkeypatch)
    served.promoted, served.times = "B", 2
    served.worker._look_for_version()
    served.made[-1].fails = True
    assert served.process() == "A"
    assert served.shared == "A"  # people's answers would have been those of B
    served.worker._look_for_version()
    assert served.process() == served.shared == "B"
    assert served.notes[-1] is None
    served.worker._look_for_version()
    assert served.worker._next is None


@pytest.mark.parametrize("build_fails", [False, True])
def test_a_reference_set_that_waits_is_not_lost_by_another_look_at_the_manifest(
    monkeypatch: pytest.MonkeyPatch, build_fails: bool
) -> None:
    """Between two batches: a version that was promoted and rolled back, or cannot be loaded, took it away for good."""
    served = Served(monkeypatch)
    served.worker._next = Model(served.worker._engine, served.reference("2"), None)
    served.promoted, served.times, served.build_fails = "B" if build_fails else "A", 2, build_fails
    served.worker._look_for_version()
    assert served.worker._next is not None
    assert served.worker._next.name == "A with reference set 2"


def test_a_reference_set_that_gave_way_to_a_version_that_was_refused_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served(monkeypatch)
    served.worker._set_seen["A"] = b"2"
    served.worker._next = Model(served.worker._engine, served.reference("2"), None)
    served.promoted, served.times = "B", 2
    served.worker._look_for_version()
    served.made[-1].fails = True
    assert served.process() == "A"
    monkeypatch.setattr(serving, "Versions", lambda *_: SimpleNamespace(signature=lambda: b"2"))
    served.worker._look_for_reference()
    assert served.worker._next is not None
    assert served.worker._next.engine is served.worker._engine


def test_a_reference_set_that_could_not_be_taken_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch)
    monkeypatch.setattr(serving, "Versions", lambda *_: SimpleNamespace(signature=lambda: b"2"))
    served.worker._set_seen["A"] = b"2"
    served.worker._next = Model(served.worker._engine, served.reference("2"), None)
    served.made[0].fails = True
    assert served.process() == "A"
    served.made[0].fails = False
    served.worker._look_for_reference()
    assert served.worker._next is not None


def test_leases_that_redis_refuses_do_not_end_the_thread_that_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is also the one that follows promotions."""
    leases = Leases("redis://127.0.0.1:1", "worker", lambda: 1e6)
    leases._held["user"] = "A"

    def refuse(*_: object) -> None:
        raise redis.ResponseError("ERR unknown command")

    monkeypatch.setattr(leases._redis, "execute", refuse)
    leases.renew()
    leases.release("user")
