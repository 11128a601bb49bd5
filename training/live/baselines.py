"""What the model is compared with on the same objects: two random forests, and AstroM3's encoder of light curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

from broker.assemble import assemble
from broker.assemble.history import history_features
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.assemble.metadata import MODEL_FEATURES, galactic, raw_values
from broker.assemble.usable import usable_points
from broker.barycentre import barycentric_light_curves
from broker.errors import ConfigurationError
from broker.records import ObjectState
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.baselines import new_forest
from training.config import load_settings
from training.data import Labels
from training.datasets.multiband import ALERT_LABELS, LabelledObjects, has_archive, load_archive, load_packets, scored
from training.datasets.splits import split
from training.datasets.tables import load_objects
from training.encoders.build import build_model
from training.stream.examples import Cut, cut_versions, first_n, random_n
from training.stream.material import PACKETS, REAL_SETS

FOLDS = 5
STARS_OF_CLASS = 500
"""Training stars of each class and survey of the archive, at most."""
_TREES = 300
_BATCH = 256


class LightCurveForest:
    """A random forest on the period and shape features that the encoder has, and no other network.

    Learnt from training stars of ASAS and Catalina and from the stars in several bands and packets that the head for
    streams is trained on, whole and cut; of the latter each star is answered by a forest that has not seen it.
    """

    def __init__(self, data: Path, folds: Mapping[str, int] | None, seed: int = 0) -> None:
        """``folds`` is the fold of each star, as of ``stream``; None divides those in ``data`` by chance."""
        archive, label = _archive_features(data, seed)
        real, real_label, star = _real_features(data, seed)
        names = np.unique(star)
        chance = np.random.default_rng([seed, 21]).permutation(len(names)) % FOLDS
        own = dict(zip(names.tolist(), chance.tolist(), strict=True)) if folds is None else dict(folds)
        self._fold = {name: own[name] for name in names.tolist() if name in own}
        fold = np.array([self._fold.get(name, -1) for name in star.tolist()], np.intp)
        self._forests: dict[int, RandomForestClassifier] = {}
        for k in track([-1, *sorted(set(self._fold.values()))], "Light-curve forests"):
            kept = (fold != k) | (k < 0)
            forest = new_forest(seed).set_params(n_estimators=_TREES)
            forest.fit(np.concatenate([archive, real[kept]]), np.concatenate([label, real_label[kept]]))
            self._forests[k] = forest

    def probabilities(self, objects: LabelledObjects) -> NDArray[np.float64]:
        """(n, 10), zero for objects without a usable light curve."""
        features, present = light_curve_features(objects.states)
        fold = np.array([self._fold.get(state.object_id, -1) for state in objects.states], np.intp)
        result = np.zeros((len(objects), len(CLASS_NAMES)))
        for k in np.unique(fold[present]).tolist():
            rows = np.flatnonzero(present & (fold == k))
            forest = self._forests[k]
            result[np.ix_(rows, forest.classes_)] = forest.predict_proba(features[rows])
        return result


def light_curve_features(states: Sequence[ObjectState]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n, LIGHT_CURVE_FEATURES), and which objects have a usable light curve."""
    parts = [assemble(states[first : first + _BATCH]).light_curve for first in range(0, len(states), _BATCH)]
    return np.concatenate([p.features for p in parts]), np.concatenate([p.present for p in parts])


def _archive_features(data: Path, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of training stars, whole and once cut, with their labels; none without the files."""
    if not (data / "asas_v.parquet").exists():
        return np.zeros((0, len(LIGHT_CURVE_FEATURES)), np.float32), np.zeros(0, np.int64)
    table = load_objects(data)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    training = split(table, 0)[0]
    training = training[labels.weight[training] == 1.0]
    rng = np.random.default_rng([seed, 22])
    rows = np.sort(
        np.concatenate(
            [
                rng.permutation(training[(table.survey[training] == survey) & (labels.index[training] == c)])[
                    :STARS_OF_CLASS
                ]
                for survey in np.unique(table.survey)
                for c in range(len(CLASS_NAMES))
            ]
        )
    )
    parts = []
    for cut in (None, first_n):
        curves = [table.light_curves[i] for i in rows]
        states = table.states(rows, [cut(c, rng) for c in curves] if cut else curves)
        features, present = light_curve_features(states)
        parts.append((features[present], labels.index[rows][present]))
    return np.concatenate([f for f, _ in parts]), np.concatenate([y for _, y in parts])


def _real_features(data: Path, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.object_]]:
    """Of stars in several bands and of packets, whole and cut, with their labels and names."""
    parts = []
    for name in REAL_SETS:
        packets = name == PACKETS
        if not ((data / "multiband" / ALERT_LABELS).exists() if packets else has_archive(data, name)):
            continue
        objects = scored(load_packets(data) if packets else load_archive(data, name))
        cuts: tuple[Cut, ...] = (first_n,) if packets else (first_n, random_n, first_n)
        label = np.array([CLASS_INDEX[own] for own in objects.label], np.int64)
        star = np.array([state.object_id for state in objects.states], object)
        for version in (objects, *cut_versions(objects, cuts, seed)):
            features, present = light_curve_features(version.states)
            parts.append((features[present], label[present], star[present]))
    if not parts:
        raise ConfigurationError(f"{data}: no stars in several bands to train the light-curve forest on")
    features, label, star = (np.concatenate(column) for column in zip(*parts, strict=True))
    return features, label, star


class Informer:
    """AstroM3's encoder of light curves with its head, trained by ``train --config informer --light-curve-only``."""

    def __init__(self, run_folder: Path, config: str = "informer") -> None:
        path = run_folder / "model.safetensors"
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist: python -m training train --config {config} ...")
        self._model = build_model(load_settings(config))
        self._model.load_state_dict(load_file(path))
        self._model.eval()

    @torch.no_grad()
    def probabilities(self, objects: LabelledObjects) -> NDArray[np.float64]:
        """(n, 10), zero for objects without a usable light curve."""
        result = np.zeros((len(objects), len(CLASS_NAMES)))
        for first in range(0, len(objects), _BATCH):
            inputs = assemble(objects.states[first : first + _BATCH]).light_curve
            rows = np.flatnonzero(inputs.present)
            if not len(rows):
                continue
            embedding = self._model.light_curve_encoder(
                *(
                    torch.from_numpy(getattr(inputs, name)[rows])
                    for name in ("points", "points_mask", "folded", "features")
                )
            )
            embeddings = torch.zeros(len(rows), 3, embedding.shape[1])
            embeddings[:, 0] = embedding
            present = torch.tensor([[True, False, False]]).expand(len(rows), -1)
            logits = self._model.classifier.logits(embeddings, present)
            result[first + rows] = logits.softmax(dim=1).numpy()
        return result


def packet_forest(
    objects: LabelledObjects, seed: int = 0, folds: int = FOLDS, fold_of_star: Mapping[str, int] | None = None
) -> dict[str, bool]:
    """Whether a random forest on what the packets say names the right class of each object, cross-validated by star.

    ``fold_of_star`` are those of the model that it is compared with, so that both learn from the same stars; one that
    is in none of them is answered by a forest of all that are. None divides the stars into ``folds`` by chance, evenly
    by class, as is done where none of them has a fold.

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
    fold = np.array([(fold_of_star or {}).get(s.object_id, -1) for s in objects.states], np.intp)
    if (fold < 0).all():
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for k, (_, rows) in enumerate(splits.split(values, label)):
            fold[rows] = k
    for k in np.unique(fold).tolist():
        train, test = (fold != k) & (fold >= 0), fold == k
        forest = RandomForestClassifier(500, min_samples_leaf=2, max_features=0.3, random_state=seed, n_jobs=-1)
        predicted[test] = forest.fit(values[train], label[train]).predict(values[test])
    return dict(zip((s.object_id for s in objects.states), (predicted == label).tolist(), strict=True))
