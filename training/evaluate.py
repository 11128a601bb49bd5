"""Scores on held-out stars, as tables and JSON; the figures are in ``training.figures``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score

from broker.inference.manifest import CALIBRATION_BINS, set_members
from broker.taxonomy import CLASS_NAMES
from training.calibrate import (
    Encoded,
    conformal_thresholds,
    encode_rows,
    expected_calibration_error,
    fit_temperatures,
    probabilities,
    usable,
)
from training.data import TrainingSet
from training.encoders.trimodal import SUBSETS, Trimodal, subset_name

TEST_SETS: dict[str, str] = {"asas": "ASAS", "css": "Catalina"}
"""Names of the test sets, by survey."""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one subset of the modalities on one set of objects."""

    test_set: str
    modalities: str
    objects: int
    accuracy: float
    macro_f1: float
    expected_calibration_error: float
    coverage: float
    """Share of objects whose true class is in the prediction set."""
    set_size: float
    """Mean number of classes in the prediction set."""
    recall: dict[str, float]
    class_counts: dict[str, int]


def score_probabilities(
    test_set: str,
    modalities: str,
    predicted: NDArray[np.float64],
    label: NDArray[np.int64],
    threshold: float | NDArray[np.float64],
) -> Score:
    """Scores of calibrated probabilities (n, 10) against labels (n,); ``threshold`` is one for all or (n,).

    Prediction sets are made as the service makes them: the leading class is always in its set.
    """
    best = predicted.argmax(axis=1)
    present = np.unique(label)
    recall = recall_score(label, best, labels=present, average=None, zero_division=0.0)
    _, in_set = set_members(predicted, np.broadcast_to(threshold, len(label)))
    return Score(
        test_set=test_set,
        modalities=modalities,
        objects=len(label),
        accuracy=float(np.mean(best == label)),
        macro_f1=float(f1_score(label, best, labels=present, average="macro", zero_division=0.0)),
        expected_calibration_error=expected_calibration_error(predicted, label),
        coverage=float(np.mean(in_set[np.arange(len(label)), label])),
        set_size=float(in_set.sum(axis=1).mean()),
        recall={CLASS_NAMES[c]: float(r) for c, r in zip(present, recall, strict=True)},
        class_counts={CLASS_NAMES[c]: int(np.sum(label == c)) for c in present},
    )


def score_subsets(
    model: Trimodal, encoded: Encoded, label: NDArray[np.int64], thresholds: dict[str, tuple[float, ...]], test_set: str
) -> list[Score]:
    """One Score for each subset of the modalities, over the objects that have all of that subset."""
    scores = []
    for subset in SUBSETS:
        chosen = usable(encoded, subset)
        if not chosen.any():
            continue
        name = subset_name(subset)
        predicted = probabilities(model.classifier, encoded, subset)[chosen]
        number = np.searchsorted(CALIBRATION_BINS[1:], encoded.detections[chosen], side="right")
        scores.append(score_probabilities(test_set, name, predicted, label[chosen], np.array(thresholds[name])[number]))
    return scores


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What ``calibrate_and_score`` finds."""

    scores: list[Score]
    temperatures: dict[str, tuple[float, ...]]
    thresholds: dict[str, tuple[float, ...]]
    encoded: dict[str, Encoded]
    """The encoded rows of each test set."""


def calibrate_and_score(
    model: Trimodal, data: TrainingSet, validation_rows: NDArray[np.intp], test_rows: Mapping[str, NDArray[np.intp]]
) -> Evaluation:
    """Set the model's temperatures on validation stars, then score every subset of the modalities on each test set.

    All rows must have a label. Where no object of ``data`` has a spectrum, none is encoded.
    """
    spectra = bool(data.spectrum_present.any())
    validation = encode_rows(model, data, validation_rows, spectra=spectra)
    label = data.labels.index[validation_rows]
    temperatures = fit_temperatures(model, validation, label)
    thresholds = conformal_thresholds(model, validation, label)
    encoded = {name: encode_rows(model, data, rows, spectra=spectra) for name, rows in test_rows.items()}
    scores: list[Score] = []
    for name, test in encoded.items():
        scores += score_subsets(model, test, data.labels.index[test.rows], thresholds, name)
    return Evaluation(scores, temperatures, thresholds, encoded)


def markdown(scores: list[Score]) -> str:
    """The scores as Markdown: one table over subsets, one of recall by class."""
    lines = [
        "| test set | modalities | objects | accuracy | macro-F1 | ECE | 90 % set: coverage | mean size |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.test_set} | {s.modalities} | {s.objects} | {s.accuracy:.3f} | {s.macro_f1:.3f} "
        f"| {s.expected_calibration_error:.3f} | {s.coverage:.3f} | {s.set_size:.2f} |"
        for s in scores
    ]
    lines += [
        "",
        "Recall by class (number of objects):",
        "",
        "| test set | modalities | " + " | ".join(CLASS_NAMES) + " |",
        "|---|---|" + "---:|" * len(CLASS_NAMES),
    ]
    for s in scores:
        cells = [f"{s.recall[c]:.2f} ({s.class_counts[c]})" if c in s.recall else "-" for c in CLASS_NAMES]
        lines.append(f"| {s.test_set} | {s.modalities} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save(scores: list[Score], folder: Path, preface: str, appendix: str = "") -> None:
    """Write ``evaluation.md`` (preface, tables, and ``appendix`` if any) and ``evaluation.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [preface + "\n", markdown(scores), appendix]
    (folder / "evaluation.md").write_text("\n".join(part for part in parts if part))
    (folder / "evaluation.json").write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
