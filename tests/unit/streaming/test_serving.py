"""A worker's change from one version of the model to another, with engines that fail at the worst moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import Settings
from broker.errors import DependencyUnavailableError
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
