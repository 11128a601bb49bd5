"""What a reference set made from the stream changes for surveys that the model's own set has no stars of.

Each survey's labelled stars are taken for what its stream has shown, Cepheids and other strange ones among them, and
nothing is told of the labels: the model says what is of the ten classes, and of what it is sure. A tenth of the stars
is scored by the set that the others make, in turn. From light curves alone, which are real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from broker.anomaly.calibration import with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.statistics import Objects
from broker.assemble import assemble
from broker.inference import Engine
from broker.inference.manifest import Manifest
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.records import ObjectState
from broker.reference.check import combined_scores
from broker.reference.gather import SURE
from broker.reference.rebuild import Seen, rebuilt
from broker.reference.seen import seen_of
from broker.sky import separation
from broker.taxonomy import CLASS_NAMES
from training.datasets.multiband import LabelledObjects, first_points, has_archive, load_archive, load_packets, scored
from training.datasets.outside import gaia_stars, outside_of_ztf
from training.evaluate_anomaly import embedded_light_curves
from training.live.rows import random_points

FOLDS: Final = 10
SAME_STAR: Final = 2.0
"""Arcsec."""
CEPHEID: Final = "cepheid"
Report = Callable[[str], None]
CUTS: Final[Mapping[str, Callable[[LabelledObjects], LabelledObjects]]] = {
    "whole": lambda objects: objects,
    "first 20 points": lambda objects: first_points(objects, 20),
    "20 random points": lambda objects: random_points(objects, 20, 0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """n stars of one survey."""

    name: str
    objects: LabelledObjects
    strange: NDArray[np.bool_]
    """(n,) whether each is of none of the ten classes, which the set is not told."""
    more: LabelledObjects | None = None
    """Other stars that the stream has shown, which are not scored."""


def surveys(data: Path) -> list[Survey]:
    """Those of which ``data`` has files."""
    found: list[Survey] = []
    if has_archive(data, "eros2"):
        eros = load_archive(data, "eros2")
        found.append(Survey("EROS-2", eros, np.array([label == CEPHEID for label in eros.label], np.bool_)))
    if (data / "multiband" / "gaia_g_cbm.parquet").exists():
        cepheids, stars = gaia_stars(data)
        found.append(_together("Gaia", scored(stars), cepheids))
    if has_archive(data, "ztf_dr"):
        ztf = _together("ZTF", scored(load_archive(data, "ztf_dr")), outside_of_ztf(data))
        # Histories of alerts, most of them short: else no stratum has enough stars of this survey.
        found.append(replace(ztf, more=_others_than(ztf.objects, load_packets(data))))
    return found


def _others_than(known: LabelledObjects, more: LabelledObjects) -> LabelledObjects:
    """Those of ``more`` that are none of ``known``, by place: a star of the other folds must not be scored, too."""
    ra, dec = (np.array([getattr(state, axis) for state in known.states]) for axis in ("ra", "dec"))
    apart = [
        row
        for row, state in enumerate(more.states)
        if separation(np.full(len(ra), state.ra), np.full(len(ra), state.dec), ra, dec).min() > SAME_STAR
    ]
    return more.take(apart)


def _together(name: str, known: LabelledObjects, strange: LabelledObjects) -> Survey:
    columns = (np.concatenate([getattr(known, c), getattr(strange, c)]) for c in ("label", "quality", "original"))
    both = LabelledObjects(name, known.states + strange.states, *columns)
    return Survey(name, both, np.repeat([False, True], [len(known), len(strange)]))


def light_curves_alone(survey: Survey) -> tuple[LabelledObjects, NDArray[np.bool_]]:
    """The stars with enough points, without what else is known of them, and which are strange."""
    kept = [row for row, state in enumerate(survey.objects.states) if assemble([state]).light_curve.present[0]]
    usable = survey.objects.take(kept)
    return replace(usable, states=_states_alone(usable.states)), survey.strange[kept]


def _states_alone(states: list[ObjectState]) -> list[ObjectState]:
    return [replace(state, metadata=None, spectrum=None, known_as=()) for state in states]


def told(engine: Engine, manifest: Manifest, states: list[ObjectState]) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """(n,) what the model says of each whole light curve, empty where that is Other, and how probable it is."""
    names, probabilities = [], []
    for first in range(0, len(states), 256):
        inputs = assemble(states[first : first + 256]).only("light_curve")
        found = engine.predict(inputs)
        curve = inputs.light_curve
        other = manifest.called_other(
            found.other.astype(np.float64), inputs.present, curve.detections, curve.is_difference, None
        )
        names.append(np.where(other, "", np.array(CLASS_NAMES)[found.probabilities.argmax(axis=1)]))
        probabilities.append(found.probabilities.max(axis=1).astype(np.float64))
    return np.concatenate(names), np.concatenate(probabilities)


def evaluate_reference(repository: Path, data: Path, report: Report) -> str:
    """A table by survey and length, as Markdown."""
    engine = OnnxEngine(repository)
    path = repository / REFERENCE_SET_FILE
    base = with_scores(ReferenceSet.load_npz(path, engine.manifest.reference_set_sha256), path)
    lines = [
        "| light curves | known | strange | 0.9 and more: own set | from the stream | 0.99 and more: own set "
        "| from the stream | AUROC: own set | from the stream |",
        f"|---|{'---:|' * 8}",
    ]
    for survey in surveys(data):
        report(f"{survey.name}: {len(survey.objects)} stars")
        usable, strange = light_curves_alone(survey)
        names = [f"{survey.name}:{state.object_id}" for state in usable.states]
        states = usable.states + _states_alone([] if survey.more is None else survey.more.states)
        classes, probability = told(engine, engine.manifest, states)
        every = [f"{survey.name}:{state.object_id}" for state in states]
        seen = seen_of(engine, every, states, classes.tolist(), (probability >= SURE).tolist())
        alone = ~seen.objects.present[:, 1:].any(axis=1) & (seen.class_names != "")
        cuts = {cut: embedded_light_curves(engine, change(usable)) for cut, change in CUTS.items()}
        scores = _cross_validated(base, seen.take(np.flatnonzero(alone)), names, cuts, report)
        for cut, (before, after) in scores.items():
            lines.append(_line(f"{survey.name}, {cut}", strange, before, after))
    engine.close()
    return "\n".join(lines) + "\n"


def _cross_validated(
    base: ReferenceSet, seen: Seen, names: list[str], cuts: Mapping[str, Objects], report: Report
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scores (n,) of each cut by ``base``, and by a set of the objects that are not of the same fold."""
    fold = np.random.default_rng(0).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, fold.tolist(), strict=True))
    of_seen = np.array([fold_of.get(name, -1) for name in seen.names.tolist()])
    after = {cut: np.full(len(names), np.nan) for cut in cuts}
    for number in range(FOLDS):
        report(f"fold {number + 1} of {FOLDS}")
        made = rebuilt(base, seen.take(np.flatnonzero(of_seen != number)))
        rows = np.flatnonzero(fold == number)
        for cut, objects in cuts.items():
            after[cut][rows] = combined_scores(made, objects.take(rows))
    return {cut: (combined_scores(base, objects), after[cut]) for cut, objects in cuts.items()}


def _line(name: str, strange: NDArray[np.bool_], before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    there = ~np.isnan(before) & ~np.isnan(after)
    known = there & ~strange
    shares = [f"{np.mean(score[known] >= high):.3f}" for high in (0.9, 0.99) for score in (before, after)]
    auroc = [f"{roc_auc_score(strange[there], score[there]):.3f}" for score in (before, after)]
    return f"| {name} | {known.sum()} | {(there & strange).sum()} | {' | '.join([*shares, *auroc])} |"
