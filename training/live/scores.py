"""What the service says of objects, and how good that is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score

from broker.assemble import assemble
from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError
from broker.inference import Predictions
from broker.inference.manifest import Manifest, load_manifest
from broker.inference.onnx import OnnxEngine
from broker.inference.physics import plausible_period, rule_out
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES, NOT_CLASSIFIED, OTHER
from training.calibrate import expected_calibration_error
from training.datasets.multiband import LabelledObjects
from training.origin import digest_of

BINS = 10
"""Of the calibration error."""
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
    """(n,) as found, NaN for none."""
    other: NDArray[np.float64]
    """(n,) probability of none of the ten, NaN where the model does not say."""
    is_other: NDArray[np.bool_]
    """(n,) published as Other, whatever the ten say."""
    of_the_ten: NDArray[np.float64]
    """(n, 10) probabilities as the model gives them, before the period and ``other``; zero where NotClassified."""

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """All answers, one part after another."""
        return Answers(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Answers)))

    def take(self, rows: NDArray[np.intp]) -> Answers:
        """The answers with these numbers, in this order."""
        return Answers(*(getattr(self, f.name)[rows] for f in fields(self)))


Classify = Callable[[LabelledObjects], Answers]


class Repository:
    """A model repository, as the service uses it."""

    def __init__(self, path: Path) -> None:
        self._manifest: Manifest = load_manifest(path)
        self._engine = OnnxEngine(path)

    @property
    def version(self) -> str:
        """That of the model."""
        return self._manifest.model_version

    def __call__(self, objects: LabelledObjects) -> Answers:
        """Classify each object from its state."""
        batches = (objects.states[first : first + _BATCH] for first in range(0, len(objects), _BATCH))
        return Answers.joined([self.of_inputs(assemble(batch)) for batch in batches])

    def of_inputs(self, inputs: ModelInputs) -> Answers:
        """Classify one batch."""
        return self._answers(inputs, self._engine.predict(inputs))

    def _answers(self, inputs: ModelInputs, predictions: Predictions) -> Answers:
        plausible = rule_out(predictions.probabilities, inputs.light_curve)
        probabilities, period, none_of_ten = plausible
        sets = self._manifest.prediction_sets(probabilities, inputs.present, inputs.light_curve.detections)
        in_set = np.array([[name in own for name in CLASS_NAMES] for own in sets], np.bool_)
        other = np.fmax(predictions.other.astype(np.float64), plausible.other)
        curves = inputs.light_curve
        is_other = self._manifest.called_other(other, inputs.present, curves.detections, curves.is_difference)
        is_other = (is_other | none_of_ten) & probabilities.any(axis=1)
        given = (probabilities * np.where(is_other, 1.0 - other, 1.0)[:, None]).astype(np.float64)
        of_the_ten = predictions.probabilities.astype(np.float64)
        return Answers(given, in_set, inputs.light_curve.detections, period, other, is_other, of_the_ten)


class CrossValidated:
    """Each star by the model that has not seen it: a repository for each fold, and one for stars in none."""

    def __init__(self, published: Path, folds: Path) -> None:
        """``folds`` is a folder of repositories ``0``, ``1``, ... with ``folds.json``: the fold of each star.

        Raises ConfigurationError where they are not those that were trained with ``published``.
        """
        self.fold: dict[str, int] = json.loads((folds / "folds.json").read_text())
        self._models: list[Repository] = [Repository(folds / str(k)) for k in range(max(self.fold.values()) + 1)]
        self._published: Repository = Repository(published)
        self.version: str = self._published.version
        for k, model in enumerate(self._models):
            if model.version != (expected := f"{self.version}-fold{k}"):
                raise ConfigurationError(f"{folds / str(k)} has model {model.version}, not {expected}")

    def __call__(self, objects: LabelledObjects) -> Answers:
        """Classify each object from its state."""
        fold = np.array([self.fold.get(state.object_id, -1) for state in objects.states])
        order, parts = [], []
        for number in np.unique(fold).tolist():
            rows = np.flatnonzero(fold == number)
            order.append(rows)
            parts.append((self._published if number < 0 else self._models[number])(objects.take(rows)))
        return Answers.joined(parts).take(np.argsort(np.concatenate(order)))


class Once:
    """A model that is asked once for each object in the same state: the rows of the tables have many in common."""

    def __init__(self, classify: Classify) -> None:
        self._classify = classify
        self._rows: dict[str, int] = {}
        """Where in ``_parts`` the answer to each state is, by its digest."""
        self._parts: list[Answers] = []

    def __call__(self, objects: LabelledObjects) -> Answers:
        """Classify each object from its state."""
        digests = [digest_of(state) for state in objects.states]
        new = {digest: row for row, digest in enumerate(digests) if digest not in self._rows}
        if new:
            self._parts = [Answers.joined([*self._parts, self._classify(objects.take(new.values()))])]
            self._rows |= {digest: len(self._rows) + number for number, digest in enumerate(new)}
        return self._parts[0].take(np.array([self._rows[digest] for digest in digests], np.intp))


@dataclass(frozen=True, slots=True)
class LiveScore:
    """One row of the table. NotClassified and Other count as wrong; all scores are over all objects."""

    data: str
    objects: int
    detections: float
    """Median number of usable detections."""
    accuracy: float
    macro_f1: float
    mean_probability: float
    """Of the leading class; 0 where NotClassified."""
    expected_calibration_error: float
    calibrated_error: float
    """What a perfectly calibrated model with the same probabilities would show for so few objects, in the mean."""
    calibrated_error_95: float
    """And what it would stay below in 95 of 100 cases."""
    coverage: float
    set_size: float
    leading_right: float
    """Share whose label has the highest probability of the ten: a set that always has it cannot cover less."""
    not_classified: int
    called_other: int
    """Objects published as Other, which counts as wrong."""
    impossible: int
    """Objects whose leading class physics rules out at the published period."""
    recall: dict[str, float] = field(default_factory=dict)
    class_counts: dict[str, int] = field(default_factory=dict)
    taken_for: dict[str, dict[str, int]] = field(default_factory=dict)
    """By label, how many objects are taken for each class, Other or NotClassified."""
    mistakes: tuple[tuple[str, str, str, float], ...] = ()
    """Of each object that is not right its id, label, what it is taken for, and with which probability."""
    baselines: dict[str, float | None] = field(default_factory=dict)
    """Accuracy of the baselines on the same objects, None for one that there is no model of."""

    @property
    def standard_error(self) -> float:
        """Of the accuracy, after Agresti and Coull (1998, Am. Stat. 52, 119): not 0 where all are right."""
        return binomial_error(self.accuracy, self.objects)


def binomial_error(share: float, count: int) -> float:
    """Standard error of a share of ``count`` objects, with two successes and two failures added."""
    adjusted = (share * count + 2) / (count + 4)
    return float(np.sqrt(adjusted * (1 - adjusted) / (count + 4)))


def calibrated_errors(summed: NDArray[np.float64], bins: int, draws: int = 400, seed: int = 0) -> tuple[float, float]:
    """Mean and 95 % quantile of the calibration error if the probabilities (n, k) were right, by simulation.

    Of each object the leading class is right with its probability. The error is never 0 for a few objects: bins of
    which each has few of them scatter, and their distances are added without sign.
    """
    confidence = np.minimum(summed.max(axis=1), 1.0)
    cell = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    right = np.random.default_rng(seed).random((draws, len(confidence))) < confidence
    gaps = np.stack([(confidence - right)[:, cell == own].sum(axis=1) for own in range(bins)])
    errors = np.abs(gaps).sum(axis=0) / len(confidence)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def live_score(name: str, objects: LabelledObjects, answers: Answers, groups: Mapping[str, Sequence[str]]) -> LiveScore:
    """Scores of one row, over ``groups`` of classes: each class by itself, or parents, of which the sums count."""
    names = list(groups)
    summed = np.stack(
        [answers.probabilities[:, [CLASS_INDEX[c] for c in groups[n]]].sum(axis=1) for n in names], axis=1
    )
    in_set = np.stack([answers.in_set[:, [CLASS_INDEX[c] for c in groups[n]]].any(axis=1) for n in names], axis=1)
    label = np.array([names.index(own) for own in objects.label])
    classified: NDArray[np.bool_] = np.any(answers.probabilities, axis=1)
    best = np.where(answers.is_other, -2, np.where(classified, summed.argmax(axis=1), -1))
    # Other is an answer, too, and a wrong one for these stars.
    answered = np.column_stack([summed, np.where(answers.is_other, answers.other, 0.0)])
    error, error_95 = calibrated_errors(answered, BINS)
    answers_of = [*names, OTHER.name, NOT_CLASSIFIED.name]
    present = np.unique(label)
    recall = recall_score(label, best, labels=present, average=None, zero_division=0.0)
    leading = np.array(CLASS_NAMES, object)[answers.probabilities.argmax(axis=1)]
    impossible = [
        not plausible_period(str(lead), period)
        for lead, period, good in zip(leading, answers.period.tolist(), classified & ~answers.is_other, strict=True)
        if good and period == period  # a NaN is none
    ]
    return LiveScore(
        data=name,
        objects=len(label),
        detections=float(np.median(answers.detections)),
        accuracy=float(np.mean(best == label)),
        macro_f1=float(f1_score(label, best, labels=present, average="macro", zero_division=0.0)),
        mean_probability=float(answered.max(axis=1).mean()),
        expected_calibration_error=expected_calibration_error(answered, label, bins=BINS),
        calibrated_error=error,
        calibrated_error_95=error_95,
        coverage=float(np.mean(in_set[np.arange(len(label)), label])),
        set_size=float(in_set.sum(axis=1).mean()),
        leading_right=float(np.mean(classified & (summed.argmax(axis=1) == label))),
        not_classified=int(np.sum(~classified)),
        called_other=int(np.sum(answers.is_other)),
        impossible=sum(impossible),
        mistakes=tuple(
            (
                objects.states[i].object_id,
                names[label[i]],
                answers_of[best[i] % len(answers_of)],
                float(answered[i].max()),
            )
            for i in np.flatnonzero(best != label).tolist()
        ),
        recall={names[c]: float(r) for c, r in zip(present, recall, strict=True)},
        class_counts={names[c]: int(np.sum(label == c)) for c in present},
        taken_for={
            names[c]: {
                answers_of[b]: int(n)
                for b, n in zip(*np.unique(best[label == c] % len(answers_of), return_counts=True), strict=True)
            }
            for c in present
        },
    )
