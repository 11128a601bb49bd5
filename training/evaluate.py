"""Scores on held-out stars, as a table, JSON and a figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from broker.taxonomy import CLASS_NAMES
from training.calibrate import Encoded, expected_calibration_error, probabilities, usable
from training.encoders.trimodal import SUBSETS, Trimodal, subset_name


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


def score(
    test_set: str,
    modalities: str,
    predicted: NDArray[np.float64],
    label: NDArray[np.int64],
    threshold: float,
) -> Score:
    """Scores of calibrated probabilities (n, 10) against labels (n,)."""
    best = predicted.argmax(axis=1)
    present = np.unique(label)
    recall = recall_score(label, best, labels=present, average=None, zero_division=0.0)
    in_set = predicted >= threshold
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
    model: Trimodal, encoded: Encoded, label: NDArray[np.int64], thresholds: dict[str, float], test_set: str
) -> list[Score]:
    """One Score for each subset of the modalities, over the objects that have all of that subset."""
    scores = []
    for subset in SUBSETS:
        chosen = usable(encoded, subset)
        if not chosen.any():
            continue
        name = subset_name(subset)
        predicted = probabilities(model.classifier, encoded, subset)[chosen]
        scores.append(score(test_set, name, predicted, label[chosen], thresholds[name]))
    return scores


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


def save(scores: list[Score], folder: Path, preface: str) -> None:
    """Write ``evaluation.md`` and ``evaluation.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.md").write_text(f"{preface}\n\n{markdown(scores)}")
    (folder / "evaluation.json").write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")


def plot_confusion(predicted: NDArray[np.float64], label: NDArray[np.int64], title: str, path: Path) -> None:
    """Save a confusion matrix, rows normalised, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matrix = confusion_matrix(label, predicted.argmax(axis=1), labels=np.arange(len(CLASS_NAMES)))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color="w" if share[i, j] > 0.6 else "k")
    axes.set_xticks(np.arange(len(CLASS_NAMES)), CLASS_NAMES, rotation=45)
    axes.set_yticks(np.arange(len(CLASS_NAMES)), CLASS_NAMES)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
