"""Figures: the numbers behind them, and that they are pictures with what they should say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from training.calibrate import expected_calibration_error
from training.detections import DetectionScore
from training.figures import plot_confusion, plot_detections, plot_reliability, plot_umap, reliability


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, which still are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: object, **options: object) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def predictions(size: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, size)
    logits = rng.normal(size=(size, 10))
    logits[np.arange(size), label] += 2
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), label


def is_picture(path: Path) -> bool:
    pixels = imread(path)
    return min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_reliability_by_hand() -> None:
    predicted = np.zeros((5, 10))
    predicted[:2, 0], predicted[:2, 1] = 0.6, 0.4  # of confidence 0.6: one right, one wrong
    predicted[2:, 3], predicted[2:, 4] = 0.9, 0.1  # of confidence 0.9: two right, one wrong
    curve = reliability(predicted, np.array([0, 1, 3, 3, 4]), bins=5)
    np.testing.assert_array_equal(curve.count, [0, 0, 0, 2, 3])
    np.testing.assert_allclose(curve.confidence, [np.nan, np.nan, np.nan, 0.6, 0.9])
    np.testing.assert_allclose(curve.accuracy, [np.nan, np.nan, np.nan, 1 / 2, 2 / 3])


def test_reliability_and_calibration_error_agree() -> None:
    predicted, label = predictions(500)
    curve = reliability(predicted, label)
    error = np.nansum(curve.count * np.abs(curve.accuracy - curve.confidence)) / 500
    assert error == pytest.approx(expected_calibration_error(predicted, label))
    assert curve.count.sum() == 500
    certain = np.eye(10)[[2]]
    assert reliability(certain, np.array([2])).count[-1] == 1  # a confidence of 1 is in the last bin


def test_confusion(tmp_path: Path, saved: list[Figure]) -> None:
    predicted, label = predictions(200)
    plot_confusion(predicted, label, "ASAS, light curve alone (real)", tmp_path / "confusion.png")
    assert is_picture(tmp_path / "confusion.png")
    axes = saved[0].axes[0]
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class (objects)"
    assert axes.get_title() == "ASAS, light curve alone (real)"
    assert axes.get_yticklabels()[0].get_text() == f"EW ({np.sum(label == 0)})"
    written = sum(int(text.get_text().splitlines()[1]) for text in axes.texts)
    assert written == 200


def test_reliability_figure(tmp_path: Path, saved: list[Figure]) -> None:
    predicted, label = predictions(300)
    plot_reliability(predicted, label, "Catalina, light curve alone (real)", tmp_path / "reliability.png")
    assert is_picture(tmp_path / "reliability.png")
    upper, lower = saved[0].axes
    assert f"{expected_calibration_error(predicted, label):.3f}" in upper.get_title()
    assert upper.get_ylabel() == "accuracy"
    assert lower.get_xlabel() == "confidence (highest probability)"
    assert sum(int(text.get_text()) for text in lower.texts) == 300


def test_detections_figure(tmp_path: Path, saved: list[Figure]) -> None:
    rows = [DetectionScore(n, 50, 0, 0, a, a / 2, 0.1) for n, a in ((5, 0.3), (50, 0.6), (None, 0.9))]
    plot_detections({"ASAS": rows, "Catalina": rows[::-1]}, "first N", tmp_path / "detections.png")
    assert is_picture(tmp_path / "detections.png")
    accuracy, macro_f1 = saved[0].axes
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[0.3, 0.6, 0.9], [0.9, 0.6, 0.3]]
    assert list(macro_f1.lines[0].get_ydata()) == [0.15, 0.3, 0.45]
    assert accuracy.get_xlabel() == "first N detections of the star"


def test_umap_keeps_clusters_apart(tmp_path: Path, saved: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 3], 40)
    centres = rng.normal(size=(10, 512))
    embeddings = (centres[label] + 0.3 * rng.normal(size=(80, 512))).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    test_set = np.array(["ASAS", "Catalina"] * 40, object)
    plot_umap(embeddings, label, test_set, "UMAP (real)", tmp_path / "umap.png")
    assert is_picture(tmp_path / "umap.png")
    by_class, by_set = saved[0].axes
    legend = by_class.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"EW (40)", "RRAB (40)"}
    first, second = (np.asarray(points.get_offsets()) for points in by_class.collections)
    spread = max(first.std(axis=0).max(), second.std(axis=0).max())
    assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > 3 * spread
    assert len(np.asarray(by_set.collections[0].get_offsets())) == 80
