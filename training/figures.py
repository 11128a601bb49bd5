"""Figures of an evaluation, each saved as one PNG.

No figure depends on colour alone: classes have a marker each beside a colour of Tol's muted scheme (Paul Tol, SRON
technical note 09-002), lines have markers and dashes, and matrices have their numbers written in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from broker.taxonomy import CLASS_NAMES
from training.calibrate import expected_calibration_error
from training.detections import DetectionScore

BINS = 15
"""Bins of confidence, as many as in ``expected_calibration_error``, so that figure and number agree."""
UMAP_STARS = 4000
"""A map of more stars than this is overprinted and slow; below 4096 umap-learn also finds exact neighbours."""
UMAP_NEIGHBOURS = 30

_CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#CC6677", "#999933", "#AA4499", "#DDCC77", "#882255", "#44AA99", "#7F7F7F",
)  # fmt: skip
_CLASS_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">")
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#7F7F7F"
_SET_STYLES = ((_BLUE, "o", "-"), (_ORANGE, "s", "--"), ("#117733", "^", ":"))


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Confidence against accuracy, in bins of equal width on 0-1; NaN in ``confidence`` and ``accuracy`` if empty."""

    confidence: NDArray[np.float64]
    """(bins,) mean of the highest probability."""
    accuracy: NDArray[np.float64]
    """(bins,) share of objects whose most probable class is the true one."""
    count: NDArray[np.intp]
    """(bins,) objects."""


def reliability(predicted: NDArray[np.float64], label: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Reliability of probabilities (n, 10) against labels (n,) (Guo et al. 2017, arXiv 1706.04599, section 2)."""
    confidence = predicted.max(axis=1)
    right = predicted.argmax(axis=1) == label
    cell = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    count = np.bincount(cell, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    return Reliability(
        np.bincount(cell, confidence, bins) / divisor, np.bincount(cell, right, bins) / divisor, count.astype(np.intp)
    )


def plot_confusion(predicted: NDArray[np.float64], label: NDArray[np.int64], title: str, path: Path) -> None:
    """Save the confusion matrix of probabilities (n, 10) and labels (n,): shade is the share of the true class."""
    matrix = confusion_matrix(label, predicted.argmax(axis=1), labels=np.arange(len(CLASS_NAMES)))
    totals = matrix.sum(axis=1)
    share = matrix / np.maximum(totals[:, None], 1)
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        if count:
            colour = "w" if share[i, j] > 0.55 else "k"
            text = f"{share[i, j]:.0%}\n{count}" if share[i, j] >= 0.005 else f"<1%\n{count}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, linespacing=0.95)
    ticks = np.arange(len(CLASS_NAMES))
    axes.set_xticks(ticks, CLASS_NAMES, rotation=45)
    axes.set_yticks(ticks, [f"{name} ({total})" for name, total in zip(CLASS_NAMES, totals, strict=True)])
    axes.set_xticks(ticks[:-1] + 0.5, minor=True)
    axes.set_yticks(ticks[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (objects)")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    figure.savefig(path, dpi=130)


def plot_reliability(predicted: NDArray[np.float64], label: NDArray[np.int64], title: str, path: Path) -> None:
    """Save accuracy against confidence, with binomial errors, over the number of objects in each bin."""
    curve = reliability(predicted, label)
    some = curve.count > 0
    confidence, accuracy, count = curve.confidence[some], curve.accuracy[some], curve.count[some]
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    low, high = _wilson(accuracy, count)
    upper.errorbar(
        confidence, accuracy, yerr=[accuracy - low, high - accuracy], color=_BLUE, marker="o", markersize=5,
        linewidth=1.2, capsize=2, label="model, with the error of the bin",
    )  # fmt: skip
    upper.set_ylabel("accuracy")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(loc="best", frameon=False)
    error = expected_calibration_error(predicted, label, BINS)
    upper.set_title(f"{title}\nexpected calibration error {error:.3f}", fontsize=10)
    edges = np.linspace(0, 1, BINS + 1)
    lower.bar(edges[:-1], curve.count, width=1 / BINS, align="edge", color=_BLUE, edgecolor="w", linewidth=0.6)
    for left, number in zip(edges[:-1], curve.count, strict=True):
        if number:
            lower.annotate(
                str(number), (left + 0.5 / BINS, number), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    lower.set_yscale("log")
    lower.set_ylim(0.7, 4 * max(1, int(curve.count.max())))
    lower.set_xlim(0, 1)
    lower.set_xlabel("confidence (highest probability)")
    lower.set_ylabel("objects")
    for axes in (upper, lower):
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=130)


def _wilson(share: NDArray[np.float64], count: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sigma limits of a share of ``count`` objects (Wilson 1927, JASA 22, 209); never beyond 0 and 1."""
    centre = (share + 0.5 / count) / (1 + 1 / count)
    half = np.sqrt(share * (1 - share) / count + 0.25 / count**2) / (1 + 1 / count)
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def plot_detections(scores: Mapping[str, Sequence[DetectionScore]], title: str, path: Path) -> None:
    """Save accuracy and macro-F1 against the number of detections, one line for each test set of ``scores``."""
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    accuracy, macro_f1 = figure.subplots(1, 2, sharey=True)
    names: list[str] = []
    for (name, rows), (colour, marker, dashes) in zip(scores.items(), _SET_STYLES, strict=False):
        names = [row.name for row in rows]
        for axes, values in ((accuracy, [r.accuracy for r in rows]), (macro_f1, [r.macro_f1 for r in rows])):
            axes.plot(
                range(len(rows)), values, color=colour, marker=marker, linestyle=dashes,
                label=f"{name} ({rows[0].objects} stars)",
            )  # fmt: skip
    for axes, label in ((accuracy, "accuracy"), (macro_f1, "macro-F1")):
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("first N detections of the star")
        axes.set_title(label, fontsize=10)
        axes.set_ylim(0, 1)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    accuracy.set_ylabel("score over classified stars")
    accuracy.legend(loc="lower right", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def map_embeddings(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Vectors (n, 512) to the plane (n, 2) by UMAP with cosine distances (McInnes et al. 2018, arXiv 1802.03426)."""
    with warnings.catch_warnings():
        # umap-learn warns at import that its parametric variant, which is not used here, wants Tensorflow.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP
    neighbours = min(UMAP_NEIGHBOURS, len(embeddings) - 1)
    # One job, since a seed makes the layout serial anyway, and umap-learn warns where that is not said.
    layout = UMAP(n_neighbors=neighbours, min_dist=0.15, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float32)


def plot_umap(
    embeddings: NDArray[np.float32],
    label: NDArray[np.int64],
    test_set: NDArray[np.object_],
    title: str,
    path: Path,
    seed: int = 0,
) -> None:
    """Save a UMAP of ``embeddings`` (n, 512), once by class (n,) and once by ``test_set`` (n,).

    At most UMAP_STARS stars are shown, chosen at random with ``seed``; the second panel tells whether classes or
    surveys form the clusters.
    """
    chosen = np.random.default_rng([seed, 6]).permutation(len(label))[:UMAP_STARS]
    place, label, test_set = map_embeddings(embeddings[chosen], seed), label[chosen], test_set[chosen]
    figure = Figure(figsize=(13.5, 6.4), layout="constrained")
    by_class, by_set = figure.subplots(1, 2)
    # The most frequent class first, so that rare ones lie on top.
    for index in sorted(set(label.tolist()), key=lambda c: -int(np.sum(label == c))):
        own = label == index
        by_class.scatter(
            *place[own].T, s=14, c=_CLASS_COLOURS[index], marker=_CLASS_MARKERS[index], alpha=0.7, linewidths=0,
            label=f"{CLASS_NAMES[index]} ({own.sum()})",
        )  # fmt: skip
    # All surveys in one call, since the stars are in random order: no survey lies on top of another.
    names = sorted(set(test_set.tolist()))
    colours = {name: colour for name, (colour, _, _) in zip(names, _SET_STYLES, strict=False)}
    by_set.scatter(*place.T, s=10, c=[colours[name] for name in test_set], alpha=0.6, linewidths=0)
    for name, colour in colours.items():
        by_set.scatter([], [], s=14, c=colour, label=f"{name} ({np.sum(test_set == name)})")
    for axes, name in ((by_class, "by class"), (by_set, "by survey")):
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("UMAP 1")
        axes.set_ylabel("UMAP 2")
        # The numbers of a UMAP mean nothing; only neighbourhood does.
        axes.set_xticks([])
        axes.set_yticks([])
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
