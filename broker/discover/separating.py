"""What tells clusters apart: each feature in a cluster against the rest, with effect sizes and corrected p values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu

LEAST: Final = 8
"""Objects with a value, in the cluster and outside it, below which a feature is not compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One feature, or one type of a catalogue, in one cluster against all others."""

    feature: str
    cluster: int
    inside: float
    """Median of the feature; share of the type."""
    outside: float
    effect: float
    """-1 to 1. Of a feature Cliff's delta (1993, Psychological Bulletin 114, 494): the probability that a star of the
    cluster has the larger value minus that of the smaller. Of a type the difference of the shares."""
    q_value: float
    """Of the Mann-Whitney or Fisher's exact test, after Benjamini & Hochberg (1995, JRSS B 57, 289) over all tests."""
    objects: int
    """With a value."""


def differences(
    label: NDArray[np.intp], features: Mapping[str, NDArray[np.float64]], types: Mapping[str, Sequence[str]]
) -> list[Difference]:
    """All comparisons, the largest effects first; ``label`` and each feature (n,), NaN where unknown, each of ``types``
    n texts, empty where unknown."""
    rows: list[tuple[Difference, float]] = []
    count = int(label.max()) + 1
    clusters = range(1) if count == 2 else range(count)  # of two the second says the same
    for cluster in clusters if count > 1 else ():
        own = label == cluster
        for name, values in features.items():
            inside, outside = values[own & np.isfinite(values)], values[~own & np.isfinite(values)]
            if min(len(inside), len(outside)) < LEAST or np.ptp(np.concatenate([inside, outside])) == 0:
                continue
            statistic, p = mannwhitneyu(inside, outside, alternative="two-sided")
            delta = 2.0 * float(statistic) / (len(inside) * len(outside)) - 1.0
            size = len(inside) + len(outside)
            rows.append((_row(name, cluster, np.median(inside), np.median(outside), delta, size), float(p)))
        for kind, texts in types.items():
            rows += _of_types(kind, np.array(texts, object), own, cluster)
    if not rows:
        return []
    corrected = false_discovery_control([p for _, p in rows]).tolist()
    found = [
        Difference(d.feature, d.cluster, d.inside, d.outside, d.effect, q, d.objects)
        for (d, _), q in zip(rows, corrected, strict=True)
    ]
    return sorted(found, key=lambda d: (-abs(d.effect), d.feature))


def _of_types(
    kind: str, texts: NDArray[np.object_], own: NDArray[np.bool_], cluster: int
) -> list[tuple[Difference, float]]:
    known = texts != ""
    inside, outside = int(np.sum(known & own)), int(np.sum(known & ~own))
    if min(inside, outside) < LEAST:
        return []
    rows = []
    for text in sorted(set(texts[known])):
        is_it = texts == text
        a, b = int(np.sum(is_it & own)), int(np.sum(is_it & ~own))
        if a + b < LEAST or a + b == inside + outside:
            continue
        p = float(fisher_exact([[a, inside - a], [b, outside - b]]).pvalue)
        share, other = a / inside, b / outside
        rows.append((_row(f"{kind} = {text}", cluster, share, other, share - other, inside + outside), p))
    return rows


def _row(name: str, cluster: int, inside: float, outside: float, effect: float, objects: int) -> Difference:
    return Difference(name, cluster, float(inside), float(outside), effect, 1.0, objects)
