"""The way through, with the trained model: every message is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from broker.anomaly.reference_set import ReferenceSet
from broker.batch import IncomingMessage, Origin
from broker.build import REFERENCE_SET_FILE
from broker.errors import DependencyUnavailableError
from broker.inference.onnx import OnnxEngine
from broker.pipeline import Pipeline
from broker.records import Alert, ObjectState
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import MODEL_REPO

PACKETS = [a.payload for a in simulate_alerts(10, 40, seed=2)]


def message(payload: bytes, offset: int = 0) -> IncomingMessage:
    return IncomingMessage(payload, 61000.0, Origin("alerts", 0, offset, 0))


class PoisonedStore(MemoryStore):
    """Fails on one object, as an unforeseen error in any stage would."""

    def __init__(self, poison: str) -> None:
        super().__init__()
        self.poison = poison

    def remember(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        if any(alert.object_id == self.poison for alert in alerts):
            raise ZeroDivisionError("poison")
        return super().remember(alerts)


class AwayStore(MemoryStore):
    def remember(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        raise DependencyUnavailableError("away")


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(MODEL_REPO)
    yield engine
    engine.close()


def pipeline(engine: OnnxEngine, store: MemoryStore) -> Pipeline:
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    return Pipeline(Decoder(), store, engine, engine.manifest, reference)


def test_each_alert_is_annotated_and_each_bad_message_a_dead_letter(engine: OnnxEngine) -> None:
    messages = [message(p, i) for i, p in enumerate([*PACKETS, b"nonsense", b""])]
    result = pipeline(engine, MemoryStore()).process(messages)
    assert result.alerts_in == {"ztf": len(PACKETS), "unknown": 2}
    assert len(result.annotations) == len(PACKETS)
    assert [letter.message.payload for letter in result.dead_letters] == [b"nonsense", b""]
    for annotation in result.annotations:
        assert sum(annotation.probabilities) == pytest.approx(1, abs=1e-9)
        if annotation.reason is None:
            assert annotation.best_class in annotation.prediction_set
            assert annotation.anomaly_score is not None
            assert 0 <= annotation.anomaly_score <= 1
        else:
            assert annotation.class_names == ("NotClassified",)
            assert str(annotation.detections) in annotation.reason


def test_what_is_known_grows_with_each_alert(engine: OnnxEngine) -> None:
    annotations = pipeline(engine, MemoryStore()).process([message(p) for p in PACKETS]).annotations
    for name in {a.object_id for a in annotations}:
        detections = [a.detections for a in annotations if a.object_id == name]
        assert detections == sorted(detections)
    assert max(a.detections for a in annotations) > 20


def test_the_size_of_batches_does_not_matter(engine: OnnxEngine) -> None:
    whole = pipeline(engine, MemoryStore()).process([message(p) for p in PACKETS]).annotations
    one = pipeline(engine, MemoryStore())
    single = [a for p in PACKETS for a in one.process([message(p)]).annotations]
    assert [a.alert_id for a in whole] == [a.alert_id for a in single]
    for first, second in zip(whole, single, strict=True):
        assert first.detections == second.detections
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-3)


def test_one_poisonous_alert_is_a_dead_letter_and_the_others_go_on(engine: OnnxEngine) -> None:
    decoded = [Decoder().decode(p)[0] for p in PACKETS]
    poison = decoded[len(decoded) // 2].object_id
    result = pipeline(engine, PoisonedStore(poison)).process([message(p) for p in PACKETS])
    assert {letter.alert_id for letter in result.dead_letters} == {a.alert_id for a in decoded if a.object_id == poison}
    assert all("ZeroDivisionError: poison in remember" in letter.reason for letter in result.dead_letters)
    assert len(result.annotations) + len(result.dead_letters) == len(PACKETS)


def test_a_dependency_that_is_away_is_no_fault_of_the_alerts(engine: OnnxEngine) -> None:
    with pytest.raises(DependencyUnavailableError):
        pipeline(engine, AwayStore()).process([message(PACKETS[0])])
