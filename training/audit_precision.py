"""How well the audit finds wrong labels: planted ones, and those that another catalogue contradicts.

Stars that the model was not trained on. Planted: 2 % of the labels that VSX does not dispute are changed, and the
average precision (area under precision against recall) of the ranking by doubt is taken over several draws. Real: the
labels of one catalogue that another contradicts are to be found among those that it confirms; who is right is not
known, so that this is a lower bound where the other one is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from broker.audit.doubt import LIKELY_WRONG, doubts
from broker.catalog.types import known_type
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES, PARENT_OF, PARENTS
from training.datasets.multiband import LabelledObjects, has_archive, load_archive, scored
from training.datasets.splits import split
from training.datasets.tables import load_objects
from training.datasets.vsx import DISPUTED, types_at
from training.evaluate import TEST_SETS
from training.live import Answers, Classify

SHARE: Final = 0.02
PARTS: Final = ("train", "validation", "test")
KINDS: Final = ("any class", "by frequency", "same parent")
"""How a wrong label is drawn: all other classes alike, as often as the table has them, or within the parent alone."""
_Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """n stars of one set, with what the model says of them."""

    name: str
    label: NDArray[np.intp]
    """(n,) position in CLASS_NAMES; -1 for a coarse one, which is not planted on."""
    quality: NDArray[np.object_]
    probabilities: NDArray[np.float64]
    """(n, 10) of the ten classes, which sum to 1: a label is audited as one of them."""
    types: list[tuple[str, ...]]
    """(n,) VSX's types at the place."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One row of the first table: mean over the draws, with the 2.5 and 97.5 % quantiles."""

    labels: str
    stars: int
    planted: int
    wrong_label: str
    average_precision: float
    low: float
    high: float
    without_naming: float
    """Average precision where the table's own usage of the labels is left out: the model's probabilities alone."""
    likely_wrong: float
    """Labels called likely wrong, in the mean."""
    precision: float
    """Share of these that are planted."""
    recall: float
    """Share of the planted that are among them."""


@dataclass(frozen=True, slots=True)
class Real:
    """One row of the second table."""

    labels: str
    against: str
    stars: int
    contradicted: int
    average_precision: float
    low: float
    high: float
    """2.5 and 97.5 % quantiles over bootstrap samples of the stars."""
    precision_at: float
    """Of as many of the most doubtful labels as are contradicted: the share that is contradicted."""
    likely_wrong: int
    of_these: int
    """Contradicted ones among those called likely wrong."""


def audit_precision(classify: Classify, data: Path, part: str, seeds: int) -> tuple[list[Planted], list[Real]]:
    """Both tables, over stars of one of PARTS, and ZTF's stars where ``classify`` is cross-validated."""
    sets = _sets(classify, data, part)
    planted: list[Planted] = []
    for one in sets:
        clean = np.array([q in ("gold", "std") for q in one.quality], np.bool_) & (one.label >= 0)
        named = clean | ((one.quality == DISPUTED) & (one.label >= 0))
        planted += [_planted(one, clean, kind, seeds, one.name) for kind in KINDS]
        if named.sum() > clean.sum():
            planted.append(_planted(one, named, KINDS[1], seeds, f"{one.name}, with labels that VSX disputes"))
    real: list[Real] = []
    for one in sets:
        gold, conflict = one.quality == "gold", one.quality == "conflict"
        if conflict.any():
            real.append(_real(one, _claimed(one), conflict, gold | conflict, "GCVS", one.name))
        there = np.array([bool(types) for types in one.types], np.bool_) & (one.label >= 0)
        disputed = there & (one.quality == DISPUTED)
        if disputed.any():
            usable = there & np.isin(one.quality.astype(str), ["gold", "std", DISPUTED])
            real.append(_real(one, _claimed(one), disputed, usable, "VSX", one.name))
            # The same stars with VSX's types as the labels: those that the survey contradicts are to be found.
            real.append(_real(one, _of_vsx(one), disputed, usable, one.name, f"VSX's of {one.name}"))
    return planted, real


def _sets(classify: Classify, data: Path, part: str) -> list[Labelled]:
    table = load_objects(data)
    rows = split(table, 0)[PARTS.index(part)]
    sets = []
    for survey, name in TEST_SETS.items():
        own = rows[(table.survey[rows] == survey) & np.array([c in CLASS_INDEX for c in table.label[rows]], np.bool_)]
        none = np.full(len(own), None, object)
        stars = LabelledObjects(name, table.states(own), table.label[own], table.label_quality[own], none)
        sets.append(_labelled(stars, classify(stars), data, table.label_is_coarse[own]))
    if hasattr(classify, "fold") and has_archive(data, "ztf_dr"):
        stars = load_archive(data, "ztf_dr")
        stars = stars.take([i for i, label in enumerate(stars.label) if label in CLASS_INDEX])
        sets.append(_labelled(scored(stars), classify(scored(stars)), data, np.zeros(len(scored(stars)), np.bool_)))
    return sets


def _labelled(stars: LabelledObjects, answers: Answers, data: Path, coarse: _Bool) -> Labelled:
    kept = np.flatnonzero(answers.probabilities.any(axis=1))
    label = np.array([CLASS_INDEX[c] for c in stars.label], np.intp)
    label[coarse] = -1
    ra, dec = (np.array([getattr(s, axis) for s in stars.states], np.float64)[kept] for axis in ("ra", "dec"))
    p = answers.probabilities[kept]
    return Labelled(
        stars.name, label[kept], stars.quality[kept], p / p.sum(axis=1, keepdims=True), types_at(data, ra, dec)
    )


def _one_hot(label: NDArray[np.intp]) -> _Bool:
    return np.eye(len(CLASS_NAMES), dtype=np.bool_)[label]


def _claimed(one: Labelled) -> _Bool:
    return _one_hot(np.maximum(one.label, 0))


def _of_vsx(one: Labelled) -> _Bool:
    """(n, 10) classes that VSX's types may stand for; rows without any are of no use."""
    result = np.zeros((len(one.label), len(CLASS_NAMES)), np.bool_)
    for row, types in enumerate(one.types):
        for text in types:
            result[row, [CLASS_INDEX[name] for name in known_type(text).classes]] = True
    return result


def plant(label: NDArray[np.intp], kind: str, rng: np.random.Generator) -> tuple[NDArray[np.intp], _Bool]:
    """Labels (n,) of which SHARE are changed, and which those are; at least one is. ``kind`` is one of KINDS."""
    share = np.bincount(label, minlength=len(CLASS_NAMES)) / len(label)
    weights = np.tile(share if kind == KINDS[1] else np.ones(len(CLASS_NAMES)), (len(CLASS_NAMES), 1))
    np.fill_diagonal(weights, 0.0)
    if kind == KINDS[2]:
        weights *= [[other in PARENTS[PARENT_OF[own]] for other in CLASS_NAMES] for own in CLASS_NAMES]
    able = np.flatnonzero(weights[label].any(axis=1))
    chosen = rng.permutation(able)[: max(1, round(SHARE * len(label)))]
    changed = label.copy()
    for row in chosen.tolist():
        own = weights[label[row]]
        changed[row] = rng.choice(len(CLASS_NAMES), p=own / own.sum())
    return changed, changed != label


def _planted(one: Labelled, rows: _Bool, kind: str, seeds: int, name: str) -> Planted:
    p, label = one.probabilities[rows], one.label[rows]
    scores: list[tuple[float, ...]] = []
    count = 0
    for seed in range(seeds):
        changed, wrong = plant(label, kind, np.random.default_rng([seed, KINDS.index(kind)]))
        claimed, count = _one_hot(changed), int(wrong.sum())
        doubt = doubts(p, claimed)
        likely = doubt >= LIKELY_WRONG
        scores.append(
            (
                float(average_precision_score(wrong, doubt)),
                float(average_precision_score(wrong, doubts(p, claimed, np.inf))), float(likely.sum()),
                float(wrong[likely].mean()) if likely.any() else 0.0, float(likely[wrong].mean()),
            )
        )  # fmt: skip
    each = np.array(scores)
    low, high = np.quantile(each[:, 0], [0.025, 0.975])
    mean = each.mean(axis=0).tolist()
    return Planted(name, len(label), count, kind, mean[0], float(low), float(high), *mean[1:])


def _real(one: Labelled, claimed: _Bool, contradicted: _Bool, among: _Bool, against: str, name: str) -> Real:
    rows = np.flatnonzero(among & claimed.any(axis=1))
    doubt, wrong = doubts(one.probabilities[rows], claimed[rows]), contradicted[rows]

    def score(own: NDArray[np.intp]) -> float:
        return float(average_precision_score(wrong[own], doubt[own]))

    rng = np.random.default_rng(0)
    draws = (rng.integers(len(rows), size=len(rows)) for _ in range(200))
    low, high = np.quantile([score(own) for own in draws if wrong[own].any()], [0.025, 0.975])
    first = np.argsort(-doubt, kind="stable")[: int(wrong.sum())]
    likely = doubt >= LIKELY_WRONG
    return Real(
        name, against, len(rows), int(wrong.sum()), score(np.arange(len(rows))), float(low), float(high),
        float(wrong[first].mean()), int(likely.sum()), int((likely & wrong).sum()),
    )  # fmt: skip


def markdown(rows: Sequence[Planted] | Sequence[Real]) -> str:
    """One of the tables."""
    if not rows:
        return "No stars.\n"
    names = [name.replace("_", " ") for name in asdict(rows[0])]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in asdict(row).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
