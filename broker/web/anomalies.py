"""The list of anomalies: objects of the index with their embeddings, and what an answer changes of their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.feedback.learner import Corrected, Correction

Space = tuple[str, str]
"""Model, and version of its reference set: answers of one are never learned from for another."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """n objects that may be at the top of the list, all of one space."""

    space: Space
    records: list[dict[str, Any]]
    score: NDArray[np.float64]
    """(n,) combined anomaly scores, before any answer."""
    vectors: NDArray[np.float32]
    """(n, 3, d)."""

    def row_of(self, name: tuple[str, str]) -> int | None:
        """Where an object is."""
        return next((i for i, r in enumerate(self.records) if (r["survey"], r["objectId"]) == name), None)


@dataclass(frozen=True, slots=True)
class Effect:
    """What an answer changed; None where there is nothing to tell."""

    learned: bool
    why_not: str | None
    workers: str | None
    """Why the workers do not have it yet; None where they do."""
    scores: tuple[float, float] | None = None
    """Of the object, before and after."""
    ranks: tuple[int | None, int | None] = (None, None)
    """From 1, among the candidates of the list."""
    entered: tuple[str, ...] = ()
    """The first TOP of the list that were not among them before."""
    left: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For JSON."""
        before, after = self.scores or (None, None)
        return {
            "learned": self.learned,
            "whyNot": self.why_not,
            "workers": self.workers or "told",
            "scoreBefore": before,
            "scoreAfter": after,
            "rankBefore": self.ranks[0],
            "rankAfter": self.ranks[1],
            "entered": list(self.entered),
            "left": list(self.left),
        }


def corrected(candidates: Candidates, correction: Correction | None) -> Corrected:
    """Scores of candidates after the answers; as they are where there are none."""
    if correction is None or not len(correction) or correction.vectors.shape[2] != candidates.vectors.shape[2]:
        none = np.zeros(len(candidates.score))
        return Corrected(candidates.score, none, none.astype(np.intp))
    return correction.apply(candidates.score, candidates.vectors)


def order_of(score: NDArray[np.float64]) -> list[int]:
    """Rows, the highest score first."""
    return [int(row) for row in np.argsort(-score, kind="stable")]


def name_of(record: dict[str, Any]) -> str:
    """The object of an annotation, as ``survey:id``."""
    return f"{record['survey']}:{record['objectId']}"


def space_of(record: dict[str, Any]) -> Space:
    """Where an annotation's score and embedding are from."""
    return record["modelVersion"], record["referenceSetVersion"]


def unusable(record: dict[str, Any] | None) -> str | None:
    """Why nothing can be learned from an answer about an object with this annotation."""
    if record is None:
        return "the index has no annotation of it any more"
    if record.get("combinedAnomaly") is None or record.get("referenceSetVersion") is None:
        return "it has no combined anomaly score"
    return None
