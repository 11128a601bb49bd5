"""The way through, with the trained model: every message is accounted for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fastavro
import numpy as np
import pytest

from broker.anomaly.calibration import with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.assemble.inputs import ModelInputs
from broker.batch import SPECTRA, IncomingMessage, Origin
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.feedback.learned import Learned
from broker.feedback.learner import Correction, learn
from broker.inference import Begun
from broker.inference.onnx import OnnxEngine
from broker.metrics import POINTS_LEFT_OUT
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import Alert, Annotation, ObjectState, ObservedSpectrum, Spectrum
from broker.spectra.message import write
from broker.state.memory import MemoryStore
from broker.streaming.accounting import Accounting
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import MODEL_REPO, build_random_repository
from tests.unit.surveys.test_decoder import RECORD, SCHEMA, container

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
PACKETS = [a.payload for a in simulate_alerts(10, 40, seed=2)]


def message(payload: bytes, offset: int = 0) -> IncomingMessage:
    return IncomingMessage(payload, 61000.0, Origin("alerts", 0, offset, 0))


class PoisonedStore(MemoryStore):
    """Fails on one object, as an unforeseen error in any stage would."""

    def __init__(self, poison: str) -> None:
        super().__init__()
        self.poison = poison

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        if any(alert.object_id == self.poison for alert in alerts):
            raise ZeroDivisionError("poison")
        return super().update(alerts)


class AwayStore(MemoryStore):
    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        raise DependencyUnavailableError("away")


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(MODEL_REPO)
    yield engine
    engine.close()


def pipeline(engine: OnnxEngine, store: MemoryStore, growth: float = 0.2) -> Pipeline:
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    return Pipeline(Decoder(), store, engine, engine.manifest, reference, period_search_growth=growth)


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


def test_a_reference_set_of_another_model_is_refused(engine: OnnxEngine, tmp_path: Path) -> None:
    other = ReferenceSet.load_npz(build_random_repository(tmp_path) / REFERENCE_SET_FILE)
    with pytest.raises(ConfigurationError, match=r"was made with the model trifid-random 0\.0\.0, the service runs"):
        Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, other)


def test_what_is_known_grows_with_each_alert(engine: OnnxEngine) -> None:
    annotations = pipeline(engine, MemoryStore()).process([message(p) for p in PACKETS]).annotations
    for name in {a.object_id for a in annotations}:
        detections = [a.detections for a in annotations if a.object_id == name]
        assert detections == sorted(detections)
    assert max(a.detections for a in annotations) > 20


def test_the_size_of_batches_does_not_matter(engine: OnnxEngine) -> None:
    """Where each alert has a full period search: else those of one batch do not have each other's yet."""
    whole = pipeline(engine, MemoryStore(), growth=0.0).process([message(p) for p in PACKETS]).annotations
    one = pipeline(engine, MemoryStore(), growth=0.0)
    single = [a for p in PACKETS for a in one.process([message(p)]).annotations]
    assert [a.alert_id for a in whole] == [a.alert_id for a in single]
    for first, second in zip(whole, single, strict=True):
        assert first.detections == second.detections
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-3)


class WatchedEngine:
    """An engine that remembers how many objects it was given at a time."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine, self.sizes = engine, list[int]()

    def begin(self, inputs: ModelInputs) -> Begun:
        self.sizes.append(len(inputs))
        return self.engine.begin(inputs)

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


def many_in_one(payloads: Sequence[bytes]) -> bytes:
    """One container of the records of several."""
    records = [record for payload in payloads for record in fastavro.reader(io.BytesIO(payload))]
    out = io.BytesIO()
    fastavro.writer(out, fastavro.reader(io.BytesIO(payloads[0])).writer_schema, records, codec="deflate")
    return out.getvalue()


def test_a_message_is_never_bigger_than_a_batch(engine: OnnxEngine) -> None:
    """Messages of 100, 3, 3 and 2 alerts, and one that is none, in batches of 8."""
    watched, steps = WatchedEngine(engine), list[int]()
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    line = Pipeline(
        Decoder(), MemoryStore(), watched, engine.manifest, reference,
        batch_size=8, progress=lambda: steps.append(len(watched.sizes)),
    )  # fmt: skip
    parts = [PACKETS[:100], PACKETS[100:103], PACKETS[103:106], PACKETS[106:108]]
    messages = [message(many_in_one(part), number) for number, part in enumerate(parts)]
    messages.insert(2, message(b"nonsense", 9))
    results = list(line.batches(messages))
    assert [result.messages for result in results] == [1, 4]
    assert [result.alerts_in for result in results] == [{"ztf": 100}, {"ztf": 8, "unknown": 1}]
    assert watched.sizes == [8] * 12 + [4] + [8]
    assert steps == list(range(1, 15))
    sliced = [annotation for result in results for annotation in result.annotations]
    whole = pipeline(engine, MemoryStore()).process([message(p) for p in PACKETS[:108]]).annotations
    assert [a.alert_id for a in sliced] == [a.alert_id for a in whole]
    assert [a.detections for a in sliced] == [a.detections for a in whole]


def test_a_message_of_too_many_alerts_is_one_dead_letter(engine: OnnxEngine) -> None:
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    line = Pipeline(Decoder(max_alerts=10), MemoryStore(), engine, engine.manifest, reference)
    result = line.process([message(many_in_one(PACKETS[:11]), 7), message(many_in_one(PACKETS[:10]), 8)])
    assert result.alerts_in == {"unknown": 1, "ztf": 10}
    assert len(result.annotations) == 10
    (letter,) = result.dead_letters
    assert letter.message.origin == Origin("alerts", 0, 7, 0)
    assert letter.reason == "the message says that it has 11 records; pipeline.max_message_alerts allows 10"


def test_of_many_alerts_in_a_message_only_those_that_cannot_be_used_are_dead_letters(engine: OnnxEngine) -> None:
    record = {**RECORD, "prv_candidates": None}
    records = [{**record, "objectId": f"ZTF18aaaaaa{c}", "candid": n} for n, c in enumerate("abcde")]
    records[1] = {**records[1], "candidate": {**record["candidate"], "fid": 9}}
    records[3] = {**records[3], "objectId": ""}
    result = pipeline(engine, MemoryStore()).process([message(container(SCHEMA, records)), message(PACKETS[0])])
    assert [a.object_id for a in result.annotations][:3] == ["ZTF18aaaaaaa", "ZTF18aaaaaac", "ZTF18aaaaaae"]
    assert [letter.reason for letter in result.dead_letters] == [
        "fid 9 is no filter of ZTF", "the packet has an empty objectId",
    ]  # fmt: skip
    assert result.alerts_in == {"ztf": 4, "unknown": 2}
    # Of which none can be used: each is counted.
    none = pipeline(engine, MemoryStore()).process([message(container(SCHEMA, [records[1], records[3]]))])
    assert none.annotations == []
    assert none.alerts_in == {"unknown": 2}
    assert len(none.dead_letters) == 2


def test_one_poisonous_alert_is_a_dead_letter_and_the_others_go_on(engine: OnnxEngine) -> None:
    decoded = [Decoder().decode(p)[0] for p in PACKETS]
    poison = decoded[len(decoded) // 2].object_id
    result = pipeline(engine, PoisonedStore(poison)).process([message(p) for p in PACKETS])
    assert {letter.alert_id for letter in result.dead_letters} == {a.alert_id for a in decoded if a.object_id == poison}
    assert all("ZeroDivisionError: poison in update" in letter.reason for letter in result.dead_letters)
    assert len(result.annotations) + len(result.dead_letters) == len(PACKETS)


def test_where_the_combined_score_fails_the_class_is_published(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in what is said beside the class made a dead letter of each alert."""
    messages = [message(p, i) for i, p in enumerate(PACKETS)]
    pipe = pipeline(engine, MemoryStore())
    monkeypatch.setattr(pipe, "_scorer", object())
    result = pipe.process(messages)
    assert not result.dead_letters
    assert len(result.annotations) == len(PACKETS)
    assert {a.combined_anomaly for a in result.annotations} == {None}
    assert "no combined anomaly scores of a batch" in caplog.text


class Taught(Learned):
    """Has one correction, without a Redis."""

    def __init__(self, correction: Correction) -> None:
        self._current = correction


def test_answers_about_an_object_are_seen_in_its_annotations_and_in_no_other_models(engine: OnnxEngine) -> None:
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    reference = with_scores(reference, MODEL_REPO / REFERENCE_SET_FILE)
    messages = [message(p) for p in PACKETS]

    def annotated(correction: Correction | None) -> list[Annotation]:
        learned = None if correction is None else Taught(correction)
        line = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference, learned=learned)
        return line.process(messages).annotations

    before = annotated(None)
    row = max(range(len(before)), key=lambda i: (before[i].combined_anomaly is not None, before[i].detections))
    score = before[row].combined_anomaly
    assert score is not None
    assert (before[row].anomaly_after_answers, before[row].anomaly_answers) == (None, None)
    _, by_modality = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference).embed(
        [MemoryStore().update([Decoder().decode(PACKETS[row])[0]])[0]]
    )
    assert by_modality is not None
    one = learn(engine.model_version, reference.version, by_modality, np.array([score]), np.array([True]))
    after = annotated(one)
    changed = [b for b in after if b.anomaly_answers]
    assert changed
    for annotation in changed:
        assert annotation.anomaly_after_answers > annotation.combined_anomaly
        assert annotation.anomaly_answers == 1
        assert annotation.anomaly_explanation.endswith("; raised by 1 answer about similar objects")
    assert [b.combined_anomaly for b in after] == [a.combined_anomaly for a in before]
    for other in (replace(one, model="another 1"), replace(one, reference_version="another set")):
        assert {b.anomaly_after_answers for b in annotated(other)} == {None}
    # Of another width: nothing can be applied, and nothing else is lost.
    wrong = annotated(replace(one, vectors=one.vectors[:, :, :7]))
    assert [b.combined_anomaly for b in wrong] == [a.combined_anomaly for a in before]
    assert {b.anomaly_after_answers for b in wrong} == {None}


def test_a_dependency_that_is_away_is_no_fault_of_the_alerts(engine: OnnxEngine) -> None:
    with pytest.raises(DependencyUnavailableError):
        pipeline(engine, AwayStore()).process([message(PACKETS[0])])


def spectrum(name: str, ra: float, dec: float) -> ObservedSpectrum:
    wavelength = np.arange(3850.0, 9000.0, 2.0)
    flux = np.exp(-((wavelength - 6000) ** 2) / 2e6).astype(np.float32)
    return ObservedSpectrum(name, ra, dec, 61000.0, Spectrum(wavelength, flux, np.full(2575, 0.01, np.float32)))


def test_a_spectrum_has_its_object_classified_again(engine: OnnxEngine) -> None:
    line = pipeline(engine, MemoryStore())
    before = line.process([message(p) for p in PACKETS]).annotations
    latest = {a.object_id: a for a in before}
    star = next(a for a in latest.values() if a.reason is None)
    follow_up = write(spectrum("follow-up", star.ra, star.dec))
    elsewhere = write(spectrum("elsewhere", (star.ra + 180) % 360, -star.dec))
    result = line.process([message(follow_up), message(elsewhere), message(follow_up[:-9])])
    assert (result.spectra_in, result.spectra_stored, result.alerts_in) == (2, 2, {"unknown": 1})
    (again,) = result.annotations
    assert again.trigger == "spectrum"
    assert (again.object_id, again.alert_id, again.mjd) == (star.object_id, star.alert_id, star.mjd)
    assert set(again.modalities) == {*star.modalities, "spectrum"}
    assert (again.detections, again.real_bogus) == (star.detections, star.real_bogus)
    assert again.probabilities != star.probabilities
    (letter,) = result.dead_letters
    assert letter.message.payload == follow_up[:-9]


def test_alerts_and_the_spectrum_of_their_object_in_one_batch(engine: OnnxEngine) -> None:
    line = pipeline(engine, MemoryStore())
    first = Decoder().decode(PACKETS[0])[0]
    assert isinstance(first, Alert)
    result = line.process([message(write(spectrum("s", first.ra, first.dec))), message(PACKETS[0])])
    assert [(a.trigger, a.object_id) for a in result.annotations] == [
        ("alert", first.object_id),
        ("spectrum", first.object_id),
    ]
    assert "spectrum" in result.annotations[1].modalities


def test_a_spectrum_of_a_named_object_that_is_not_found_is_told(
    engine: OnnxEngine, caplog: pytest.LogCaptureFixture
) -> None:
    line = pipeline(engine, MemoryStore())
    named = replace(spectrum("s", 10.0, 10.0), survey="ztf", object_id="ZTF18absents")
    result = line.process([message(write(named)), message(write(spectrum("t", 11.0, 10.0)))])
    assert (result.spectra_stored, result.annotations) == (2, [])
    (told,) = [record.getMessage() for record in caplog.records if "spectrum" in record.getMessage()]
    assert "spectrum s is of ztf:ZTF18absents" in told
    assert "next alert" in told


class PoisonedSpectra(MemoryStore):
    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        if any(s.spectrum_id == "poison" for s in spectra):
            raise ZeroDivisionError("poison")
        super().put_observed(spectra)


def test_a_poisonous_spectrum_is_a_dead_letter_and_alerts_reconcile(engine: OnnxEngine) -> None:
    line = pipeline(engine, PoisonedSpectra())
    spectra = [message(write(spectrum(name, 10.0, 10.0))) for name in ("a", "poison", "b")]
    result = line.process([*spectra, message(PACKETS[0])])
    assert [letter.survey for letter in result.dead_letters] == [SPECTRA]
    accounting = Accounting()
    accounting.add(result, 4, 0)
    assert accounting.reconciled
    assert "alerts in 1 = " in str(accounting)
    assert "spectra in 3 = stored 2 + dead-lettered 1, upon which 0 objects" in str(accounting)


def test_alerts_of_the_future_are_dead_letters_and_points_left_out_are_counted_once(engine: OnnxEngine) -> None:
    line = pipeline(engine, MemoryStore())
    sent = [message(PACKETS[0], 0), replace(message(PACKETS[1], 1), received_mjd=58_000.5)]
    result = line.process([*sent, message((CASES / "19-ztf-procstatus" / "bad.avro").read_bytes(), 2)])
    (letter,) = result.dead_letters
    assert letter.message is sent[1]
    assert "is after the alert was received, the latest allowed is 58030.500" in letter.reason
    assert result.points_left_out == {("ztf", "flagged"): 23, ("ztf", "after_receipt"): 1}
    before = POINTS_LEFT_OUT.labels("ztf", "flagged")._value.get()
    accounting = Accounting()
    accounting.add(result, 3, 0)
    assert accounting.reconciled
    assert POINTS_LEFT_OUT.labels("ztf", "flagged")._value.get() == before + 23
