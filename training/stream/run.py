"""Cross-validation, calibration and export of the stream's head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.inference.manifest import CALIBRATION_BINS
from training.calibrate import COVERAGE, LEAST_IN_CELL, best_log_temperature, cell_rows, conformal_threshold
from training.encoders.trimodal import SUBSETS, Classifier, subset_name
from training.export import export_classifier, export_metadata_encoder, save_scaler, write_manifest
from training.stream.cache import Cache, origin_of
from training.stream.examples import Examples, set_of
from training.stream.head import Head, train_head
from training.stream.material import SEVERAL_BANDS, Inputs, Material, prepare_material
from training.stream.no_metadata_head import head_without_metadata
from training.stream.other_folds import train_others
from training.stream.other_network import CalibratedOther, ClassifierWithOther
from training.stream.stored import StoredOther, stored_head, stored_other

FOLDS = 5


class Keep(Enum):
    """Which networks of an earlier training stay as they are."""

    NOTHING = "nothing"
    CLASSES = "classes"
    """Those of the ten classes: metadata encoder and classifier; ``Other`` is trained anew."""
    TOTAL = "total"
    """All but the network of ``Other`` for difference photometry."""
    ALL = "all"


NOT_CALIBRATED_WITH = ("stripe82", "asassn")
"""Of Stripe 82 there are RR Lyrae stars only, and whole classes of mistakes cannot be made; of ASAS-SN's labels half
are doubtful, and covering them would enlarge all other prediction sets."""
CONFIDENCE = 0.8
"""With which the prediction sets cover what they promise, in each set of stars and cell: of 40 stars the coverage is
known to 0.05 only, and half of the cells would be below."""


def fold_of_stars(material: Material, seed: int) -> NDArray[np.intp]:
    """(m,) the fold of each real example, the same for all of one star."""
    names, star = np.unique(material.real.star.astype(str), return_inverse=True)
    return (np.random.default_rng([seed, 16]).permutation(len(names)) % FOLDS)[star]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Logits of histories that the model had not seen, with their labels; a row each."""

    subset: NDArray[np.intp]
    """(n,) index into SUBSETS."""
    logits: NDArray[np.float32]
    """(n, 10)."""
    label: NDArray[np.int64]
    detections: NDArray[np.int32]
    fold: NDArray[np.intp]
    """(n,) of a real star; -1 for the archive's."""
    group: NDArray[np.str_]
    """(n,) the set that it comes from."""

    def fit(self, without: int | None = None) -> tuple[NDArray[np.float32], dict[str, tuple[float, ...]]]:
        """Logarithms of temperatures (8, CALIBRATION_BINS) and conformal thresholds, but for one fold's stars.

        All data sets in a cell weigh the same in its temperature; its threshold is the lowest of the data sets', so
        that prediction sets cover what they promise in each kind of survey and not only over all.
        """
        temperatures = np.zeros((1 << len(MODALITIES), len(CALIBRATION_BINS)), np.float32)
        thresholds = {}
        kept = self.fold != (-2 if without is None else without)
        for number, subset in enumerate(SUBSETS):
            rows = np.flatnonzero(kept & (self.subset == number))
            code = int(Classifier.subset_index(torch.tensor([subset]))[0])
            cells = []
            for cell, chosen in enumerate(cell_rows(self.detections[rows], LEAST_IN_CELL)):
                own = rows[chosen]
                logits, label, group = torch.from_numpy(self.logits[own]), self.label[own], self.group[own]
                weight = set_weights(group, LEAST_IN_CELL)
                log_temperature = best_log_temperature(logits, torch.from_numpy(label), torch.from_numpy(weight))
                temperatures[code, cell] = log_temperature
                probability = (logits / float(np.exp(log_temperature))).softmax(dim=1).double().numpy()
                of_label = probability[np.arange(len(own)), label]
                parts = [of_label[group == name] for name in np.unique(group)]
                enough = [part for part in parts if len(part) >= LEAST_IN_CELL] or [of_label]
                cells.append(min(conformal_threshold(part, COVERAGE, CONFIDENCE) for part in enough))
            thresholds[subset_name(subset)] = tuple(cells)
        return temperatures, thresholds


def calibration_group(kind: NDArray[np.object_]) -> NDArray[np.str_]:
    """(n,) the set of each example, of the archive's whether in one band, as observed, or in several."""
    several = np.isin(kind.astype(str), [f"val/{number}" for number in SEVERAL_BANDS["val"]])
    return np.where(several, "val in several bands", set_of(kind).astype(str))


def set_weights(group: NDArray[np.str_], enough: int) -> NDArray[np.float32]:
    """(n,) weights with which sets of ``enough`` objects and more count alike, and smaller ones as they are large."""
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    weight: NDArray[np.float32] = (np.minimum(count, enough) / count)[number].astype(np.float32)
    return weight


@torch.no_grad()
def head_logits(
    head: Head, examples: Examples, inputs: Inputs, spectrum: NDArray[np.float16] | None, subset: tuple[bool, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits (n, 10) from the modalities of ``subset``, and which examples have all of these."""
    light_curve = torch.from_numpy(examples.light_curve.astype(np.float32))
    spectra = torch.zeros_like(light_curve) if spectrum is None else torch.from_numpy(spectrum.astype(np.float32))
    metadata = head.metadata_encoder(torch.from_numpy(inputs.values), torch.from_numpy(inputs.known))
    there = np.stack([examples.present, np.full(len(examples), spectrum is not None), inputs.present], axis=1)
    usable = (there | ~np.array(subset)).all(axis=1)
    logits = head.logits(light_curve, spectra, metadata, torch.tensor(subset).expand(len(examples), -1))
    return logits.numpy(), usable


def calibration_of(material: Material, heads: Sequence[Head], published: Head, fold: NDArray[np.intp]) -> Calibration:
    """Real stars by the head of their fold; the archive's validation stars where no real star has the modalities.

    A light curve alone is calibrated on both: streams of one band are as frequent as of several.
    """
    parts: list[Calibration] = []

    def add(
        number: int, logits: NDArray[np.float32], examples: Examples, of_fold: int, chosen: NDArray[np.bool_]
    ) -> None:
        size, own = int(chosen.sum()), examples.take(chosen)
        parts.append(
            Calibration(
                np.full(size, number), logits[chosen], own.label, own.detections, np.full(size, of_fold),
                calibration_group(own.kind),
            )
        )  # fmt: skip

    calibrates = ~np.isin(set_of(material.real.kind).astype(str), NOT_CALIBRATED_WITH)
    validation = np.array([kind.startswith("val") for kind in material.archive.kind])
    archive, spectrum = material.archive.take(validation), material.spectrum[validation]
    for number, subset in enumerate(SUBSETS):
        if not subset[1]:
            for k, head in enumerate(heads):
                rows = material.usable & (fold == k) & calibrates
                examples = material.real.take(rows)
                logits, usable = head_logits(head, examples, material.real_inputs.take(rows), None, subset)
                add(number, logits, examples, k, usable)
        if subset[1] or not subset[2]:
            for inputs in (material.catalogued.take(validation), material.packet_like.take(validation)):
                logits, usable = head_logits(published, archive, inputs, spectrum, subset)
                add(number, logits, archive, -1, usable)
                if not subset[2]:
                    break
    return Calibration(*(np.concatenate([getattr(p, name) for p in parts]) for name in Calibration.__slots__))


def train_stream(
    repository: Path,
    data: Path,
    output: Path,
    version: str,
    seed: int,
    report: Callable[[str], None],
    *,
    keep: Keep = Keep.NOTHING,
) -> None:
    """Train the head on what streams carry, and write it: into ``repository``, and each fold's into ``output``.

    ``output`` has the folders ``folds/0`` and so on, repositories without a reference set, ``folds/folds.json``, which
    names each star's, and ``cache``. The repository's light-curve and spectrum encoders stay as they are, and
    so does the head for objects without metadata where it fits them. ``keep`` names which networks stay, of
    ``repository`` and of ``folds``, from an earlier training with the same ``seed``; temperatures, prediction sets and
    the probabilities and thresholds of ``Other`` are always made anew. Raises ConfigurationError where these hold none.
    """
    cache = Cache(output / "cache", origin_of(repository, data))
    material = prepare_material(repository, data, seed, cache, report)
    fold = fold_of_stars(material, seed)
    kept: list[StoredOther] | None = None
    if keep == Keep.NOTHING:
        heads, published = _trained_heads(material, fold, seed, report)
    else:
        repositories = [*(output / "folds" / str(k) for k in range(FOLDS)), repository]
        *heads, published = (stored_head(path) for path in repositories)
        if keep != Keep.CLASSES:
            kept = [stored_other(path, difference=keep == Keep.ALL) for path in repositories]
    calibration = calibration_of(material, heads, published, fold)
    others = train_others(material, fold, [*heads, published], repository, data, cache, seed, report, kept)
    folds = output / "folds"
    for k, head in enumerate(heads):
        write_head(
            head, *calibration.fit(without=k), repository, folds / str(k), f"{version}-fold{k}", others.of_fold(k)
        )
    names = {str(s): int(f) for s, f, u in zip(material.real.star, fold, material.usable, strict=True) if u}
    names |= others.folds
    (folds / "folds.json").write_text(json.dumps(names, indent=1) + "\n")
    save_scaler(material.scaler)
    write_head(published, *calibration.fit(), repository, repository, version, others.published())


def _trained_heads(
    material: Material, fold: NDArray[np.intp], seed: int, report: Callable[[str], None]
) -> tuple[list[Head], Head]:
    """A head without each fold's stars, and one of all stars."""
    plain = head_without_metadata(material, seed, report)
    heads = []
    for k in range(FOLDS):
        report(f"fold {k + 1} of {FOLDS}")
        heads.append(train_head(material, fold != k, plain, seed + k, report))
    report("final head, all stars")
    return heads, train_head(material, np.ones(len(fold), np.bool_), plain, seed, report)


def write_head(
    head: Head,
    log_temperatures: NDArray[np.float32],
    thresholds: dict[str, tuple[float, ...]],
    source: Path,
    repository: Path,
    version: str,
    other: CalibratedOther,
) -> None:
    """A repository with the encoders of ``source``, this head and ``other`` beside it.

    It has no reference set until one is made for it.
    """
    if repository != source:
        for name in ("light_curve_encoder", "spectrum_encoder", "metadata_encoder", "classifier"):
            shutil.copytree(source / name, repository / name, dirs_exist_ok=True)
    head.classifier.log_temperature.copy_(torch.from_numpy(log_temperatures))
    export_metadata_encoder(head.metadata_encoder, repository)
    export_classifier(ClassifierWithOther(head.classifier, other.network), repository, with_other=True)
    training = json.loads((source / "manifest.json").read_text())["training"]
    training["stream_head"] = {"version": version, "folds": FOLDS, "other": other.scores}
    write_manifest(repository, version, thresholds, training, other.thresholds, other.difference_thresholds)
