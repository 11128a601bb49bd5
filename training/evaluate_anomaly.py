"""How well anomaly scores tell what is of none of the ten classes, and a class that nothing was trained on.

From light curves alone, which are real; scores are those of the service's own code, or for a class left out, of a set
and a calibration made by the same code with an encoder that has not seen the class (``training.leave_out``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from torch import Tensor

from broker.anomaly.calibration import Scorer, with_scores
from broker.anomaly.combine import sums_of, surprises_of
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.shape import shapes_of
from broker.anomaly.statistics import Objects, statistics_of
from broker.anomaly.strata import DETECTION_BINS, known_values
from broker.assemble import assemble
from broker.errors import ConfigurationError
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.multiband import LabelledObjects, first_points, has_archive, load_archive, scored
from training.datasets.outside import gaia_stars, outside_of_archive, outside_of_ztf
from training.datasets.splits import split
from training.datasets.tables import ObjectTable, load_objects
from training.encoders.trimodal import LIGHT_CURVE_ONLY, Trimodal
from training.leave_out import left_out_classes, load_without
from training.live.rows import random_points
from training.prepare import PreparedLightCurves, prepare_light_curves
from training.reference import Embedded, objects_of, reference_of
from training.reference_stars import QUOTAS, quotas

SCORES: Final = {
    "all.neighbours": "kNN", "all.mahalanobis": "Mahalanobis", "all.centroid": "centroid", "uncertainty": "uncertainty",
    "class_neighbours": "by class", "density": "density", "shape": "shape", "combined": "combined",
    "forest": "isolation forest",
}  # fmt: skip
CHUNK: Final = 256
STARS_OF_SURVEY: Final = 1500
TOP: Final = 50
CHOICE_SEED: Final = 5
"""Of the draw that divides the test stars into those for choices and those for these tables."""
ABOUT_20: Final = (16, 25)

Report = Callable[[str], None]
Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    name: str
    inside: int
    outside: int
    auroc: dict[str, float]
    precision: dict[str, float]
    """Of the TOP highest, the share that is outside."""


def scores_of(scorer: Scorer, objects: Objects) -> Values:
    """Each of SCORES (n,), large where strange; NaN where the reference set can give none.

    The isolation forest (Liu, Ting & Zhou 2008) is of the reference embeddings of the stratum, as the others are.
    """
    statistics, _ = statistics_of(
        objects, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes
    )
    surprises = surprises_of(statistics, objects, scorer.calibration)
    plain, _ = sums_of(surprises)
    strata = objects.strata()
    combined, forest = np.full(len(strata), np.nan), np.full(len(strata), np.nan)
    for number in np.unique(strata).tolist():
        stratum, tail = scorer.reference.strata.get(number), scorer.calibration.tails.get(number, {}).get("combined")
        if tail is None or stratum is None or stratum.problem is not None:
            continue
        own = strata == number
        combined[own] = tail.surprise(plain[own])
        trees = IsolationForest(random_state=0).fit(stratum.embeddings)
        forest[own] = -trees.score_samples(objects.embeddings[own])
    return {**{name: surprises[name] for name in SCORES if name in surprises}, "combined": combined, "forest": forest}


def row_of(name: str, values: Values, outside: NDArray[np.bool_]) -> Row:
    """AUROC and precision of each score; objects without a combined one are left out.

    Where a part is unknown of any of the others, as the shape of short light curves is, it has NaN.
    """
    there = ~np.isnan(values["combined"])
    auroc, precision = {}, {}
    for score, column in values.items():
        known = not np.isnan(column[there]).any()
        auroc[score] = float(roc_auc_score(outside[there], column[there])) if known else float("nan")
        top = np.argsort(-column[there], kind="stable")[:TOP]
        precision[score] = float(outside[there][top].mean())
    return Row(name, int((~outside & there).sum()), int((outside & there).sum()), auroc, precision)


def markdown(rows: Sequence[Row], first: str) -> str:
    """AUROC of every score, and precision of the combined one and of the isolation forest."""
    lines = [
        f"| {first} | known | strange | {' | '.join(SCORES.values())} "
        f"| of the top {TOP}: combined | isolation forest |",
        f"|---|---:|---:|{'---:|' * len(SCORES)}---:|---:|",
    ]
    for r in rows:
        cells = " | ".join("" if np.isnan(r.auroc[name]) else f"{r.auroc[name]:.3f}" for name in SCORES)
        lines.append(
            f"| {r.name} | {r.inside} | {r.outside} | {cells} | {r.precision['combined']:.2f} "
            f"| {r.precision['forest']:.2f} |"
        )
    return "\n".join(lines) + "\n"


class StarsBySurvey:
    """Stars of the ten classes and others, by survey; none of their light curves was seen by the encoder."""

    def __init__(self, data: Path) -> None:
        table = load_objects(data)
        labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
        test = split(table, 0)[2]
        test = np.random.default_rng(0).permutation(test[labels.scored[test]])
        css, asas = (test[table.survey[test] == name][:STARS_OF_SURVEY] for name in ("css", "asas"))
        self.asas = _of_table(table, asas)
        self.pairs = {"Catalina": (_of_table(table, css), outside_of_archive(table, data))}
        if has_archive(data, "ztf_dr"):
            self.pairs["ZTF"] = (scored(load_archive(data, "ztf_dr")), outside_of_ztf(data))
        if (data / "multiband" / "gaia_g_cbm.parquet").exists():
            cepheids, stars = gaia_stars(data)
            self.pairs["Gaia"] = (scored(stars), cepheids)


def _of_table(table: ObjectTable, rows: NDArray[np.intp]) -> LabelledObjects:
    none = np.full(len(rows), None, object)
    return LabelledObjects("archive", table.states(rows), table.label[rows], table.label_quality[rows], none)


def embedded_light_curves(engine: OnnxEngine, objects: LabelledObjects) -> Objects:
    """Objects from their light curves alone, those that have enough points."""
    parts = []
    for first in range(0, len(objects), CHUNK):
        inputs = assemble(objects.states[first : first + CHUNK]).only("light_curve")
        found = engine.predict(inputs)
        own = np.flatnonzero(found.probabilities.any(axis=1))
        parts.append(
            Objects(
                found.embeddings[own], None, found.probabilities[own], inputs.present[own],
                inputs.light_curve.detections[own], known_values(inputs.metadata)[own], np.full(len(own), np.nan),
                shapes_of(inputs.light_curve.features, inputs.light_curve.detections)[own],
            )
        )  # fmt: skip
    columns = ([getattr(p, name) for p in parts] for name in Objects.__slots__)
    embeddings, _, *rest = columns
    return Objects(np.concatenate(embeddings), None, *(np.concatenate(c) for c in rest))


def load_scorer(repository: Path, engine: OnnxEngine) -> Scorer:
    """What scores by the repository's reference set; raises ConfigurationError where nothing calibrates its scores."""
    reference = ReferenceSet.load_npz(repository / REFERENCE_SET_FILE, engine.manifest.reference_set_sha256)
    reference = with_scores(reference, repository / REFERENCE_SET_FILE)
    if reference.scores is None:
        raise ConfigurationError(f"{repository} has no calibration of combined scores: run `reference-set`")
    return Scorer(reference, reference.scores)


def outside_the_ten(repository: Path, data: Path, report: Report) -> str:
    """Tables of all surveys, whole light curves and 20 points, and how even the scores of known stars are."""
    engine = OnnxEngine(repository)
    scorer = load_scorer(repository, engine)
    sets = StarsBySurvey(data)
    cuts: dict[str, Callable[[LabelledObjects], LabelledObjects]] = {
        "whole": lambda objects: objects,
        "first 20 points": lambda objects: first_points(objects, 20),
        "20 random points": lambda objects: random_points(objects, 20, 0),
    }
    rows, even = [], []
    for cut, change in cuts.items():
        values: list[Values] = []
        outside: list[NDArray[np.bool_]] = []
        for survey, (known, others) in sets.pairs.items():
            report(f"{survey}, {cut}")
            inside, strange = (embedded_light_curves(engine, change(part)) for part in (known, others))
            found = [scores_of(scorer, part) for part in (inside, strange)]
            values.append({name: np.concatenate([f[name] for f in found]) for name in SCORES})
            outside.append(np.repeat([False, True], [len(inside.embeddings), len(strange.embeddings)]))
            rows.append(row_of(f"{survey}, {cut}", values[-1], outside[-1]))
            even.append(_even(f"{survey}, {cut}", found[0]["combined"]))
        asas = scores_of(scorer, embedded_light_curves(engine, change(sets.asas)))
        even.append(_even(f"ASAS, {cut}", asas["combined"]))
        values.append(asas)
        outside.append(np.zeros(len(asas["combined"]), np.bool_))
        pooled = {name: np.concatenate([v[name] for v in values]) for name in SCORES}
        rows.append(row_of(f"all surveys and ASAS's known stars, {cut}", pooled, np.concatenate(outside)))
    engine.close()
    return f"{markdown(rows, 'light curves')}\n{_even_table(even)}"


def _even(name: str, surprise: NDArray[np.float64]) -> tuple[str, int, float, float, float]:
    score = -np.expm1(-surprise[~np.isnan(surprise)])
    distance = float(kstest(score, "uniform").statistic)
    return name, len(score), distance, float(np.mean(score >= 0.9)), float(np.mean(score >= 0.99))


def _even_table(rows: Sequence[tuple[str, int, float, float, float]]) -> str:
    lines = [
        "| known stars | number | largest distance from uniform | combined score 0.9 and more | 0.99 and more |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {name} | {n} | {d:.3f} | {ninety:.3f} | {most:.3f} |" for name, n, d, ninety, most in rows]
    return "\n".join(lines) + "\n"


def classes_left_out(models: Path, shared: Path, versions: int, report: Report) -> str:
    """Tables of each class that an encoder in ``models`` has not seen: test stars of ASAS and Catalina.

    Of the test stars one half: with the other half the parts of the combined score were chosen, and how many stars of
    each class are in a set. The set is chosen as ``training.reference_stars`` chooses, in each stratum.
    """
    table, labels, (training, validation, test), curves = prepared_stars(models, shared / "data", versions)
    reported = np.random.default_rng(CHOICE_SEED).random(len(table)) >= 0.5
    test = test[reported[test]]
    rng = np.random.default_rng([0, 31])
    tables = []
    for title, length in (("whole", None), ("about 20 points", ABOUT_20)):
        rows = []
        for name in left_out_classes(models):
            report(f"without {name}, {title}")
            scorer, stars, row = stars_without(
                models, name, curves, table, labels, (training, validation, test), length, 1500, rng, report
            )
            rows.append(row_of(name, scores_of(scorer, stars), labels.index[row] == CLASS_NAMES.index(name)))
        mean = {score: float(np.mean([r.auroc[score] for r in rows])) for score in SCORES}
        precision = {score: float(np.mean([r.precision[score] for r in rows])) for score in SCORES}
        rows.append(Row("mean", 0, 0, mean, precision))
        tables.append(markdown(rows, f"left out, {title}"))
    return "\n".join(tables)


def prepared_stars(
    models: Path, data: Path, versions: int
) -> tuple[ObjectTable, Labels, tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]], PreparedLightCurves]:
    """The stars of ASAS and Catalina, their labels, the rows of training, validation and test, and their light curves.

    As ``train-without`` prepared these, ``versions`` of each, beside the folder ``models``.
    """
    table = load_objects(data)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    parts = split(table, 0)
    shown = np.full(len(table), None, object)
    shown[parts[0]] = table.label[parts[0]]
    curves = prepare_light_curves(table.light_curves, list(shown), versions, models.parent / "light_curves", data)
    return table, labels, parts, curves


def stars_without(
    models: Path, name: str, curves: PreparedLightCurves, table: ObjectTable, labels: Labels,
    parts: Sequence[NDArray[np.intp]], length: tuple[int, int] | None, most: int, rng: np.random.Generator,
    report: Report,
) -> tuple[Scorer, Objects, NDArray[np.intp]]:  # fmt: skip
    """What scores by the encoder without the class ``name``, ``most`` stars to be scored, and their rows of the table.

    ``parts`` are rows for the set, for its calibration, neither of the class, and of stars that are scored, of all.
    """
    gone = CLASS_NAMES.index(name)
    sample = []
    for part, with_gone in zip(parts, (False, False, True), strict=True):
        version, row = histories(curves, part[labels.scored[part]], length)
        order = rng.permutation(np.flatnonzero((labels.index[row] != gone) | with_gone))
        sample.append((version[order], row[order]))
    sample[0] = _as_in_a_set(*sample[0], curves.detections, labels.index)
    model = load_without(models, name)
    own, other, tested = (
        _embed_prepared(model, curves, version[:total], row[:total])
        for (version, row), total in zip(sample, (len(sample[0][0]), 1000, most), strict=True)
    )
    reference = reference_of(own, other, table, labels, f"without {name}", "0", report)
    assert reference.scores is not None
    stars = replace(objects_of(tested, labels.index[tested.rows]), doubt=np.full(len(tested.rows), np.nan))
    return Scorer(reference, reference.scores), stars, tested.rows


def histories(
    curves: PreparedLightCurves, star: NDArray[np.intp], length: tuple[int, int] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Versions and rows of usable histories of the rows ``star``: whole, or of a ``length`` in points, both ends in."""
    if length is None:
        version, row = np.zeros(len(star), np.intp), star
    else:
        points = curves.detections[1:, star]
        changed, column = np.nonzero((points >= length[0]) & (points <= length[1]))
        version, row = changed + 1, star[column]
    there = np.array(curves.present[version, row])
    return version[there], row[there]


def _as_in_a_set(
    version: NDArray[np.intp], row: NDArray[np.intp], detections: NDArray[np.integer], label: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of histories those of a reference set: in each range of lengths so many of each class as ``quotas`` says.

    ``detections`` (v, n) are those of each version and row, ``label`` (n,) each row's class.
    """
    length = np.searchsorted(DETECTION_BINS[1:], detections[version, row], side="right")
    chosen = []
    for number in np.unique(length):
        own = np.flatnonzero(length == number)
        shares = np.bincount(label[row[own]], minlength=len(CLASS_NAMES)) / len(own)
        most = quotas(shares, QUOTAS[LIGHT_CURVE_ONLY], DETECTION_BINS[number])
        chosen += [own[label[row[own]] == c][: most[c]] for c in range(len(CLASS_NAMES))]
    rows = np.concatenate(chosen)
    return version[rows], row[rows]


@torch.no_grad()
def light_curve_embeddings(
    model: Trimodal, curves: PreparedLightCurves, version: NDArray[np.intp], row: NDArray[np.intp]
) -> Tensor:
    """(n, d) of prepared histories, a batch at once."""
    points, folded, features = (
        torch.from_numpy(np.asarray(array[version, row], np.float32))
        for array in (curves.points, curves.folded, curves.features)
    )
    mask = torch.from_numpy(np.asarray(curves.points_mask[version, row]))
    result: Tensor = model.light_curve_encoder(points, mask, folded, features).float()
    return result


def stacked_light_curves(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 3, d) and (n, 3) as classifiers take them, of ``embeddings`` (n, d) of light curves alone."""
    nothing = torch.zeros_like(embeddings)
    return torch.stack([embeddings, nothing, nothing], dim=1), torch.tensor(LIGHT_CURVE_ONLY).expand(len(nothing), -1)


@torch.no_grad()
def _embed_prepared(
    model: Trimodal, curves: PreparedLightCurves, version: NDArray[np.intp], row: NDArray[np.intp]
) -> Embedded:
    """Prepared histories by the encoder and the head of ``model``, from light curves alone."""
    embeddings, probabilities = [], []
    for first in range(0, len(row), CHUNK):
        v, r = version[first : first + CHUNK], row[first : first + CHUNK]
        embedding = light_curve_embeddings(model, curves, v, r)
        logits = model.classifier.logits(*stacked_light_curves(embedding))
        embeddings.append(embedding.numpy())
        probabilities.append(logits.softmax(dim=1).numpy())
    whole = np.concatenate(embeddings)
    by_modality = np.zeros((len(row), 3, whole.shape[1]), np.float16)
    by_modality[:, 0] = whole
    return Embedded(
        row,
        np.ones(len(row), np.bool_),
        whole,
        np.ones(len(row), np.uint8),
        np.asarray(curves.detections[version, row], np.int32),
        np.zeros(len(row), np.int32),
        by_modality,
        np.concatenate(probabilities),
        shapes_of(np.asarray(curves.features[version, row]), np.asarray(curves.detections[version, row])),
    )
