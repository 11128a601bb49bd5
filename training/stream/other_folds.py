"""``Other`` for each fold's head and for the published one, calibrated on what each had not seen, and scored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.stream.cache import Cache
from training.stream.examples import FrozenEncoder
from training.stream.head import Head
from training.stream.material import Material
from training.stream.other_head import (
    OTHER_SUBSETS,
    OtherCalibration,
    OtherMaterial,
    aurocs,
    other_logits,
    other_probabilities,
    subset_code,
    train_other,
)
from training.stream.other_network import CalibratedOther, OtherHeads
from training.stream.outside_examples import outside_examples
from training.stream.stored import StoredOther

LEFT_OUT = (
    ("css:cepheid", "css:RRd", "gaia:CEP", "ztf_dr:cepheid"),
    ("ztf_packets:moving", "ztf_packets:bogus", "ztf_packets:galaxy"),
)
"""Sets that are left out of a training together, to see what is recognised that was never seen."""
_LEFT_OUT = "auroc_of_sources_not_trained_on"


@dataclass(frozen=True, slots=True, eq=False)
class Others:
    """The networks of the folds, then the published one, and their common calibration."""

    material: OtherMaterial
    networks: Sequence[OtherHeads]
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

    def _calibrated(self, network: OtherHeads, without: int | None) -> CalibratedOther:
        slope, offset, thresholds = self.calibration.fit(self.material, without)
        network.slope.copy_(slope)
        network.offset.copy_(offset)
        return CalibratedOther(network, thresholds[0], thresholds[1], self.scores)


def fold_of_name(name: str, folds: int) -> int:
    """A fold by the name alone."""
    return zlib.crc32(name.encode()) % folds


def train_others(
    material: Material,
    fold: NDArray[np.intp],
    heads: Sequence[Head],
    repository: Path,
    data: Path,
    cache: Cache,
    seed: int,
    report: Callable[[str], None],
    kept: Sequence[StoredOther] | None = None,
) -> Others:
    """Networks for each of ``heads``, of which the last is the published one, and their scores.

    ``kept`` are networks of an earlier training for the same heads, which are then only calibrated anew; the scores of
    sets that they were not trained on are those of that training.

    The scores in the manifest are AUROCs of stars that the network had not seen, by set, and of whole sets that it was
    not trained on.
    """
    encoder = FrozenEncoder(repository)
    trained = material.archive.star[np.char.startswith(material.archive.kind.astype(str), "train")]
    outside = cache.examples(f"outside-{seed}.npz", lambda: outside_examples(encoder, data, trained))
    size = len(heads) - 1
    # Real stars of the head's are here as difference photometry, too, and keep their fold.
    of_star = dict(zip(material.real.star, fold.tolist(), strict=True))
    outside_fold = np.array([of_star.get(name, fold_of_name(name, size)) for name in outside.star], np.intp)
    own = OtherMaterial.of(material, fold, outside, outside_fold)
    report(f"Other: {int(own.outside.sum())} histories of {len(np.unique(own.star[own.outside].astype(str)))} objects")
    stored = kept or [StoredOther()] * len(heads)
    networks = [
        train_other(
            head, own, np.flatnonzero((own.fold != -2) & (own.fold != k)), seed + k, report,
            total=s.total, difference=s.difference,
        )
        for k, (head, s) in enumerate(zip(heads, stored, strict=True))
    ]  # fmt: skip
    calibration = _calibration(own, heads, networks)
    scores: dict[str, object] = {}
    others = Others(own, networks, calibration, {}, scores)
    for k in range(size):
        others.of_fold(k)
    scores["auroc"] = _scores(own, heads[:-1], networks[:-1])
    earlier = _earlier(repository) if kept else {}
    scores[_LEFT_OUT] = {**earlier, **_sources_left_out(own, heads[0], networks[0], seed, stored[0])}
    names = {str(s): int(f) for s, f in zip(outside.star, outside_fold, strict=True)}
    return replace(others, folds=names)


def _earlier(repository: Path) -> dict[str, object]:
    manifest = json.loads((repository / "manifest.json").read_text())
    found = manifest["training"]["stream_head"]["other"][_LEFT_OUT]
    return {name: score for name, score in found.items() if name in {n for names in LEFT_OUT for n in names}}


def _calibration(material: OtherMaterial, heads: Sequence[Head], networks: Sequence[OtherHeads]) -> OtherCalibration:
    parts = []
    for k, (head, network) in enumerate(zip(heads, networks, strict=True)):
        rows = np.flatnonzero(material.fold == (k if k < len(heads) - 1 else -2))
        # Packets calibrate the network for total fluxes, too, which was trained on them.
        total, alerts = rows[~material.only_as_alerts[rows]], rows[material.is_difference[rows]]
        for difference, chosen, subset in (
            *((False, total, s) for s in OTHER_SUBSETS), *((True, alerts, s) for s in OTHER_SUBSETS if s[0]),
        ):  # fmt: skip
            logit, usable, ten = other_logits(head, network, material, chosen, subset, as_total=not difference)
            own = chosen[usable]
            right, size = ten[usable].argmax(axis=1) == material.label[own], len(own)
            parts.append((np.full(size, subset_code(subset)), logit[usable], own, right, np.full(size, difference)))
    return OtherCalibration(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _scores(
    material: OtherMaterial, heads: Sequence[Head], networks: Sequence[OtherHeads]
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
    material: OtherMaterial, head: Head, calibrated: OtherHeads, seed: int, stored: StoredOther
) -> dict[str, tuple[float, int, int]]:
    """AUROC of each of LEFT_OUT by networks that were trained without it, against stars of fold 0.

    The calibration by modalities and detections is that of fold 0's network. What a ``stored`` network has learnt is
    left out here.
    """
    result: dict[str, tuple[float, int, int]] = {}
    for names in LEFT_OUT:
        left_out = np.isin(material.group.astype(str), names)
        as_alerts = bool(material.is_difference[left_out].any())
        if not left_out.any() or (stored.difference if as_alerts else stored.total) is not None:
            continue
        training = np.flatnonzero((material.fold != -2) & (material.fold != 0) & ~left_out)
        # The network for the other kind of photometry has no part in these sets' scores.
        network = train_other(
            head, material, training, seed, lambda text: None,
            total=calibrated.total if as_alerts else None, difference=None if as_alerts else calibrated.difference,
        )  # fmt: skip
        network.slope.copy_(calibrated.slope)
        network.offset.copy_(calibrated.offset)
        test = np.flatnonzero(left_out | ((material.fold == 0) & ~material.outside))
        probability = other_probabilities(head, network, material, test)
        usable = np.isfinite(probability)
        result.update(aurocs(material, test[usable], probability[usable]))
    return result
