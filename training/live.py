"""Scores on what a broker sees: real ZTF packets, archives in several bands, first and random parts of them.

Every row goes the way of the service: its readers, its assembly, its engine, its prediction sets. Where a star was used
to train the published head, it is scored by a model of a fold that has not seen it (``training.stream``); other stars,
such as those that are kept back, by the published one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import track
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score, recall_score
from sklearn.model_selection import StratifiedKFold

from broker.assemble import assemble
from broker.assemble.history import history_features
from broker.assemble.lightcurve import usable_points
from broker.assemble.metadata import MODEL_FEATURES, SOURCE_FEATURES, galactic, raw_values, widened
from broker.bands import BAND_CODE
from broker.barycentre import barycentric_light_curves
from broker.inference.manifest import Manifest, load_manifest
from broker.inference.onnx import OnnxEngine
from broker.physics import plausible_period, rule_out
from broker.records import ObjectState, PhotometryKind, SourceMetadata
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.calibrate import expected_calibration_error
from training.data import Labels
from training.datasets.multiband import (
    ALERT_LABELS,
    ARCHIVES,
    LabelledObjects,
    has_archive,
    in_bands_of,
    load_archive,
    load_packets,
)
from training.datasets.splits import part_of_each, split
from training.datasets.tables import TIME_SYSTEM, load_objects
from training.detections import first_detections
from training.evaluate import TEST_SETS
from training.other_scores import OtherAnswers, OtherScore
from training.other_scores import markdown as others_markdown
from training.simulate.catalogues import catalogue_values

PARENTS: dict[str, tuple[str, ...]] = {
    "rr_lyrae": ("RRAB", "RRC"),
    "eclipsing": ("EA", "EB", "EW"),
    "long_period": ("M", "SR"),
}
"""Names of EROS-2's classes, and which of ours they hold."""
PREFACE = """Real stars with labels of the AAVSO's VSX or of a survey's own experts, none of them simulated but where
a row says so, as the service classifies them: its readers, assembly, ONNX Runtime and prediction sets. Stars that the
model was trained on are scored by a model of a fold that has not seen them. NotClassified counts as wrong. The packet
forest is a random forest on the same values as the model's metadata, cross-validated on the same packets."""
PACKET_ROWS = (
    ("below 5", 0, 5), ("5 to 9", 5, 10), ("10 to 19", 10, 20), ("20 and more", 20, 10**6),
    ("below 10", 0, 10), ("10 and more", 10, 10**6),
)  # fmt: skip
"""Names and bounds of the numbers of detections in packets; the last two hold the others."""
FIRST = (2, 5, 10, 20, 50, 100, 200)
"""Numbers of first detections in the figure."""
_PACKET_ROW = "ZTF packets"
_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the service says of n objects."""

    probabilities: NDArray[np.float64]
    """(n, 10), zero where NotClassified."""
    in_set: NDArray[np.bool_]
    """(n, 10) which classes the prediction set holds."""
    detections: NDArray[np.int32]
    period: NDArray[np.float64]
    """(n,) as published, NaN for none."""


Classify = Callable[[LabelledObjects], Answers]
T = TypeVar("T")


class Repository:
    """A model repository, as the service uses it."""

    def __init__(self, path: Path) -> None:
        self._manifest: Manifest = load_manifest(path)
        self._engine = OnnxEngine(path)

    def __call__(self, objects: LabelledObjects) -> Answers:
        """Classify each object from its state."""
        parts = []
        for first in range(0, len(objects), _BATCH):
            inputs = assemble(objects.states[first : first + _BATCH])
            predictions = self._engine.predict(inputs)
            probabilities, period = rule_out(predictions.probabilities, inputs.light_curve)
            sets = self._manifest.prediction_sets(probabilities, inputs.present, inputs.light_curve.detections)
            in_set = np.array([[name in own for name in CLASS_NAMES] for own in sets], np.bool_)
            parts.append((probabilities.astype(np.float64), in_set, inputs.light_curve.detections, period))
        return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def others(self, objects: LabelledObjects) -> OtherAnswers:
        """What the model says of each object being none of the ten."""
        threshold = self._manifest.other_threshold
        parts = []
        for first in range(0, len(objects), _BATCH):
            inputs = assemble(objects.states[first : first + _BATCH])
            predictions = self._engine.predict(inputs)
            other = predictions.other.astype(np.float64)
            is_other = np.zeros(len(other), np.bool_) if threshold is None else other >= threshold
            parts.append((other, predictions.probabilities.astype(np.float64), inputs.light_curve.detections, is_other))
        return OtherAnswers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class CrossValidated:
    """Each star by the model that has not seen it: a repository for each fold, and one for stars in none."""

    def __init__(self, published: Path, folds: Path) -> None:
        """``folds`` is a folder of repositories ``0``, ``1``, ... with ``folds.json``: the fold of each star."""
        self._fold: dict[str, int] = json.loads((folds / "folds.json").read_text())
        self._models: list[Repository] = [Repository(folds / str(k)) for k in range(max(self._fold.values()) + 1)]
        self._published: Repository = Repository(published)

    def __call__(self, objects: LabelledObjects) -> Answers:
        """Classify each object from its state."""
        names, parts, back = Answers.__slots__, *self._by_fold(objects, Repository.__call__)
        return Answers(*(np.concatenate([getattr(part, name) for part in parts])[back] for name in names))

    def others(self, objects: LabelledObjects) -> OtherAnswers:
        """What the models say of each object being none of the ten."""
        names, parts, back = OtherAnswers.__slots__, *self._by_fold(objects, Repository.others)
        return OtherAnswers(*(np.concatenate([getattr(part, name) for part in parts])[back] for name in names))

    def _by_fold(
        self, objects: LabelledObjects, ask: Callable[[Repository, LabelledObjects], T]
    ) -> tuple[list[T], NDArray[np.intp]]:
        """The answers of each fold's model, and the order that brings them back to that of the objects."""
        fold = np.array([self._fold.get(state.object_id, -1) for state in objects.states])
        order, parts = [], []
        for number in np.unique(fold).tolist():
            rows = np.flatnonzero(fold == number)
            order.append(rows)
            parts.append(ask(self._published if number < 0 else self._models[number], objects.take(rows)))
        return parts, np.argsort(np.concatenate(order))


@dataclass(frozen=True, slots=True)
class LiveScore:
    """One row of the table. Accuracy counts NotClassified as wrong; the other scores are over all objects, too."""

    data: str
    objects: int
    detections: float
    """Median number of usable detections."""
    accuracy: float
    macro_f1: float
    mean_probability: float
    """Of the leading class; 0 where NotClassified."""
    expected_calibration_error: float
    coverage: float
    set_size: float
    not_classified: int
    impossible: int
    """Objects whose leading class physics rules out at the published period."""
    recall: dict[str, float] = field(default_factory=dict)
    class_counts: dict[str, int] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    """Accuracy of the baselines on the same objects."""


def live_score(name: str, objects: LabelledObjects, answers: Answers, groups: Mapping[str, Sequence[str]]) -> LiveScore:
    """Scores of one row, over ``groups`` of classes: each class by itself, or parents, of which the sums count."""
    names = list(groups)
    summed = np.stack(
        [answers.probabilities[:, [CLASS_INDEX[c] for c in groups[n]]].sum(axis=1) for n in names], axis=1
    )
    in_set = np.stack([answers.in_set[:, [CLASS_INDEX[c] for c in groups[n]]].any(axis=1) for n in names], axis=1)
    label = np.array([names.index(own) for own in objects.label])
    classified: NDArray[np.bool_] = np.any(answers.probabilities, axis=1)
    best = np.where(classified, summed.argmax(axis=1), -1)
    present = np.unique(label)
    recall = recall_score(label, best, labels=present, average=None, zero_division=0.0)
    leading = np.array(CLASS_NAMES, object)[answers.probabilities.argmax(axis=1)]
    impossible = [
        not plausible_period(str(lead), period)
        for lead, period, good in zip(leading, answers.period.tolist(), classified, strict=True)
        if good and period == period
    ]
    return LiveScore(
        data=name,
        objects=len(label),
        detections=float(np.median(answers.detections)),
        accuracy=float(np.mean(best == label)),
        macro_f1=float(f1_score(label, best, labels=present, average="macro", zero_division=0.0)),
        mean_probability=float(summed.max(axis=1).mean()),
        expected_calibration_error=expected_calibration_error(summed, label, bins=10),
        coverage=float(np.mean(in_set[np.arange(len(label)), label])),
        set_size=float(in_set.sum(axis=1).mean()),
        not_classified=int(np.sum(~classified)),
        impossible=sum(impossible),
        recall={names[c]: float(r) for c, r in zip(present, recall, strict=True)},
        class_counts={names[c]: int(np.sum(label == c)) for c in present},
    )


CLASSES_THEMSELVES: dict[str, tuple[str, ...]] = {name: (name,) for name in CLASS_NAMES}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of the table, before it is scored."""

    name: str
    objects: LabelledObjects
    groups: Mapping[str, Sequence[str]]


def live_rows(data: Path, seed: int = 0) -> list[Row]:
    """All rows for which ``data`` has files; those of stars whose label may be scored."""
    sets = {name: load_archive(data, name) for name in ARCHIVES if has_archive(data, name)}
    sets |= {"packets": load_packets(data)} if (data / "multiband" / ALERT_LABELS).exists() else {}
    ten = {name: scored(objects) for name, objects in sets.items()}
    rows: list[tuple[str, LabelledObjects]] = []
    if "ztf_dr" in ten:
        ztf = ten["ztf_dr"]
        rows.append(("ZTF data release, all points", ztf))
        long = ztf.take([i for i, s in enumerate(ztf.states) if len(s.light_curve) >= 50])
        for n in (50, 20):
            rows.append((f"ZTF data release, {n} random points", random_points(long, n, seed)))
            rows.append((f"ZTF data release, first {n} points", first_points(long, n)))
        rows.append(("ZTF data release, 20 random points in r", random_points(only_band(long, "ztf:r"), 20, seed)))
    if "ztf_rebuilt" in ten:
        rows.append(("rebuilt from ZTF alerts", ten["ztf_rebuilt"]))
    if "packets" in ten:
        packets = ten["packets"]
        count = np.array([np.sum(s.light_curve.kind != PhotometryKind.LIMIT) for s in packets.states])
        for name, low, high in PACKET_ROWS:
            rows.append(
                (f"{_PACKET_ROW}, {name} detections", packets.take(np.flatnonzero((count >= low) & (count < high))))
            )
    if "stripe82" in ten:
        rows.append(("Stripe 82 RR Lyrae as sdss:*", ten["stripe82"]))
        rows.append(("Stripe 82 RR Lyrae as lsst:*", in_bands_of(ten["stripe82"], "sdss", "lsst")))
    if "asassn" in ten:
        rows.append(("ASAS-SN", ten["asassn"]))
    if (data / "asas_v.parquet").exists():
        rows += one_band_tests(data)
    found = [Row(name, objects, CLASSES_THEMSELVES) for name, objects in rows]
    if "eros2" in sets:
        eros = sets["eros2"]
        known = eros.take([i for i, parent in enumerate(eros.label) if parent in PARENTS])
        found.append(Row("EROS-2, by parent", known, PARENTS))
    return [row for row in found if len(row.objects)]


def one_band_tests(data: Path) -> list[tuple[str, LabelledObjects]]:
    """The test stars of ASAS and Catalina, which no model was trained on, as in ``training.run``.

    Alone, and with catalogue values, of which most are those of a donor of the class that no other stars share.
    """
    table = load_objects(data)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    splits = split(table, 0)
    test = splits[2]
    values, _ = catalogue_values(table, data, part_of_each(len(table), splits), np.random.default_rng(0))
    values = widened(values)[:, : len(SOURCE_FEATURES)].astype(np.float32)
    tests = []
    for survey, name in TEST_SETS.items():
        rows = test[labels.scored[test] & (table.survey[test] == survey)]
        states = [
            ObjectState(
                str(table.object_id[i]),
                float(table.ra[i]),
                float(table.dec[i]),
                table.light_curves[i],
                time_system=TIME_SYSTEM,
            )
            for i in rows
        ]
        none = np.full(len(rows), None, object)
        alone = LabelledObjects(survey, states, table.label[rows], table.label_quality[rows], none)
        catalogued = [replace(s, metadata=SourceMetadata(values[i])) for s, i in zip(states, rows, strict=True)]
        tests.append((f"{name}, one band, held-out stars", alone))
        tests.append((f"{name}, with catalogue values (partly simulated)", replace(alone, states=catalogued)))
    return tests


def scored(objects: LabelledObjects) -> LabelledObjects:
    """Those with a label among the ten that is not weak."""
    return objects.take([i for i, c in enumerate(objects.label) if c in CLASS_INDEX and objects.quality[i] != "weak"])


def first_points(objects: LabelledObjects, n: int) -> LabelledObjects:
    """The light curves up to their ``n``-th detection."""
    return objects.with_light_curves([first_detections(s.light_curve, n) for s in objects.states])


def random_points(objects: LabelledObjects, n: int, seed: int) -> LabelledObjects:
    """``n`` points of each light curve, wherever they are; of shorter ones all."""
    curves = []
    for row, state in enumerate(objects.states):
        size = len(state.light_curve)
        chosen = np.random.default_rng([seed, n, row]).permutation(size)[:n]
        curves.append(state.light_curve.take(np.sort(chosen)))
    return objects.with_light_curves(curves)


def only_band(objects: LabelledObjects, band: str) -> LabelledObjects:
    """The points in one band."""
    code = BAND_CODE[band]
    return objects.with_light_curves(
        [s.light_curve.take(np.flatnonzero(s.light_curve.band == code)) for s in objects.states]
    )


def packet_forest(objects: LabelledObjects, seed: int = 0, folds: int = 5) -> dict[str, bool]:
    """Whether a random forest on what the packets say names the right class of each object, cross-validated by star.

    It has the values that the model's third modality has (colours, magnitudes, star score, galactic latitude, counts,
    ranges), and no period or shape. Classes with fewer stars than folds are in training as they fall.
    """
    points = usable_points(barycentric_light_curves(objects.states))
    values = raw_values([s.metadata for s in objects.states], history_features(points))
    _, sin_b = galactic(np.array([s.ra for s in objects.states]), np.array([s.dec for s in objects.states]))
    values[:, MODEL_FEATURES.index("sin_b")] = np.abs(sin_b)
    values = np.where(np.isfinite(values), values, -99.0)
    label = objects.label.astype(str)
    predicted = np.empty(len(label), label.dtype)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in splits.split(values, label):
        forest = RandomForestClassifier(500, min_samples_leaf=2, max_features=0.3, random_state=seed, n_jobs=-1)
        predicted[test] = forest.fit(values[train], label[train]).predict(values[test])
    return dict(zip((s.object_id for s in objects.states), (predicted == label).tolist(), strict=True))


def evaluate_live(classify: Classify, data: Path, seed: int = 0) -> list[LiveScore]:
    """All rows, scored; see ``live_rows``."""
    rows = live_rows(data, seed)
    packets = [row.objects for row in rows if row.name.startswith(_PACKET_ROW)][-2:]
    right = packet_forest(joined(packets), seed) if packets else {}
    scores = []
    for row in track(rows, "Scoring"):
        score = live_score(row.name, row.objects, classify(row.objects), row.groups)
        if row.name.startswith(_PACKET_ROW):
            score.baselines["packet forest"] = float(np.mean([right[s.object_id] for s in row.objects.states]))
        scores.append(score)
    return scores


def joined(parts: Sequence[LabelledObjects]) -> LabelledObjects:
    """Objects of several sets as one."""
    states = [state for part in parts for state in part.states]
    columns = (np.concatenate([getattr(p, name) for p in parts]) for name in ("label", "quality", "original"))
    return LabelledObjects(parts[0].name, states, *columns)


def first_detections_scores(classify: Classify, data: Path) -> dict[str, list[LiveScore]]:
    """Scores after the first N detections of each star, N in FIRST, by set: what the figure shows."""
    result = {}
    for name, title in (
        ("ztf_dr", "ZTF data release"),
        ("stripe82", "Stripe 82 RR Lyrae"),
        ("ztf_rebuilt", "ZTF rebuilt"),
    ):
        if has_archive(data, name):
            objects = scored(load_archive(data, name))
            result[title] = [
                live_score(str(n), own := first_points(objects, n), classify(own), CLASSES_THEMSELVES) for n in FIRST
            ]
    return result


def markdown(scores: Sequence[LiveScore]) -> str:
    """The scores as two tables: one of all rows, one of recall by class."""
    lines = [
        "| real data | objects | detections (median) | accuracy | baselines | macro-F1 | mean probability | ECE "
        "| 90 % set covers | mean size | NotClassified | impossible |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for s in scores:
        baselines = ", ".join(f"{name} {value:.3f}" for name, value in s.baselines.items())
        lines.append(
            f"| {s.data} | {s.objects} | {s.detections:.0f} | {s.accuracy:.3f} | {baselines} | {s.macro_f1:.3f} "
            f"| {s.mean_probability:.2f} | {s.expected_calibration_error:.3f} | {s.coverage:.3f} | {s.set_size:.2f} "
            f"| {s.not_classified} | {s.impossible} |"
        )
    lines += ["", "Recall by class (number of objects):", ""]
    lines += [
        f"- {s.data}: " + ", ".join(f"{c} {s.recall[c]:.2f} ({s.class_counts[c]})" for c in s.recall) for s in scores
    ]
    return "\n".join(lines) + "\n"


def plot_first(scores: Mapping[str, Sequence[LiveScore]], path: Path) -> None:
    """Save accuracy, coverage and size of the 90 % sets against the number of first detections, a line per set."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for (name, rows), marker in zip(scores.items(), "os^Dv", strict=False):
        for axes, values in zip(
            panels,
            ([r.accuracy for r in rows], [r.coverage for r in rows], [r.set_size for r in rows]),
            strict=True,
        ):
            axes.plot(range(len(rows)), values, marker=marker, label=f"{name} ({rows[0].objects} stars)")
    for axes, title in zip(panels, ("accuracy", "90 % set covers", "mean size of the set"), strict=True):
        axes.set_xticks(range(len(FIRST)), [str(n) for n in FIRST])
        axes.set_xlabel("first N detections")
        axes.set_title(title, fontsize=10)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_ylim(bottom=0)
    panels[1].axhline(0.9, color="0.6", linestyle="--", linewidth=0.8)
    panels[0].legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def save(scores: Sequence[LiveScore], others: Sequence[OtherScore], folder: Path, preface: str) -> None:
    """Write ``live.md`` and ``live.json`` into ``folder``: the classes' table, and that of what is none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "live.md").write_text(f"{preface}\n\n{markdown(scores)}\n{others_markdown(others)}")
    (folder / "live.json").write_text(
        json.dumps({"classes": [asdict(s) for s in scores], "other": [asdict(s) for s in others]}, indent=1) + "\n"
    )
