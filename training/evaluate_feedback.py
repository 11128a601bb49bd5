"""How much 20 answers of an astronomer improve the list of anomalies, on real light curves.

A simulated astronomer looks for one kind of star and answers truthfully, or with 20 % of the answers wrong, about the
top of the list, which is put in order again after each answer. Asked about is one half of the stars; precision is
that of the 50 first of the other half, of which nothing was asked. The rivals are coniferest's AADForest (Das et al.
2017) and PineForest (SNAD), which see the same embeddings and get the same number of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from coniferest.aadforest import AADForest
from coniferest.label import Label
from coniferest.pineforest import PineForest
from numpy.typing import NDArray
from scipy.stats import t as student_t

from broker.errors import ConfigurationError
from broker.feedback.learner import Correction, learn, vectors_of
from broker.inference.onnx import OnnxEngine
from training.datasets.multiband import LabelledObjects, has_archive, load_archive
from training.evaluate_anomaly import (
    TOP,
    Report,
    StarsBySurvey,
    embedded_light_curves,
    load_scorer,
    scores_of,
)

ANSWERS: Final = 20
SEEDS: Final = 10
WRONG: Final = 0.2
"""Share of the answers of a careless astronomer."""
_EROS: Final = {"cepheid": "cepheid", "rr_lyrae": "RR Lyrae", "eclipsing": "eclipsing", "long_period": "long period"}
_NAMES: Final = {"CEP": "cepheid"}
KINDS: Final = ("cepheid", "RRd", "ELL", "R", "M")
"""Kinds that somebody looks for: four of none of the ten classes, and Miras, which are nothing unusual."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """n stars with what is known of them."""

    vectors: NDArray[np.float32]
    """(n, 3, d)."""
    fused: NDArray[np.float32]
    """(n, d)."""
    score: NDArray[np.float64]
    """(n,) combined, 0 to 1."""
    forest: NDArray[np.float64]
    """(n,) of the isolation forest, large where strange."""
    kind: NDArray[np.object_]

    def take(self, rows: NDArray[np.intp]) -> Pool:
        """Some of the stars."""
        return Pool(*(getattr(self, name)[rows] for name in Pool.__slots__))


Method = Callable[[Pool, Pool, NDArray[np.bool_], int, float], NDArray[np.float64]]
"""Scores of the second pool after ANSWERS about the first, of which (n,) are interesting; seed, share of wrong answers.
Large where it is to be looked at."""


def pool_of(repository: Path, data: Path, report: Report) -> Pool:
    """All stars of the ten classes and of others that there are, scored by their light curves."""
    engine = OnnxEngine(repository)
    scorer = load_scorer(repository, engine)
    sets = StarsBySurvey(data)
    parts: list[tuple[LabelledObjects, NDArray[np.object_]]] = [(sets.asas, sets.asas.label)]
    for known, others in sets.pairs.values():
        parts += [(known, known.label), (others, others.original)]
    if has_archive(data, "eros2"):
        eros = load_archive(data, "eros2")
        parts.append((eros, np.array([_EROS[str(label)] for label in eros.label], object)))
    pools = []
    for objects, kind in parts:
        report(f"{objects.name}: {len(objects)} stars")
        found = embedded_light_curves(engine, objects)
        # Those that have enough points are in their order.
        if len(found.embeddings) != len(kind):
            raise ConfigurationError(f"{objects.name}: stars of fewer than five points are among those that are scored")
        values = scores_of(scorer, found)
        names = np.array([_NAMES.get(str(name), str(name)) for name in kind], object)
        vectors = vectors_of(found.embeddings, None, found.present)
        pools.append(Pool(vectors, found.embeddings, -np.expm1(-values["combined"]), values["forest"], names))
    engine.close()
    whole = Pool(*(np.concatenate([getattr(p, name) for p in pools]) for name in Pool.__slots__))
    return whole.take(np.flatnonzero(~np.isnan(whole.score)))


def asked(
    score: Callable[[list[int], list[bool]], NDArray[np.float64]],
    interesting: NDArray[np.bool_],
    seed: int,
    wrong: float,
    first: int | None = None,
) -> tuple[list[int], list[bool]]:
    """Rows that were asked about, each the first in the order of ``score`` after the answers before, and the answers.

    ``first`` is a star that the astronomer knows and names before anything is asked.
    """
    rng = np.random.default_rng([seed, 1])
    rows: list[int] = []
    answers: list[bool] = []
    while len(rows) < ANSWERS:
        if first is not None and not rows:
            row = first
        else:
            order = score(rows, answers).copy()
            order[rows] = -np.inf
            row = int(order.argmax())
        rows.append(row)
        answers.append(bool(interesting[row]) != bool(rng.random() < wrong))
    return rows, answers


def ours(shown: Pool, other: Pool, interesting: NDArray[np.bool_], seed: int, wrong: float) -> NDArray[np.float64]:
    """The service's own learner."""
    return _ours(shown, other, interesting, seed, wrong, None)


def from_example(
    shown: Pool, other: Pool, interesting: NDArray[np.bool_], seed: int, wrong: float
) -> NDArray[np.float64]:
    """The same, where the first answer is about one star of the kind that the astronomer knows."""
    first = int(np.random.default_rng([seed, 2]).choice(np.flatnonzero(interesting)))
    return _ours(shown, other, interesting, seed, wrong, first)


def _ours(
    shown: Pool, other: Pool, interesting: NDArray[np.bool_], seed: int, wrong: float, first: int | None
) -> NDArray[np.float64]:
    def learned(rows: list[int], answers: list[bool]) -> Correction:
        return learn("m", "r", shown.vectors[rows], shown.score[rows], np.array(answers, np.bool_))

    def score(rows: list[int], answers: list[bool]) -> NDArray[np.float64]:
        return learned(rows, answers).apply(shown.score, shown.vectors).score if rows else shown.score

    return learned(*asked(score, interesting, seed, wrong, first)).apply(other.score, other.vectors).score


def forest(kind: Any) -> Method:
    """One of coniferest's, grown on the stars that are asked about."""

    def run(shown: Pool, other: Pool, interesting: NDArray[np.bool_], seed: int, wrong: float) -> NDArray[np.float64]:
        trees = kind(n_jobs=1, random_seed=seed)
        seen = shown.fused.astype(np.float64)
        trees.fit(seen)

        def score(rows: list[int], answers: list[bool]) -> NDArray[np.float64]:
            if rows:
                labels = np.where(answers, int(Label.ANOMALY), int(Label.REGULAR))
                trees.fit_known(seen, seen[rows], labels)
            return -np.asarray(trees.score_samples(seen))

        rows, answers = asked(score, interesting, seed, wrong)
        score(rows, answers)
        return -np.asarray(trees.score_samples(other.fused.astype(np.float64)))

    return run


METHODS: Final[dict[str, Method]] = {
    "no answers": lambda shown, other, interesting, seed, wrong: other.score,
    "isolation forest, no answers": lambda shown, other, interesting, seed, wrong: other.forest,
    "AADForest": forest(AADForest),
    "PineForest": forest(PineForest),
    "Trifid": ours,
    "Trifid, from an example": from_example,
}


def evaluate_feedback(pool: Pool, report: Report, seeds: int = SEEDS, kinds: Sequence[str] = KINDS) -> str:
    """A table of precision at TOP by kind and method, truthful and careless, as Markdown."""
    lines = [
        f"| looked for | in the other half | answers wrong | {' | '.join(METHODS)} | gain of Trifid, 95 % interval |",
        f"|---|---:|---:|{'---:|' * len(METHODS)}---:|",
    ]
    for kind in kinds:
        for wrong in (0.0, WRONG):
            report(f"{kind}, {wrong:.0%} of the answers wrong")
            precision = np.zeros((len(METHODS), seeds))
            there = 0.0
            for seed in range(seeds):
                order = np.random.default_rng(seed).permutation(len(pool.score))
                shown, other = (pool.take(half) for half in np.array_split(order, 2))
                truth = other.kind == kind
                there += truth.sum() / seeds
                for row, method in enumerate(METHODS.values()):
                    score = method(shown, other, shown.kind == kind, seed, wrong)
                    precision[row, seed] = truth[np.argsort(-score, kind="stable")[:TOP]].mean()
            names = list(METHODS)
            gain = precision[names.index("Trifid")] - precision[names.index("no answers")]
            cells = " | ".join(f"{value:.2f}" for value in precision.mean(axis=1))
            lines.append(f"| {kind} | {there:.0f} | {wrong:.0%} | {cells} | {interval(gain)} |")
    return "\n".join(lines) + "\n"


def interval(values: NDArray[np.float64]) -> str:
    """The mean and Student's 95 % interval of it."""
    half = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
