"""Scores of the rows of evaluate-live, by hand, and baselines on made-up stars."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from broker.errors import ConfigurationError
from broker.records import LightCurve, ObjectState
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from tests.random_models import build_random_repository
from training.datasets.multiband import LabelledObjects
from training.live import accuracy, baselines
from training.live.baselines import packet_forest
from training.live.both import StarScore, both_markdown, stars_with_both
from training.live.output import Origin, markdown, save
from training.live.rows import CLASSES_THEMSELVES, EW_OR_EB, Row, live_rows, one_band_tests
from training.live.scores import (
    Answers,
    CrossValidated,
    LiveScore,
    Once,
    binomial_error,
    calibrated_errors,
    live_score,
)


def objects(labels: list[str]) -> LabelledObjects:
    states = [ObjectState(f"s{i}", 10.0, 0.0, LightCurve.empty()) for i in range(len(labels))]
    none = np.full(len(labels), None, object)
    return LabelledObjects("made up", states, np.array(labels, object), none, none)


def answers(leading: list[tuple[str, float] | None]) -> Answers:
    """Each with the rest of the probability on M, or NotClassified."""
    probabilities = np.zeros((len(leading), 10))
    for row, said in enumerate(leading):
        if said:
            probabilities[row, CLASS_INDEX["M"]] = 1 - said[1]
            probabilities[row, CLASS_INDEX[said[0]]] += said[1]
    size = len(leading)
    nan = np.full(size, np.nan)
    return Answers(probabilities, probabilities > 0.5, np.full(size, 7, np.int32), nan, nan, nan > 0, probabilities)


def test_the_model_is_asked_once_for_an_object_in_one_state() -> None:
    asked: list[list[str]] = []

    def classify(own: LabelledObjects) -> Answers:
        asked.append([state.object_id for state in own.states])
        return answers(
            [(str(label), 0.6 + 0.01 * int(s.object_id[1:])) for label, s in zip(own.label, own.states, strict=True)]
        )

    first = objects(["EW", "EA", "SR", "EW"])
    once = Once(classify)
    once(first.take([2, 0]))
    point = LightCurve(*(np.ones(1, getattr(first.states[0].light_curve, f.name).dtype) for f in fields(LightCurve)))
    changed = replace(first, states=[*first.states[:3], replace(first.states[3], light_curve=point)])
    said = once(first)
    longer = once(changed.take([3, 2, 2]))
    assert asked == [["s2", "s0"], ["s1", "s3"], ["s3"]]
    assert said.probabilities.max(axis=1).tolist() == pytest.approx([0.6, 0.61, 0.62, 0.63])
    assert said.probabilities.argmax(axis=1).tolist() == [CLASS_INDEX[name] for name in ("EW", "EA", "SR", "EW")]
    assert longer.probabilities.max(axis=1).tolist() == pytest.approx([0.63, 0.62, 0.62])


def test_folds_of_another_training_are_refused(tmp_path: Path) -> None:
    published = build_random_repository(tmp_path / "published", 3)
    folds = tmp_path / "folds"
    for k, version in enumerate(("0.0.3-fold0", "0.0.3-fold1")):
        path = build_random_repository(folds / str(k), k) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_version": version}))
    (folds / "folds.json").write_text(json.dumps({"a": 0, "b": 1}))
    assert CrossValidated(published, folds).version == "0.0.3"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_version": "0.0.2-fold1"}))
    with pytest.raises(ConfigurationError, match=r"folds/1 has model 0\.0\.2-fold1, not 0\.0\.3-fold1"):
        CrossValidated(published, folds)


GROUPS = {EW_OR_EB: ("EW", "EB"), **{n: (n,) for n in CLASS_NAMES if n not in ("EW", "EB")}}


def test_ew_and_eb_together() -> None:
    said = answers([("EW", 0.9), ("EB", 0.8), ("ROT", 0.7), None, ("EW", 0.45)])
    score = live_score("EW", objects([EW_OR_EB] * 5), said, GROUPS)
    assert score.accuracy == pytest.approx(2 / 5)  # of the last M has 0.55
    assert score.coverage == pytest.approx(2 / 5)
    assert score.taken_for == {EW_OR_EB: {EW_OR_EB: 2, "ROT": 1, "NotClassified": 1, "M": 1}}
    assert "- EW, EW or EB: EW or EB 2, " in markdown([score])


def test_standard_error() -> None:
    # Agresti and Coull: (40 + 2) / (50 + 4) = 0.778 -> sqrt(0.778 * 0.222 / 54)
    assert binomial_error(0.8, 50) == pytest.approx(0.05658, abs=1e-4)
    assert binomial_error(1.0, 30) > 0.03


def test_what_a_calibrated_model_would_show() -> None:
    """One bin: the error is |sum of right - n p| / n, in the mean sqrt(2 p (1 - p) / (pi n)) for large n."""
    probabilities = np.zeros((900, 2))
    probabilities[:, 0], probabilities[:, 1] = 0.75, 0.25
    mean, high = calibrated_errors(probabilities, 10, draws=4000)
    deviation = np.sqrt(0.75 * 0.25 / 900)
    assert mean == pytest.approx(deviation * np.sqrt(2 / np.pi), rel=0.05)
    assert high == pytest.approx(1.96 * deviation, rel=0.07)
    few, _ = calibrated_errors(probabilities[:25], 10, draws=4000)
    assert few > 5 * mean
    certain = np.zeros((10, 2))
    certain[:, 0] = 1.0
    assert calibrated_errors(certain, 10) == (0.0, 0.0)


def test_accuracy_of_a_baseline() -> None:
    row = Row("EW", objects([EW_OR_EB] * 3), GROUPS)
    probabilities = np.zeros((3, 10))
    probabilities[0, [CLASS_INDEX["EW"], CLASS_INDEX["EB"], CLASS_INDEX["ROT"]]] = 0.3, 0.3, 0.4
    probabilities[1, CLASS_INDEX["ROT"]] = 1.0
    assert accuracy(row, probabilities) == pytest.approx(1 / 3)  # the third is not classified
    assert accuracy(Row("EW", objects(["EW"]), CLASSES_THEMSELVES), np.zeros((1, 10))) == 0.0


class CountingForest:
    """Takes everything for the first label that it was fitted with; ``fitted`` has the labels of each."""

    fitted: ClassVar[list[list[str]]] = []

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def fit(self, _values: np.ndarray, label: np.ndarray) -> CountingForest:
        self.fitted.append(label.tolist())
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        return np.full(len(values), self.fitted[-1][0])


def test_the_packet_forest_learns_from_the_stars_that_the_model_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingForest, "fitted", [])
    monkeypatch.setattr(baselines, "RandomForestClassifier", CountingForest)
    stars = objects(["EW", "EA", "SR", "M", "EA"])
    right = packet_forest(stars, fold_of_star={"s0": 0, "s1": 0, "s2": 1, "s3": 2})
    # s4 is kept back: of the first forest, which has all that are in a fold; then folds 0, 1 and 2 are left out.
    assert CountingForest.fitted == [["EW", "EA", "SR", "M"], ["SR", "M"], ["EW", "EA", "M"], ["EW", "EA", "SR"]]
    assert right == dict.fromkeys(["s0", "s1", "s2", "s3", "s4"], False)
    CountingForest.fitted.clear()
    packet_forest(objects(["EW", "EW", "EA", "EA"]), folds=2)
    assert [sorted(labels) for labels in CountingForest.fitted] == [["EA", "EW"]] * 2


def test_what_is_written(tmp_path: Path) -> None:
    score = live_score("row", objects(["EW", "M"]), answers([("EW", 0.9), ("EW", 0.6)]), CLASSES_THEMSELVES)
    score.baselines.update({"light-curve forest": 0.5, "Informer": None})
    star = StarScore("VX Her", "RRAB", True, 200, "both", 3, 3, 1.0, 1.0, {"RRAB": 0.97})
    first = {"set": [live_score("5", objects(["EW"]), answers([("EW", 0.9)]), CLASSES_THEMSELVES)]}
    origin = Origin("2026.11.29.1", "python -m training evaluate-live", "0.1.0 (abc)")
    save([score], first, [star], [], origin, tmp_path)
    text = (tmp_path / "live.md").read_text()
    assert text.startswith("Model 2026.11.29.1, code 0.1.0 (abc): `python -m training evaluate-live`\n")
    error = binomial_error(0.5, 2)
    assert f"| row | 2 | 7 | 0.500 ± {error:.3f} | - | 0.500 | - |" in text
    assert "| VX Her | RRAB | yes | 200 | both | 3 | 3 | 1.00 | 1.00 | RRAB 0.97 |" in text
    stored = json.loads((tmp_path / "live.json").read_text())
    assert stored["model_version"] == "2026.11.29.1"
    assert stored["classes"][0]["baselines"] == {"light-curve forest": 0.5, "Informer": None}
    assert stored["first_detections"]["set"][0]["accuracy"] == 1.0
    assert stored["light_curve_and_spectrum"][0]["star"] == "VX Her"
    assert (tmp_path / "live.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_of_the_archives(shared: Path) -> None:
    """No disputed star is scored, but in the rows that say so; Catalina's EW have a row."""
    rows = {row.name: row.objects for row in one_band_tests(shared / "data")}
    new, old = rows["ASAS, one band, held-out stars"], rows["ASAS, one band, and those whose label VSX disputes"]
    assert "disputed" not in new.quality
    assert {s.object_id for s in new.states} < {s.object_id for s in old.states}
    assert (len(new), len(old)) == (1650, 1712)
    coarse = rows["Catalina's EW, as EW or EB, one band, held-out stars"]
    assert len(coarse) > 1000
    assert set(coarse.label) == {EW_OR_EB}
    assert "ASAS's EW, as EW or EB, one band, held-out stars" in rows
    assert len(rows["ASAS's EW, as EW or EB, one band, held-out stars"]) == 0


def test_no_empty_row(tmp_path: Path) -> None:
    (tmp_path / "multiband").mkdir()
    assert live_rows(tmp_path) == []


def test_stars_with_both(shared: Path) -> None:
    if not (shared / "data" / "multiband" / "spectra_rrlyrae_mcdonald.parquet").exists():
        pytest.skip("no spectra of McDonald Observatory")
    asked: list[tuple[int, int]] = []

    def classify(own: LabelledObjects) -> Answers:
        asked.append((sum(len(s.light_curve) > 0 for s in own.states), sum(s.spectrum is not None for s in own.states)))
        return answers([("RRAB", 0.9)] * len(own))

    scores = stars_with_both(classify, shared / "data")
    total = scores.pop()
    assert [s.star for s in scores[::3]] == ["AV Peg", "RR Leo", "RU Psc", "T Sex", "V445 O", "VX Her"]
    assert [s.cases for s in scores[1::3]] == [9, 8, 22, 6, 2, 26]
    assert asked[:3] == [(1, 0), (0, 9), (9, 9)]
    # Of RU Psc and T Sex the label is RRC.
    assert [s.right for s in scores[::3]] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert {s.parent_right for s in scores} == {1.0}
    assert [s.seen for s in scores[::3]] == [True, True, True, False, True, True]
    assert asked[-1] == (0, 163)  # six more spectra have neither label nor place
    assert (total.star, total.modalities, total.cases, total.classified) == ("all 18 stars", "spectrum", 163, 163)
    assert (total.right, total.parent_right) == (1.0, 1.0)
    assert both_markdown([]) == ""


def test_the_parent_of_all_spectra_is_that_of_the_largest_sum(shared: Path) -> None:
    """RRAB and RRC together exceed EA: the parent is right though the leading class is not."""
    if not (shared / "data" / "multiband" / "spectra_rrlyrae_mcdonald.parquet").exists():
        pytest.skip("no spectra of McDonald Observatory")

    def classify(own: LabelledObjects) -> Answers:
        given = answers([("EA", 0.4)] * len(own))
        given.probabilities[:] = 0.0
        given.probabilities[:, CLASS_INDEX["EA"]] = 0.4
        given.probabilities[: len(own) // 2, [CLASS_INDEX["RRAB"], CLASS_INDEX["RRC"]]] = 0.3
        return given

    total = stars_with_both(classify, shared / "data")[-1]
    assert (total.right, total.parent_right) == (0.0, pytest.approx(81 / 163))


def test_scores_are_json() -> None:
    score = live_score("row", objects(["EW"]), answers([("EW", 0.9)]), CLASSES_THEMSELVES)
    assert isinstance(score, LiveScore)
    assert score.class_counts == {"EW": 1}
