"""Shadow and canary: what is compared, what is published, and that neither harms the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from broker.anomaly.reference_set import ReferenceSet
from broker.assemble import ModelInputs, assemble
from broker.batch import IncomingMessage
from broker.build import build_pipeline
from broker.config import Settings
from broker.errors import DependencyUnavailableError
from broker.inference import Engine
from broker.inference.onnx import OnnxEngine
from broker.models.candidate import Candidate, Loaded, chosen, divergence
from broker.pipeline import Pipeline
from broker.records import Annotation
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import build_random_repository
from tests.waiting import wait_until

MESSAGES = [IncomingMessage(alert.payload, 60_000.0) for alert in simulate_alerts(20, 6, seed=4)]
N = len(MESSAGES)
OLD, NEW = "trifid-random 0.0.0", "trifid-random 0.0.10"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[OnnxEngine, ReferenceSet]]]:
    found = {}
    for seed, name in ((0, OLD), (10, NEW)):
        folder: Path = build_random_repository(tmp_path_factory.mktemp("models"), seed=seed)
        found[name] = OnnxEngine(folder), ReferenceSet.load_npz(folder / "reference_set.npz")
    yield found
    for engine, _ in found.values():
        engine.close()


class Failing:
    """An engine that does what is asked of it instead of an answer."""

    model_version = NEW

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def predict(self, inputs: Any) -> Any:
        self.act()
        raise AssertionError

    def close(self) -> None:
        """Nothing."""


def loaded(engines: dict[str, tuple[OnnxEngine, ReferenceSet]], engine: Any = None) -> Loaded:
    own, reference = engines[NEW]
    pipeline = build_pipeline(Settings(), Decoder(), MemoryStore(), own, reference)
    if engine is not None:
        pipeline._engine = engine
    return Loaded(_Kept(own) if engine is None else engine, pipeline.annotate_inputs)


class _Kept:
    """The module's engine, which a candidate does not close."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.model_version = engine, engine.model_version

    def predict(self, inputs: Any) -> Any:
        return self._engine.predict(inputs)

    def close(self) -> None:
        """Nothing."""


def annotations(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]], candidate: Candidate | None, served: str = OLD
) -> list[Annotation]:
    engine, reference = engines[served]
    pipeline: Pipeline = build_pipeline(Settings(), Decoder(), MemoryStore(), engine, reference, candidate=candidate)
    return pipeline.process(MESSAGES).annotations


def counts() -> dict[str, float]:
    names = ("agreed", "differed", "one_answered", "failed", "skipped")
    values = {n: REGISTRY.get_sample_value("trifid_candidate_objects_total", {"outcome": n}) or 0.0 for n in names}
    for kind in ("count", "sum"):
        values[kind] = REGISTRY.get_sample_value(f"trifid_candidate_divergence_{kind}") or 0.0
    return values


def since(before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in counts().items() if value != before[name]}


def ready(candidate: Candidate) -> Candidate:
    wait_until(lambda: candidate._loaded is not None)
    return candidate


def test_divergence_worked_by_hand() -> None:
    served = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    other = np.array([[0.2, 0.3, 0.5], [0.2, 0.0, 0.8], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    agree, distance, one = divergence(served, other)
    assert agree.tolist() == [False, True]
    np.testing.assert_allclose(distance, [0.3, 0.1], atol=1e-7)
    assert one == 2  # the fourth and the third; the fifth is classified by neither


def test_the_share_is_of_objects_and_the_same_ones_each_time() -> None:
    names = [f"ztf:ZTF18{number:07d}" for number in range(40_000)]
    quarter = chosen(names, 0.25)
    assert abs(quarter.mean() - 0.25) < 0.01  # 4.6 standard deviations of 40,000 draws
    assert quarter[chosen(names, 0.1)].all()  # who has begun as a canary stays one where the share grows
    np.testing.assert_array_equal(quarter[::-1], chosen(names[::-1], 0.25))
    assert chosen(names, 1.0).all()


def test_a_shadow_is_compared_and_nothing_of_it_is_published(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]],
) -> None:
    before = counts()
    alone = annotations(engines, None)
    with closing(ready(Candidate(lambda: loaded(engines), 1.0, publish=False))) as shadow:
        seen = annotations(engines, shadow)
        wait_until(lambda: since(before).get("count", 0) >= sum(a.classified for a in alone))
    assert [a.probabilities for a in seen] == [a.probabilities for a in alone]
    assert {a.model_version for a in seen} == {OLD}
    states = MemoryStore().update([alert for m in MESSAGES for alert in Decoder().decode(m.payload)])  # type: ignore[misc]
    inputs = assemble(states)
    p, q = (engines[name][0].predict(inputs).probabilities.astype(float) for name in (OLD, NEW))
    classified = p.any(axis=1)
    assert 20 < classified.sum() == q.any(axis=1).sum()
    agreed = int((p.argmax(axis=1) == q.argmax(axis=1))[classified].sum())
    assert 0 < agreed < classified.sum()
    found = since(before)
    assert found.pop("sum") == pytest.approx(abs(p - q).sum() / 2, rel=1e-4)
    assert found == {"agreed": agreed, "differed": classified.sum() - agreed, "count": classified.sum()}


def test_a_shadow_that_fails_rests_and_one_that_hangs_is_not_waited_for(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]],
) -> None:
    alone = [a.probabilities for a in annotations(engines, None)]

    def fail() -> None:
        raise DependencyUnavailableError("no server")

    before = counts()
    with closing(ready(Candidate(lambda: loaded(engines, Failing(fail)), 1.0, publish=False))) as shadow:
        assert [a.probabilities for a in annotations(engines, shadow)] == alone
        wait_until(lambda: since(before) == {"failed": N})
        assert [a.probabilities for a in annotations(engines, shadow)] == alone
        assert since(before) == {"failed": N, "skipped": N}

    go_on, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        go_on.wait(300)

    before = counts()
    with closing(ready(Candidate(lambda: loaded(engines, Failing(hang)), 1.0, publish=False))) as shadow:
        assert [a.probabilities for a in annotations(engines, shadow)] == alone
        began.wait(300)
        for _ in range(2):  # one waits in the queue, one is skipped
            assert [a.probabilities for a in annotations(engines, shadow)] == alone
        assert since(before) == {"skipped": N}
        go_on.set()


@pytest.mark.parametrize("publish", [False, True])
def test_an_error_on_the_way_to_a_candidate_changes_nothing(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]], publish: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("rows")

    alone = [(a.model_version, a.probabilities) for a in annotations(engines, None)]
    before = counts()
    with closing(ready(Candidate(lambda: loaded(engines), 1.0, publish=publish))) as candidate:
        monkeypatch.setattr(ModelInputs, "rows", fail)
        assert [(a.model_version, a.probabilities) for a in annotations(engines, candidate)] == alone
    assert since(before) == {"failed": N}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_canary_is_published_with_its_own_version_and_reference_set(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]], share: float
) -> None:
    of_version = {OLD: annotations(engines, None), NEW: annotations(engines, None, NEW)}
    with closing(ready(Candidate(lambda: loaded(engines), share, publish=True))) as canary:
        seen = annotations(engines, canary)
    few = chosen([f"{a.survey}:{a.object_id}" for a in seen], share)
    assert (0 < few.sum() < N) if share < 1 else few.all()
    assert any(a.classified for a in seen)
    for row, annotation in enumerate(seen):
        version = NEW if few[row] else OLD
        expected = of_version[version][row]
        assert annotation.model_version == version
        assert annotation.reference_set_version == expected.reference_set_version
        assert annotation.prediction_set == expected.prediction_set
        np.testing.assert_allclose(annotation.probabilities, expected.probabilities, atol=1e-5)


def test_where_a_canary_fails_the_served_version_is_published(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]],
) -> None:
    def fail() -> None:
        raise MemoryError

    alone, before = annotations(engines, None), counts()
    with closing(ready(Candidate(lambda: loaded(engines, Failing(fail)), 1.0, publish=True))) as canary:
        for _ in range(2):
            seen = annotations(engines, canary)
            assert [a.probabilities for a in seen] == [a.probabilities for a in alone]
            assert {a.model_version for a in seen} == {OLD}
    assert since(before) == {"failed": N, "skipped": N}


def test_a_candidate_that_cannot_be_loaded_is_skipped_and_one_that_is_served_is_left_alone(
    engines: dict[str, tuple[OnnxEngine, ReferenceSet]],
) -> None:
    asked = threading.Event()

    def no_version() -> Loaded:
        asked.set()
        raise DependencyUnavailableError("not loaded")

    before = counts()
    with closing(Candidate(no_version, 1.0, publish=True)) as candidate:
        asked.wait(300)
        assert {a.model_version for a in annotations(engines, candidate)} == {OLD}
    assert since(before) == {"skipped": N}
    with closing(ready(Candidate(lambda: loaded(engines), 1.0, publish=True))) as candidate:
        assert {a.model_version for a in annotations(engines, candidate, NEW)} == {NEW}
    assert since(before) == {"skipped": N}
