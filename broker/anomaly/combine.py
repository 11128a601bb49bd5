"""One score from all statistics, with its parts and a reason in plain words.

Each statistic becomes a surprise: minus the logarithm of the share of calibration stars, of the same modalities and
about as many points, that are as strange (``broker.anomaly.tails``). The sum of those by the nearest known stars, where
the distances of all spaces count together once, and by what modalities and catalogues disagree in is Fisher's (1932)
combination. Those of the network's uncertainty, of the light curve's shape, which owes the network nothing, and of how
few stars of any class lie about the object are combined with it as a harmonic mean combines probabilities (Wilson 2019,
PNAS 116, 1195): one of the four is enough. Since all depend on each other, the result is calibrated by the same stars,
not by a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibration import COMBINED, NOT_COUNTED, Calibration, Scorer, spaces_and_distances
from broker.anomaly.statistics import Objects, statistics_of
from broker.assemble.inputs import MODALITIES
from broker.taxonomy import CLASS_NAMES

REMARKABLE: Final = 0.95
"""Score from which there is something to say."""
_WORDS: Final = {
    "all": "all data together", "light_curve": "light curve", "spectrum": "spectrum", "metadata": "catalogue values",
}  # fmt: skip
_NEIGHBOURS_SAID: Final = "by {space}, far from the most alike known stars"
_RARER: Final = 1000
_SAID_OF_ALL: Final = {
    "shape": "period, amplitude and shape of the light curve together unlike those of known stars",
    "class_neighbours": "unlike the known stars of the classes that it is taken for",
    "density": "where there are few known stars of any class",
}
ALONE: Final = {"uncertainty": 1.0, "shape": 1.25, "density": 1.0}
"""What is strange by one of these is strange, whatever the sum says: what the network is sure of may be of no class.
Factors of their surprises; those of the sum's parts are 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """Combined scores of n objects."""

    score: NDArray[np.float64]
    """(n,) 0 to 1; NaN where there is none."""
    parts: list[dict[str, float]]
    """Of each object the scores, 0 to 1, of its statistics by name; empty where there is no score."""
    reasons: list[str | None]
    """What is strange, in plain words; None where there is no score."""
    after_answers: NDArray[np.float64] | None = None
    """(n,) scores after what people answered about similar objects (``broker.feedback``); None where nobody has."""
    answers: NDArray[np.intp] | None = None
    """(n,) how many answers raised a score, or negative, how many lowered it."""

    @staticmethod
    def none(size: int) -> Combined:
        """Of ``size`` objects that have no scores."""
        return Combined(np.full(size, np.nan), [{} for _ in range(size)], [None] * size)


def surprises_of(
    statistics: dict[str, NDArray[np.float64]], objects: Objects, calibration: Calibration
) -> dict[str, NDArray[np.float64]]:
    """(n,) of each statistic, NaN where it cannot be compared: with stars of the same stratum."""
    of_all = objects.strata()
    single = {
        name: objects.strata(column) for column, name in enumerate(MODALITIES) if f"{name}.centroid" in statistics
    }
    found: dict[str, NDArray[np.float64]] = {}
    for name, values in statistics.items():
        space, _, distance = name.rpartition(".")
        strata = single.get(space, of_all)
        column = f"all.{distance}" if space else name
        result = np.full(len(values), np.nan)
        there = ~np.isnan(values)
        for number in np.unique(strata[there]).tolist():
            tail = calibration.tails.get(number, {}).get(column)
            if tail is not None:
                rows = there & (strata == number)
                result[rows] = tail.surprise(values[rows])
        found[name] = result
    return found


def sums_of(surprises: dict[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) the surprises as one, without what a catalogue says, and with it; NaN where there is no distance of ``all``.

    The mean of the distances, that to the stars of each class, and the disagreement where there are several modalities
    are added up; of the sum and each of ALONE the largest counts most. Which are parts, and how they are combined, was
    chosen on one half of the test stars (docs/anomaly.md).
    """
    distances = np.stack([surprises[name] for name in spaces_and_distances() if name in surprises])
    known = ~np.isnan(distances)
    mean = np.where(known, distances, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    mean[np.isnan(surprises["all.neighbours"])] = np.nan
    total = mean + np.nan_to_num(surprises["class_neighbours"]) + np.nan_to_num(surprises["disagreement"])
    with_catalogue = total + surprises["catalogue"]
    for one in (total, with_catalogue):
        for name, factor in ALONE.items():
            both = ~np.isnan(one) & ~np.isnan(surprises[name])
            one[both] = np.logaddexp(one[both], factor * surprises[name][both])
    return total, with_catalogue


def combine(
    scorer: Scorer, objects: Objects, distance: NDArray[np.float32] | None = None, names: Sequence[str | None] = ()
) -> Combined:
    """Scores of ``objects``; ``distance`` (n,) as for ``statistics_of``.

    ``names`` (n,) says what a catalogue has at the place, such as ``VSX says EA``, for the reason. An object of several
    modalities has no score where the engine does not say what each is by itself. By a set that was made from the stream
    each object is scored by the calibration that has its stratum, else by that of the model's own set.
    """
    if scorer.base is None:
        return _combined(scorer, objects, distance, names)
    # Never by parts of both: what a sum of surprises is compared with was summed by the same calibration.
    own = np.isin(objects.strata(), scorer.own)
    found = Combined.none(len(own))
    for part, rows in ((scorer, np.flatnonzero(own)), (scorer.base, np.flatnonzero(~own))):
        if not len(rows):
            continue
        by_name = [names[row] for row in rows.tolist()] if len(names) else ()
        one = _combined(part, objects.take(rows), None if distance is None else distance[rows], by_name)
        found.score[rows] = one.score
        for row, parts, reason in zip(rows.tolist(), one.parts, one.reasons, strict=True):
            found.parts[row], found.reasons[row] = parts, reason
    return found


def _combined(
    scorer: Scorer, objects: Objects, distance: NDArray[np.float32] | None, names: Sequence[str | None]
) -> Combined:
    """As ``combine``, by the calibration of ``scorer`` alone."""
    statistics, leading = statistics_of(
        objects, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes, distance
    )
    surprises = surprises_of(statistics, objects, scorer.calibration)
    plain, with_catalogue = sums_of(surprises)
    several = objects.present.sum(axis=1) > 1
    if objects.by_modality is None:
        plain[several] = np.nan
    strata = objects.strata()
    # Without the catalogue where too few stars of the stratum are in one to compare with.
    named = [number for number, tails in scorer.calibration.tails.items() if COMBINED[1] in tails]
    known = ~np.isnan(with_catalogue) & ~np.isnan(plain) & np.isin(strata, named)
    surprise = np.full(len(plain), np.nan)
    for total, own, column in ((plain, ~known, COMBINED[0]), (with_catalogue, known, COMBINED[1])):
        for number in np.unique(strata[own & ~np.isnan(plain)]).tolist():
            tail = scorer.calibration.tails.get(number, {}).get(column)
            if tail is not None:
                rows = own & (strata == number)
                surprise[rows] = tail.surprise(total[rows])
    score = -np.expm1(-surprise)
    columns = list(surprises)
    counts = np.array([name.rpartition(".")[2] not in NOT_COUNTED for name in columns])
    table = np.stack([surprises[name] for name in columns], axis=1)
    shares = np.round(-np.expm1(-table), 6)
    parts: list[dict[str, float]] = []
    reasons: list[str | None] = []
    for row, (value, own_shares) in enumerate(zip(score.tolist(), shares.tolist(), strict=True)):
        if value != value:
            parts.append({})
            reasons.append(None)
            continue
        parts.append({name: part for name, part in zip(columns, own_shares, strict=True) if part == part})
        reasons.append(
            _reason(value, columns, counts, table[row], leading[row], objects, row, names[row] if len(names) else None)
        )
    return Combined(score, parts, reasons)


def _reason(
    score: float,
    columns: Sequence[str],
    counts: NDArray[np.bool_],
    surprises: NDArray[np.float64],
    leading: NDArray[np.intp],
    objects: Objects,
    row: int,
    catalogue: str | None,
) -> str:
    """What is most surprising of what counts; that nothing is, below REMARKABLE."""
    if score < REMARKABLE:
        return "nothing unusual among known stars with the same data"
    most = int(np.nanargmax(np.where(counts, surprises, np.nan)))
    name, surprise = columns[most], float(surprises[most])
    space = name.rpartition(".")[0]
    if space:
        said = _NEIGHBOURS_SAID.format(
            space=_WORDS[space if space != "all" or _several(objects, row) else _only(objects, row)]
        )
    elif name == "uncertainty":
        best = np.argsort(-objects.probabilities[row])[:3]
        said = "no class fits clearly: " + ", ".join(
            f"{CLASS_NAMES[i]} {objects.probabilities[row, i]:.2f}" for i in best
        )
    elif name == "disagreement":
        said = "the data name different classes: " + ", ".join(
            f"{_WORDS[modality]} {CLASS_NAMES[i]}" for modality, i in zip(MODALITIES, leading, strict=True) if i >= 0
        )
    elif name in _SAID_OF_ALL:
        said = _SAID_OF_ALL[name]
    else:
        said = f"{catalogue or 'a catalogue names another class'}, which the data do not look like"
    return f"{said} ({_one_in(surprise)} known stars with the same data is as strange in this)"


def _one_in(surprise: float) -> str:
    """The inverse of a share, to two digits; beyond what some hundred to 1,500 known stars can say, only that."""
    if surprise > np.log(_RARER):
        return f"fewer than 1 in {_RARER:,}"
    return f"1 in {float(f'{np.exp(surprise):.2g}'):,.0f}"


def _several(objects: Objects, row: int) -> bool:
    return bool(objects.present[row].sum() > 1)


def _only(objects: Objects, row: int) -> str:
    return MODALITIES[int(objects.present[row].argmax())]
