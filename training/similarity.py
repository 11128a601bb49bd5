"""What the embeddings are worth for finding alike objects: recall across modalities, zero-shot and few-shot classes.

As AstroM3 is evaluated (arXiv 2411.08842, section 4), on stars that the model was not trained on, with the exported
models. Light curves are real; catalogue values and spectra are simulated from the class of each star
(docs/simulation.md), those of test stars from donors and templates that no training star has: across modalities that
tells classes, and single stars no more than their class does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from broker.assemble.event import EVENT_FEATURES
from broker.assemble.history import history_features
from broker.assemble.inputs import MODALITIES, LightCurveInputs, ModelInputs, SpectrumInputs
from broker.assemble.metadata import default_scaler, standardise, widened
from broker.assemble.usable import usable_points
from broker.inference.onnx import OnnxEngine
from broker.records import SOURCE_FEATURES
from broker.similar.sets import KINDS
from broker.similar.translate import Translator
from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.splits import part_of_each, split
from training.datasets.tables import load_objects
from training.prepare import VERSIONS, PreparedLightCurves, prepare_light_curves
from training.reference_stars import chunks
from training.simulate.metadata import load_donors, simulate_metadata
from training.simulate.spectra import draw_types, load_templates, simulate_spectra

NEIGHBOURS: Final = (1, 10)
KNN: Final = 10
_TRAINING, _TEST = 0, 2
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Embeddings (n, d) of the same n stars by kind, and their classes (n,)."""

    vectors: Mapping[str, Floats]
    label: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How well one modality's embeddings find another's."""

    query: str
    found: str
    recall: tuple[float, ...]
    """Of the stars the share whose own is among the NEIGHBOURS nearest."""
    same_class: float
    """Share of the KNN nearest that are of the query's class."""
    centroid: float
    """Classes by the nearest centroid of training stars, mean over classes of the share that is right."""
    nearest: float
    """Likewise, by the nearest training star."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What labelled embeddings of one kind tell of others; means over the classes."""

    kind: str
    linear: float
    knn: float
    nearest: float
    centroid: float


def embed_stars(
    engine: OnnxEngine, data: Path, prepared: Path, seed: int, each: tuple[int, int]
) -> tuple[Embeddings, Embeddings]:
    """Training and test stars, at most ``each`` of a class, by all KINDS; ``prepared`` are light curves as cached.

    ``seed`` is that of the model's split.
    """
    table = load_objects(data)
    parts = split(table, seed)
    part = part_of_each(len(table), parts)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    told = np.full(len(table), None, object)
    told[parts[_TRAINING]] = table.label[parts[_TRAINING]]
    curves = prepare_light_curves(table.light_curves, list(told), VERSIONS, prepared, data)
    rng = np.random.default_rng([seed, 9])
    labelled = np.flatnonzero(labels.index >= 0)
    code = np.full(len(table), np.nan)
    code[labelled] = draw_types(list(table.label[labelled]), list(table.survey[labelled]), rng)
    values, _ = simulate_metadata(table, load_donors(data), code, curves.period[0], part, rng)
    templates = load_templates(data)
    found = []
    for number, most in zip((_TRAINING, _TEST), each, strict=True):
        usable = rng.permutation(parts[number][labels.scored[parts[number]] & curves.present[0][parts[number]]])
        rows = np.concatenate([usable[labels.index[usable] == c][:most] for c in range(len(CLASS_NAMES))])
        history = [history_features(usable_points([table.light_curves[r] for r in some])) for some in chunks(rows)]
        raw = widened(values[rows])
        raw[:, len(SOURCE_FEATURES) :] = np.concatenate(history)
        spectra = simulate_spectra(
            templates, list(table.label[rows]), list(table.survey[rows]), code[rows],
            np.full(len(rows), number == _TEST), rng,
        )  # fmt: skip
        inputs = ModelInputs(
            _light_curves(curves, rows),
            SpectrumInputs(spectra, np.ones(len(rows), np.bool_)),
            standardise(raw, table.ra[rows], table.dec[rows], default_scaler()),
        )
        found.append(_embedded(engine, inputs, labels.index[rows]))
    return found[0], found[1]


def _light_curves(curves: PreparedLightCurves, rows: NDArray[np.intp]) -> LightCurveInputs:
    return LightCurveInputs(
        curves.points[0][rows].astype(np.float32),
        curves.points_mask[0][rows],
        curves.folded[0][rows].astype(np.float32),
        curves.features[0][rows].astype(np.float32),
        curves.present[0][rows],
        curves.period[0][rows],
        curves.detections[0][rows],
        np.zeros((len(rows), len(EVENT_FEATURES)), np.float32),  # total fluxes
    )


def _embedded(engine: OnnxEngine, inputs: ModelInputs, label: NDArray[np.int64]) -> Embeddings:
    """Those with all three modalities."""
    predictions = engine.predict(inputs)
    assert predictions.by_modality is not None
    rows = inputs.present.all(axis=1) & predictions.embeddings.any(axis=1)
    vectors = {KINDS[0]: predictions.embeddings[rows]}
    vectors |= {name: predictions.by_modality[rows, column] for column, name in enumerate(MODALITIES)}
    return Embeddings(vectors, label[rows])


Move = Callable[[Floats, str, str], Floats]
"""Embeddings (n, d) of one modality in another's place."""


def retrievals(training: Embeddings, test: Embeddings, move: Move = lambda vectors, of, to: vectors) -> list[Retrieval]:
    """Each pair of modalities, queries moved by ``move``, as ``Translator.translate``."""
    found = []
    for query, other in permutations(MODALITIES, 2):
        asked = move(test.vectors[query], query, other)
        there, known = test.vectors[other], training.vectors[other]
        found.append(
            Retrieval(
                query,
                other,
                tuple(recall_at(asked, there, k) for k in NEIGHBOURS),
                same_class_at(asked, there, test.label, KNN),
                balanced(test.label, by_centroid(known, training.label, asked)),
                balanced(test.label, by_neighbours(known, training.label, asked, 1)),
            )
        )
    return found


def centred(training: Embeddings) -> Move:
    """Takes the place of each modality's training stars out, and puts that of the other in.

    Modalities occupy regions of their own (Liang et al. 2022, arXiv 2203.02053); what lies between them tells nothing.
    """
    mean = {kind: vectors.mean(axis=0) for kind, vectors in training.vectors.items()}
    return lambda vectors, of, to: _unit(vectors - mean[of] + mean[to])


def probes(training: Embeddings, test: Embeddings) -> list[Probe]:
    """Each kind by itself."""
    found = []
    for kind in KINDS:
        known, asked = training.vectors[kind], test.vectors[kind]
        linear = LogisticRegression(max_iter=2000, C=10.0).fit(known, training.label)
        found.append(
            Probe(
                kind,
                balanced(test.label, linear.predict(asked)),
                balanced(test.label, by_neighbours(known, training.label, asked, KNN)),
                balanced(test.label, by_neighbours(known, training.label, asked, 1)),
                balanced(test.label, by_centroid(known, training.label, asked)),
            )
        )
    return found


def recall_at(asked: Floats, there: Floats, k: int) -> float:
    """Share of rows of ``asked`` (n, d) whose own row of ``there`` (n, d) is among the ``k`` of largest cosine."""
    cosines = asked @ there.T
    return float((np.sum(cosines > np.diag(cosines)[:, None], axis=1) < k).mean())


def same_class_at(asked: Floats, there: Floats, label: NDArray[np.int64], k: int) -> float:
    """Share of the ``k`` nearest of ``there`` that have the class of the row that asks; its own row left out."""
    cosines = asked @ there.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    return float((label[nearest] == label[:, None]).mean())


def by_centroid(known: Floats, label: NDArray[np.int64], asked: Floats) -> NDArray[np.int64]:
    """(n,) the class whose mean of ``known`` embeddings has the largest cosine."""
    classes = np.unique(label)
    centroids = _unit(np.stack([known[label == c].mean(axis=0) for c in classes]))
    chosen: NDArray[np.int64] = classes[np.argmax(asked @ centroids.T, axis=1)]
    return chosen


def by_neighbours(known: Floats, label: NDArray[np.int64], asked: Floats, k: int) -> NDArray[np.int64]:
    """(n,) the most frequent class among the ``k`` nearest; of equals the one with the larger summed cosine."""
    cosines = asked @ known.T
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    votes = np.zeros((len(asked), int(label.max()) + 1))
    # Cosines are 1 at most: they decide among equal counts, and no more.
    weight = 1.0 + np.take_along_axis(cosines, nearest, axis=1) / (2.0 * k)
    np.add.at(votes, (np.arange(len(asked))[:, None], label[nearest]), weight)
    chosen: NDArray[np.int64] = votes.argmax(axis=1)
    return chosen


def balanced(label: NDArray[np.int64], answer: NDArray[np.int64]) -> float:
    """Mean over the classes of the share that is right."""
    return float(np.mean([(answer[label == c] == c).mean() for c in np.unique(label)]))


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def markdown(training: Embeddings, test: Embeddings, translator: Translator) -> str:
    """The tables of docs/similar.md."""

    def translate(vectors: Floats, of: str, to: str) -> Floats:
        return translator.translate(vectors, of, to).astype(np.float32)

    size = len(test.label)
    lines = [
        f"{len(training.label)} training stars and {size} test stars, at most as many of each class; by chance "
        f"recall@10 is {10 / size:.3f} and a class is right in {1 / len(np.unique(test.label)):.2f}.",
        "",
        "| query | finds | recall@1 | recall@10 | same class of 10 | zero-shot, centroid | zero-shot, 1-NN |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for how, move in (("", None), (", centred", centred(training)), (", translated", translate)):
        found = retrievals(training, test) if move is None else retrievals(training, test, move)
        lines += [_row(one, how) for one in found]
    lines += ["", "| embedding | linear probe | 10-NN | 1-NN | centroid |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {one.kind.replace('_', ' ')} | {one.linear:.3f} | {one.knn:.3f} | {one.nearest:.3f} | {one.centroid:.3f} |"
        for one in probes(training, test)
    ]
    return "\n".join(lines)


def _row(one: Retrieval, how: str) -> str:
    names: Sequence[str] = [name.replace("_", " ") for name in (one.query, one.found)]
    recall = " | ".join(f"{value:.3f}" for value in one.recall)
    return (
        f"| {names[0]}{how} | {names[1]} | {recall} | {one.same_class:.3f} | {one.centroid:.3f} | {one.nearest:.3f} |"
    )
