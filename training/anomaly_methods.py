"""Methods that the literature has for telling a class that nothing was trained on, compared on classes left out.

None of them is in the service; docs/anomaly.md has the table, and what follows from it. From light curves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor, nn
from torch.nn import functional

from broker.anomaly.combine import surprises_of
from broker.anomaly.shape import SHAPE
from broker.anomaly.statistics import DISTANCES, Objects, statistics_of
from broker.anomaly.strata import DETECTION_BINS
from broker.anomaly.tails import Tail
from broker.assemble import assemble
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.inference.onnx import OnnxEngine
from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.multiband import LabelledObjects
from training.encoders.trimodal import ConcatClassifier, Trimodal
from training.evaluate_anomaly import (
    ABOUT_20,
    CHUNK,
    Report,
    StarsBySurvey,
    embedded_light_curves,
    histories,
    light_curve_embeddings,
    load_scorer,
    prepared_stars,
    stacked_light_curves,
)
from training.leave_out import left_out_classes, load_without
from training.prepare import PreparedLightCurves

EIGHT: Final = (
    "log10_std", "skewness", "log10_period", "r2_period", "amplitude_21", "von_neumann_time", "odd_even_13",
    "range_50_to_90",
)  # fmt: skip
"""Amplitude, period and how well it fits, shape, and roughness in time."""
KNOWN: Final = 2500
"""Training stars that densities and forests are made of, as frequent as in the archives, of the nine classes."""
BALANCED: Final = 200
"""Of each class, for mixtures, the isolation forest and covariances."""
SYNTHETIC: Final = 1200
"""Outliers made of known stars, at most, and as many known stars that they are told from."""
TREES: Final = 80
LEAST: Final = 10
"""Strange test stars with which a class counts in the mean."""

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]
Score = Callable[[Matrix], Vector]
"""Of objects (n, ...) how strange each is (n,)."""


def entropy(probabilities: NDArray[np.floating]) -> Vector:
    """(n,) of probabilities (n, c)."""
    p = probabilities.astype(np.float64)
    result: Vector = -(p * np.log(p + 1e-12)).sum(axis=1)
    return result


def neighbours(known: Matrix, k: int = 5) -> Score:
    """Mean distance to the ``k`` nearest of ``known`` (m, d)."""
    tree = NearestNeighbors(n_neighbors=k).fit(known)

    def score(objects: Matrix) -> Vector:
        result: Vector = tree.kneighbors(objects)[0].mean(axis=1)
        return result

    return score


def columns(names: Sequence[str]) -> list[int]:
    """Positions of features."""
    return [LIGHT_CURVE_FEATURES.index(name) for name in names]


def feature_scores(known: Matrix, label: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Score]:
    """By name, of stars' features ``known`` (m, LIGHT_CURVE_FEATURES) and their classes (m,)."""
    normal = QuantileTransformer(n_quantiles=300, output_distribution="normal").fit(known)

    def even(features: Matrix) -> Matrix:
        result: Matrix = np.clip(normal.transform(features), -3.5, 3.5)
        return result

    def over(names: Sequence[str]) -> Score:
        chosen = columns(names)
        near = neighbours(even(known)[:, chosen])
        return lambda x: near(even(x)[:, chosen])

    found = {"kNN, 8 features": over(EIGHT), "kNN, 14 of shape": over(SHAPE)}
    chosen = columns(EIGHT)
    balanced = np.concatenate([rng.permutation(np.flatnonzero(label == c))[:BALANCED] for c in np.unique(label)])
    mixtures = []
    for c in np.unique(label):
        own = even(known[balanced][label[balanced] == c])[:, chosen]
        if len(own) > len(chosen):
            mixtures.append(
                GaussianMixture(n_components=max(1, len(own) // 70), reg_covar=0.05, random_state=0).fit(own)
            )
    found["mixtures by class, 8 features"] = lambda x: (
        -np.max([m.score_samples(even(x)[:, chosen]) for m in mixtures], axis=0)
    )
    trees = IsolationForest(n_estimators=TREES, random_state=0).fit(known[balanced])
    found["isolation forest, features"] = lambda x: -trees.score_samples(x)
    classes = _forest(known, label)
    found["random forest: entropy"] = lambda x: entropy(classes.predict_proba(x))
    # Synthetic outliers: each feature of another star (Baron & Poznanski 2017); mixtures of two stars of two classes.
    permuted = np.stack([rng.permutation(column) for column in known.T], axis=1)
    other = rng.permutation(len(known))
    share = rng.uniform(0.3, 0.7, len(known))[:, None]
    mixed = (share * known + (1 - share) * known[other])[label != label[other]]
    for name, synthetic in (
        ("permuted features", permuted[:SYNTHETIC]),
        ("mixtures of two classes", mixed[:SYNTHETIC]),
    ):
        real = known[:SYNTHETIC]
        told = _forest(np.concatenate([real, synthetic]), np.repeat([0, 1], [len(real), len(synthetic)]))
        found[f"forest against {name}"] = lambda x, told=told: told.predict_proba(x)[:, 1]  # type: ignore[misc]
    return found


def _forest(features: Matrix, label: NDArray[np.integer]) -> RandomForestClassifier:
    return RandomForestClassifier(n_estimators=TREES, min_samples_leaf=3, random_state=0).fit(features, label)


def network_scores(model: Trimodal, known: Matrix, label: NDArray[np.int64], gone: int) -> dict[str, Score]:
    """By name, of embeddings (n, 512): ``known`` are those of stars with the classes ``label``, none of ``gone``."""
    head = model.classifier
    assert isinstance(head, ConcatClassifier)
    hidden_layers, last = head.layers[:2], head.layers[3]
    others = [c for c in range(len(CLASS_NAMES)) if c != gone]

    @torch.no_grad()
    def hidden(embeddings: Matrix) -> Matrix:
        vectors, present = stacked_light_curves(torch.from_numpy(embeddings))
        width = vectors.shape[2]
        inputs = torch.cat([vectors.flatten(1) * width**0.5, present.float()], dim=1)
        result: Matrix = hidden_layers(inputs).numpy()
        return result

    @torch.no_grad()
    def logits(values: Matrix) -> Matrix:
        result: Matrix = last(torch.from_numpy(values)).numpy()[:, others]
        return result

    inside = hidden(known)
    middle = inside.mean(axis=0)
    classes = np.unique(label)
    centres = np.stack([inside[label == c].mean(axis=0) for c in classes])
    within = _whitening(inside - centres[np.searchsorted(classes, label)])
    overall = _whitening(inside - middle)
    _, directions = np.linalg.eigh(np.cov((inside - middle).T))
    rest = directions[:, :-64].astype(np.float32)
    residual = np.linalg.norm((inside - middle) @ rest, axis=1)
    alpha = logits(inside).max(axis=1).mean() / residual.mean()
    clip = np.quantile(inside, 0.9).astype(np.float32)

    def mahalanobis(x: Matrix) -> Vector:
        white = (hidden(x) @ within)[:, None] - (centres @ within)[None]
        result: Vector = np.square(white).sum(axis=2).min(axis=1)
        return result

    near = neighbours(known)
    return {
        "embedding: kNN, as frequent": near,
        "network: entropy": lambda x: entropy(softmax(logits(hidden(x)), axis=1)),
        "energy": lambda x: -logsumexp(logits(hidden(x)), axis=1),
        "ReAct": lambda x: -logsumexp(logits(np.minimum(hidden(x), clip)), axis=1),
        "Mahalanobis, hidden layer": mahalanobis,
        "relative Mahalanobis": lambda x: mahalanobis(x) - np.square((hidden(x) - middle) @ overall).sum(axis=1),
        "ViM": lambda x: (
            alpha * np.linalg.norm((hidden(x) - middle) @ rest, axis=1) - logsumexp(logits(hidden(x)), axis=1)
        ),
    }


def _whitening(residual: Matrix, shrinkage: float = 0.1) -> Matrix:
    """(d, d) that makes the scatter of ``residual`` (n, d) a unit matrix, shrunk as ``whitening_of`` does."""
    variances, directions = np.linalg.eigh(residual.T.astype(np.float64) @ residual / len(residual))
    variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
    result: Matrix = (directions / np.sqrt(variances)).astype(np.float32)
    return result


def contrastive(first: Matrix, second: Matrix, steps: int = 500, batch: int = 256) -> Callable[[Matrix], Matrix]:
    """An embedding that was made without labels: two views (n, d) of the same stars are near, of others far.

    SimCLR (Chen et al. 2020, arXiv 2002.05709) with a perceptron.
    """
    torch.manual_seed(0)
    scale = first.std(axis=0) + 1e-3
    net = nn.Sequential(nn.Linear(first.shape[1], 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 32))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    a, b = (torch.from_numpy(np.clip(x / scale, -10, 10)) for x in (first, second))
    for _ in range(steps):
        rows = torch.randint(len(a), (batch,))
        x, y = (functional.normalize(net(view[rows]), dim=1) for view in (a, b))
        likeness: Tensor = x @ y.T / 0.1
        target = torch.arange(batch)
        loss = functional.cross_entropy(likeness, target) + functional.cross_entropy(likeness.T, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def embed(x: Matrix) -> Matrix:
        result: Matrix = functional.normalize(net(torch.from_numpy(np.clip(x / scale, -10, 10))), dim=1).numpy()
        return result

    return embed


def combined(surprises: dict[str, Vector], distances: Sequence[str], uncertainty: str) -> dict[str, Vector]:
    """The service's sum, and with what is looked at besides.

    Sums of surprises (Fisher 1932), and harmonic means of their probabilities (Wilson 2019, PNAS 116, 1195).
    """
    far = np.mean([surprises[name] for name in distances], axis=0)
    unsure, shape, eight = (surprises[name] for name in (uncertainty, "kNN, 14 of shape", "kNN, 8 features"))
    return {
        "**distances and uncertainty**": far + unsure,
        "**these and 14 of shape**, harmonic": logsumexp(np.stack([far, unsure, shape]), axis=0),
        "these and 8 features, harmonic": logsumexp(np.stack([far, unsure, eight]), axis=0),
        "8 features and random forest, Fisher": eight + surprises["random forest: entropy"],
    }


def anomaly_methods(models: Path, repository: Path, shared: Path, versions: int, report: Report) -> str:
    """Markdown: AUROC of each method for each class left out, and of those without a network for other surveys."""
    torch.set_num_threads(1)
    data = shared / "data"
    _, labels, parts, curves = prepared_stars(models, data, versions)
    names = left_out_classes(models)
    tables = []
    for title, length in (("whole", None), ("about 20 points", ABOUT_20)):
        rng = np.random.default_rng([0, 37])
        samples = []
        for part in parts:
            version, row = histories(curves, part[labels.scored[part]], length)
            order = rng.permutation(len(row))
            samples.append((version[order], row[order]))
        aurocs: list[dict[str, float]] = []
        counts = []
        for name in names:
            report(f"without {name}, {title}")
            found, outside = _of_class(models, name, curves, labels, samples, rng)
            aurocs.append({method: float(roc_auc_score(outside, value)) for method, value in found.items()})
            counts.append(int(outside.sum()))
        tables.append(_markdown(f"left out, {title}", names, counts, aurocs))
    tables.append(_other_surveys(repository, data, curves, labels, parts[0], parts[1], report))
    return "\n".join(tables)


def _of_class(
    models: Path,
    name: str,
    curves: PreparedLightCurves,
    labels: Labels,
    samples: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    rng: np.random.Generator,
) -> tuple[dict[str, Vector], NDArray[np.bool_]]:
    """Of the test histories each method's values (n,), and which are of the class left out."""
    gone = CLASS_NAMES.index(name)
    model = load_without(models, name)
    chosen = []
    for (version, row), size, with_gone in zip(samples, (KNOWN, 1000, 1500), (False, False, True), strict=True):
        keep = np.flatnonzero((labels.index[row] != gone) | with_gone)[:size]
        chosen.append((version[keep], row[keep]))
    label = [labels.index[row] for _, row in chosen]
    features = [np.asarray(curves.features[v, r], np.float32) for v, r in chosen]
    embeddings = [_embedded(model, curves, v, r) for v, r in chosen]
    scores = [(s, features) for s in feature_scores(features[0], label[0], rng).items()]
    scores += [(s, embeddings) for s in network_scores(model, embeddings[0], label[0], gone).items()]
    surprises = {method: Tail(score(inputs[1])).surprise(score(inputs[2])) for (method, score), inputs in scores}
    views = [np.asarray(curves.folded[v, r, 0], np.float32) for v, r in chosen]
    both = [np.concatenate([f, w], axis=1) for f, w in zip(features, views, strict=True)]
    thinned = np.concatenate(
        [np.asarray(array, np.float32) for array in (
            curves.features[2, chosen[0][1]], curves.folded[2, chosen[0][1], 0]
        )], axis=1,
    )  # fmt: skip
    embed = contrastive(both[0], thinned)
    near = neighbours(embed(both[0]))
    surprises["contrastive, no labels: kNN"] = Tail(near(embed(both[1]))).surprise(near(embed(both[2])))
    distances = ("embedding: kNN, as frequent", "Mahalanobis, hidden layer")
    found = {**surprises, **combined(surprises, distances, "network: entropy")}
    outside = label[2] == gone
    # What a classifier tells that was shown the class: a bound for all that were not.
    version, row = (array[: 2 * KNOWN] for array in samples[0])
    told = _forest(np.asarray(curves.features[version, row], np.float32), labels.index[row] == gone)
    found["*a forest that was shown the class*"] = told.predict_proba(features[2])[:, -1]
    return found, outside


def _embedded(model: Trimodal, curves: PreparedLightCurves, version: NDArray[np.intp], row: NDArray[np.intp]) -> Matrix:
    chunks = range(0, len(row), CHUNK)
    parts = [light_curve_embeddings(model, curves, version[i : i + CHUNK], row[i : i + CHUNK]).numpy() for i in chunks]
    return np.concatenate(parts)


def _other_surveys(
    repository: Path, data: Path, curves: PreparedLightCurves, labels: Labels, training: NDArray[np.intp],
    validation: NDArray[np.intp], report: Report,
) -> str:  # fmt: skip
    """AUROC for whole light curves of none of the ten classes; the served model's scores, and features besides."""
    engine = OnnxEngine(repository)
    scorer = load_scorer(repository, engine)
    features = np.asarray(curves.features, np.float32)
    bins = np.searchsorted(DETECTION_BINS[1:], curves.detections, side="right")
    aurocs = []
    counts = []
    made: dict[int, dict[str, tuple[Score, Tail]]] = {}
    surveys = StarsBySurvey(data).pairs
    for survey, (known, others) in surveys.items():
        report(f"{survey}, none of the ten")
        both = [(embedded_light_curves(engine, part), _features_of(part)) for part in (known, others)]
        objects = Objects.joined([pair[0] for pair in both])
        values = np.concatenate([pair[1] for pair in both])
        statistics, _ = statistics_of(
            objects, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes
        )
        surprises = surprises_of(statistics, objects, scorer.calibration)
        strata = np.searchsorted(DETECTION_BINS[1:], objects.detections, side="right")
        for number in np.unique(strata).tolist():
            if number not in made:
                rng = np.random.default_rng([0, 41])
                sample = []
                for part, size in ((training, KNOWN), (validation, 1000)):
                    star = part[labels.scored[part]]
                    version, column = np.nonzero((bins[:, star] == number) & curves.present[:, star])
                    taken = rng.permutation(len(column))[:size]
                    sample.append((features[version[taken], star[column[taken]]], labels.index[star[column[taken]]]))
                scores = feature_scores(*sample[0], rng)
                made[number] = {name: (score, Tail(score(sample[1][0]))) for name, score in scores.items()}
            own = strata == number
            for name, (score, tail) in made[number].items():
                surprises.setdefault(name, np.full(len(strata), np.nan))[own] = tail.surprise(score(values[own]))
        distances = [f"all.{name}" for name in DISTANCES]
        found = {name: surprises[name] for name in next(iter(made.values()))}
        found |= combined(surprises, distances, "uncertainty")
        outside = np.repeat([False, True], [len(pair[1]) for pair in both])
        there = ~np.isnan(np.stack(list(found.values()))).any(axis=0)
        aurocs.append({name: float(roc_auc_score(outside[there], value[there])) for name, value in found.items()})
        counts.append(int(outside.sum()))
    engine.close()
    return _markdown("none of the ten, whole", list(surveys), counts, aurocs)


def _features_of(objects: LabelledObjects) -> Matrix:
    """Of those that have enough points, as ``embedded_light_curves``."""
    parts = []
    for first in range(0, len(objects), CHUNK):
        inputs = assemble(objects.states[first : first + CHUNK]).light_curve
        parts.append(inputs.features[inputs.present])
    return np.concatenate(parts)


def _markdown(first: str, names: Sequence[str], counts: Sequence[int], aurocs: Sequence[dict[str, float]]) -> str:
    heads = " | ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
    lines = [f"| {first} (strange) | {heads} | mean |", f"|---|{'---:|' * (len(names) + 1)}"]
    for method in aurocs[0]:
        values = [one[method] for one in aurocs]
        mean = np.mean([v for v, count in zip(values, counts, strict=True) if count >= LEAST])
        lines.append(f"| {method} | {' | '.join(f'{v:.2f}' for v in values)} | {mean:.3f} |")
    return "\n".join(lines) + "\n"
