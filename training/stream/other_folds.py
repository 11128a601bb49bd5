"""``Other`` for each fold's head and for the published one, calibrated on what each had not seen, and scored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.stream.examples import FrozenEncoder
from training.stream.head import Head
from training.stream.material import Material, cached
from training.stream.other_head import (
    OTHER_SUBSETS,
    CalibratedOther,
    OtherCalibration,
    OtherHead,
    OtherMaterial,
    aurocs,
    other_logits,
    other_probabilities,
    subset_code,
    train_other,
)
from training.stream.outside_examples import has_all_versions, outside_examples

LEFT_OUT = (
    ("css:cepheid", "css:RRd", "gaia:CEP", "ztf_dr:cepheid"),
    ("elasticc:simulated",),
    ("ztf_packets:moving", "ztf_packets:bogus", "ztf_packets:galaxy"),
)
"""Sets that are left out of a training together, to see what is recognised that was never seen."""
_LEFT_OUT = "auroc_of_sources_not_trained_on"


@dataclass(frozen=True, slots=True, eq=False)
class Others:
    """The networks of the folds, then the published one, and their common calibration."""

    material: OtherMaterial
    networks: Sequence[OtherHead]
    calibration: OtherCalibration
    folds: dict[str, int]
    """The fold of each star outside the ten."""
    scores: dict[str, object]

    def of_fold(self, fold: int) -> CalibratedOther:
        """The network that has not seen a fold's stars, calibrated without them."""
        return self._calibrated(self.networks[fold], fold)

    def published(self) -> CalibratedOther:
        """The network that has seen all."""
        return self._calibrated(self.networks[-1], None)

    def _calibrated(self, network: OtherHead, without: int | None) -> CalibratedOther:
        slope, offset, thresholds = self.calibration.fit(self.material, without)
        network.slope.copy_(slope)
        network.offset.copy_(offset)
        return CalibratedOther(network, thresholds, self.scores)


def fold_of_name(name: str, folds: int) -> int:
    """A fold by the name alone."""
    return zlib.crc32(name.encode()) % folds


def train_others(
    material: Material,
    fold: NDArray[np.intp],
    heads: Sequence[Head],
    repository: Path,
    data: Path,
    cache: Path,
    seed: int,
    report: Callable[[str], None],
    kept: Sequence[OtherHead] | None = None,
) -> Others:
    """A network for each of ``heads``, of which the last is the published one, and their scores.

    ``kept`` are networks of an earlier training for the same heads, which are then only calibrated anew; the scores of
    sets that they were not trained on are those of that training.

    The scores in the manifest are AUROCs of stars that the network had not seen, by set, and of whole sets that it was
    not trained on.
    """
    encoder = FrozenEncoder(repository)
    outside = cached(cache / "outside.npz", lambda: outside_examples(encoder, data), fits=has_all_versions)
    size = len(heads) - 1
    outside_fold = np.array([fold_of_name(name, size) for name in outside.star], np.intp)
    own = OtherMaterial.of(material, fold, outside, outside_fold)
    report(f"Other: {int(own.outside.sum())} histories of {len(np.unique(own.star[own.outside].astype(str)))} objects")
    networks = kept or [
        train_other(head, own, np.flatnonzero((own.fold != -2) & (own.fold != k)), seed + k, report)
        for k, head in enumerate(heads)
    ]
    calibration = _calibration(own, heads, networks)
    scores: dict[str, object] = {}
    others = Others(own, networks, calibration, {}, scores)
    for k in range(size):
        others.of_fold(k)
    scores["auroc"] = _scores(own, heads[:-1], networks[:-1])
    scores[_LEFT_OUT] = _earlier(repository) if kept else _sources_left_out(own, heads[0], networks[0], seed)
    names = {str(s): int(f) for s, f in zip(outside.star, outside_fold, strict=True)}
    return replace(others, folds=names)


def _earlier(repository: Path) -> object:
    manifest = json.loads((repository / "manifest.json").read_text())
    return manifest["training"]["stream_head"]["other"][_LEFT_OUT]


def _calibration(material: OtherMaterial, heads: Sequence[Head], networks: Sequence[OtherHead]) -> OtherCalibration:
    parts = []
    for k, (head, network) in enumerate(zip(heads, networks, strict=True)):
        rows = np.flatnonzero(material.fold == (k if k < len(heads) - 1 else -2))
        for subset in OTHER_SUBSETS:
            logit, usable, ten = other_logits(head, network, material, rows, subset)
            right = ten[usable].argmax(axis=1) == material.label[rows[usable]]
            parts.append((np.full(int(usable.sum()), subset_code(subset)), logit[usable], rows[usable], right))
    return OtherCalibration(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _scores(
    material: OtherMaterial, heads: Sequence[Head], networks: Sequence[OtherHead]
) -> dict[str, tuple[float, int, int]]:
    rows, scores = [], []
    for k, (head, network) in enumerate(zip(heads, networks, strict=True)):
        own = np.flatnonzero(material.fold == k)
        probability = other_probabilities(head, network, material, own)
        usable = np.isfinite(probability)
        rows.append(own[usable])
        scores.append(probability[usable])
    return aurocs(material, np.concatenate(rows), np.concatenate(scores))


def _sources_left_out(
    material: OtherMaterial, head: Head, calibrated: OtherHead, seed: int
) -> dict[str, tuple[float, int, int]]:
    """AUROC of each of LEFT_OUT by a network that was trained without it, against stars of fold 0.

    The calibration by modalities and detections is that of fold 0's network.
    """
    result = {}
    for names in LEFT_OUT:
        left_out = np.isin(material.group.astype(str), names)
        if not left_out.any():
            continue
        training = np.flatnonzero((material.fold != -2) & (material.fold != 0) & ~left_out)
        network = train_other(head, material, training, seed, lambda text: None)
        network.slope.copy_(calibrated.slope)
        network.offset.copy_(calibrated.offset)
        test = np.flatnonzero(left_out | ((material.fold == 0) & ~material.outside))
        probability = other_probabilities(head, network, material, test)
        usable = np.isfinite(probability)
        result.update(aurocs(material, test[usable], probability[usable]))
    return result
