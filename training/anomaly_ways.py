"""How the parts of the combined anomaly score are combined: the service's way, without each part, and others.

Of the test stars one half chooses and the other judges (``CHOICE_SEED``), each class by a network that has not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from broker.anomaly.calibration import COLUMNS, COMBINED, Scorer
from broker.anomaly.combine import ALONE, surprises_of
from broker.anomaly.statistics import Objects, statistics_of
from broker.anomaly.tails import Tail
from broker.inference.onnx import OnnxEngine
from broker.taxonomy import CLASS_NAMES
from training.evaluate_anomaly import (
    ABOUT_20,
    CHOICE_SEED,
    Report,
    StarsBySurvey,
    embedded_light_curves,
    load_scorer,
    prepared_stars,
    stars_without,
)
from training.leave_out import left_out_classes

STARS: Final = 3000
"""Test histories of each network, of both halves."""
Vector = NDArray[np.float64]
Way = Callable[[Mapping[str, Vector]], Vector]


def way(added: Mapping[str, float], alone: Mapping[str, float]) -> Way:
    """Surprises times factors: those of ``added`` summed, and with each of ``alone`` a harmonic mean (Wilson 2019)."""

    def combined(surprises: Mapping[str, Vector]) -> Vector:
        total: Vector = np.sum([factor * surprises[name] for name, factor in added.items()], axis=0)
        for name, factor in alone.items():
            there = ~np.isnan(surprises[name])
            total[there] = np.logaddexp(total[there], factor * surprises[name][there])
        return total

    return combined


_NEAR: Final = {"all.neighbours": 1.0, "class_neighbours": 1.0}
_BEFORE: Final = {"all.neighbours": 0.5, "all.mahalanobis": 0.5, "uncertainty": 1.0}


def _but(left_out: str) -> dict[str, float]:
    return {name: factor for name, factor in ALONE.items() if name != left_out}


WAYS: Final[dict[str, Way]] = {
    "**the service's**": way(_NEAR, ALONE),
    "that of earlier releases: neighbours, Mahalanobis, uncertainty added; shape": way(_BEFORE, {"shape": 1.0}),
    "the service's without `class_neighbours`": way({"all.neighbours": 1.0}, ALONE),
    "without `neighbours`": way({"class_neighbours": 1.0}, ALONE),
    "without `density`": way(_NEAR, _but("density")),
    "without `shape`": way(_NEAR, _but("shape")),
    "without `uncertainty`": way(_NEAR, _but("uncertainty")),
    "with a quarter of `uncertainty` added instead": way({**_NEAR, "uncertainty": 0.25}, _but("uncertainty")),
    "with Mahalanobis added besides": way({**_NEAR, "all.mahalanobis": 0.5}, ALONE),
    "`shape` as it is, not a quarter more": way(_NEAR, {**ALONE, "shape": 1.0}),
    "all added (Fisher), but for `shape`": way({**_NEAR, "uncertainty": 1.0, "density": 1.0}, {"shape": 1.0}),
    "`density` alone": way({"density": 1.0}, {}),
    "`class_neighbours` alone": way({"class_neighbours": 1.0}, {}),
    "`all.neighbours` alone": way({"all.neighbours": 1.0}, {}),
    "`all.mahalanobis` alone": way({"all.mahalanobis": 1.0}, {}),
}


def anomaly_ways(models: Path, repository: Path, shared: Path, versions: int, report: Report) -> str:
    """Markdown: each of WAYS by its mean AUROC over the classes left out, of either half, and for other surveys."""
    data = shared / "data"
    table, labels, parts, curves = prepared_stars(models, data, versions)
    judges = np.random.default_rng(CHOICE_SEED).random(len(table)) >= 0.5
    columns: list[list[float]] = []
    heads: list[str] = []
    for title, length in (("whole", None), ("about 20 points", ABOUT_20)):
        rng = np.random.default_rng([0, 43])
        halves: list[list[list[float]]] = [[], []]
        for name in left_out_classes(models):
            report(f"without {name}, {title}")
            scorer, stars, row = stars_without(models, name, curves, table, labels, parts, length, STARS, rng, report)
            values, outside = values_of(scorer, stars), labels.index[row] == CLASS_NAMES.index(name)
            for half, found in enumerate(halves):
                found.append(_aurocs(values, outside, judges[row] == bool(half)))
        for which, found in zip(("the half that chose", "the other half"), halves, strict=True):
            heads += [f"{title}, {which}", "lowest"]
            columns += [np.mean(found, axis=0).tolist(), np.min(found, axis=0).tolist()]
    engine = OnnxEngine(repository)
    scorer = load_scorer(repository, engine)
    for survey, (known, others) in StarsBySurvey(data).pairs.items():
        report(survey)
        both = [embedded_light_curves(engine, one) for one in (known, others)]
        outside = np.repeat([False, True], [len(one.embeddings) for one in both])
        heads.append(survey)
        columns.append(_aurocs(values_of(scorer, Objects.joined(both)), outside, np.ones(len(outside), np.bool_)))
    engine.close()
    lines = [f"| parts | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for number, told in enumerate(WAYS):
        lines.append(f"| {told} | {' | '.join(f'{column[number]:.3f}' for column in columns)} |")
    return "\n".join(lines) + "\n"


def values_of(scorer: Scorer, objects: Objects) -> list[Vector]:
    """Of each of WAYS (n,) the surprise among the calibration stars of the stratum; NaN where there are too few."""
    statistics, _ = statistics_of(
        objects, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes
    )
    surprises = surprises_of(statistics, objects, scorer.calibration)
    strata, calibration = objects.strata(), scorer.calibration
    found = [np.full(len(strata), np.nan) for _ in WAYS]
    for number in np.unique(strata).tolist():
        tails = calibration.tails.get(number, {})
        if COMBINED[0] not in tails:
            continue
        own, stars = strata == number, calibration.values[calibration.strata == number]
        known = {
            name: tails[name].surprise(stars[:, column]) if name in tails else np.full(len(stars), np.nan)
            for column, name in enumerate(COLUMNS)
        }
        new = {name: surprises[name][own] for name in COLUMNS}
        for values, combined in zip(found, WAYS.values(), strict=True):
            values[own] = Tail(combined(known)).surprise(combined(new))
    return found


def _aurocs(values: list[Vector], outside: NDArray[np.bool_], rows: NDArray[np.bool_]) -> list[float]:
    """Of each way, of some of the rows."""
    there = [rows & ~np.isnan(one) for one in values]
    return [float(roc_auc_score(outside[own], one[own])) for one, own in zip(values, there, strict=True)]
