"""Scores on what a broker sees: real ZTF packets, archives in several bands, first and random parts of them.

Every row goes the way of the service: its readers, its assembly, its engine, its prediction sets. Where a star was used
to train the published head, it is scored by a model of a fold that has not seen it (``training.stream``); other stars,
such as those that are kept back, by the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from broker.taxonomy import CLASS_INDEX
from training.datasets.multiband import (
    ALERT_LABELS,
    LabelledObjects,
    first_points,
    has_archive,
    load_archive,
    load_packets,
    scored,
)
from training.live.baselines import Informer, LightCurveForest, packet_forest
from training.live.output import NUMBERS
from training.live.rows import (
    CATALOGUED,
    CLASSES_THEMSELVES,
    PACKET_ROW,
    Row,
    joined,
    live_rows,
)
from training.live.scores import Answers, Classify, CrossValidated, LiveScore, Once, Repository, live_score

__all__ = [
    "Answers",
    "Classify",
    "CrossValidated",
    "LiveScore",
    "Once",
    "Repository",
    "evaluate_live",
    "first_detections_scores",
]

FIRST_OF_A_TEST = 400
"""Stars of ASAS and of Catalina, at most, in the figure of first detections."""


def evaluate_live(
    classify: Classify,
    data: Path,
    forest: LightCurveForest | None = None,
    informer: Informer | None = None,
    seed: int = 0,
    fold_of_star: Mapping[str, int] | None = None,
) -> tuple[list[LiveScore], dict[str, list[LiveScore]]]:
    """All rows (``live_rows``) scored, and the scores after the first detections of each star (by set).

    ``fold_of_star`` are the model's folds, by which the packet forest is cross-validated, too.
    """
    rows = live_rows(data, seed)
    packets = [row.objects for row in rows if row.name.startswith(PACKET_ROW)][-2:]
    right = packet_forest(joined(packets), seed, fold_of_star=fold_of_star) if packets else {}
    models: dict[str, LightCurveForest | Informer | None] = {"light-curve forest": forest, "Informer": informer}
    scores = []
    for row in track(rows, "Scoring"):
        score = live_score(row.name, row.objects, classify(row.objects), row.groups)
        if row.name.startswith(PACKET_ROW):
            score.baselines["packet forest"] = float(np.mean([right[s.object_id] for s in row.objects.states]))
        for name, model in models.items():
            alone = model if CATALOGUED not in row.name else None  # the same light curves once more
            score.baselines[name] = None if alone is None else accuracy(row, alone.probabilities(row.objects))
        scores.append(score)
    return scores, first_detections_scores(classify, data, rows, seed)


def accuracy(row: Row, probabilities: NDArray[np.float64]) -> float:
    """Share of the row's objects whose group has the largest sum of ``probabilities`` (n, 10); zero rows are wrong."""
    names = list(row.groups)
    summed = np.stack([probabilities[:, [CLASS_INDEX[c] for c in row.groups[n]]].sum(axis=1) for n in names], axis=1)
    right = np.array(names, object)[summed.argmax(axis=1)] == row.objects.label
    return float(np.mean(right & probabilities.any(axis=1)))


def first_detections_scores(
    classify: Classify, data: Path, rows: list[Row], seed: int = 0
) -> dict[str, list[LiveScore]]:
    """Scores after the first N detections of the objects that have as many, N in NUMBERS, by set: for the figure."""
    sets: dict[str, LabelledObjects] = {}
    for name, title in (
        ("ztf_dr", "ZTF data release"), ("stripe82", "Stripe 82 RR Lyrae"), ("ztf_rebuilt", "ZTF rebuilt"),
        ("asassn", "ASAS-SN"),
    ):  # fmt: skip
        if has_archive(data, name):
            sets[title] = scored(load_archive(data, name))
    if (data / "multiband" / ALERT_LABELS).exists():
        sets["ZTF packets"] = scored(load_packets(data))
    for row in rows:
        if row.name.endswith("one band, held-out stars") and row.groups is CLASSES_THEMSELVES:
            some = np.random.default_rng(seed).permutation(len(row.objects))[:FIRST_OF_A_TEST]
            sets[row.name.split(",")[0]] = row.objects.take(np.sort(some))
    return {title: _after_first(classify, objects) for title, objects in track(sets.items(), "First detections")}


def _after_first(classify: Classify, objects: LabelledObjects) -> list[LiveScore]:
    """A score for each of NUMBERS that at least 20 objects reach, of those objects."""
    size = np.array([len(state.light_curve) for state in objects.states])
    scores = []
    for n in NUMBERS:
        long = np.flatnonzero(size >= n)
        if len(long) >= 20:
            own = first_points(objects.take(long), n)
            scores.append(live_score(str(n), own, classify(own), CLASSES_THEMSELVES))
    return scores
