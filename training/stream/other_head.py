"""``Other``: the probability that an object is none of the ten classes, from the same embeddings.

Two small networks beside the ten-class head, which they do not touch: one for total fluxes, one for difference
photometry, which also has ``broker.assemble.event``. Each is trained on what is known to be outside
(``training.datasets.outside``, ``training.simulate.transients``) against stars of the ten classes, each set of objects
weighted alike, with values hidden and blurred: simulated alerts and survey's archives differ from packets in which
values they have, and that must not be what tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.inputs import MODALITIES
from broker.assemble.metadata import COLORS, MODEL_FEATURES, usable_metadata
from broker.inference.manifest import CALIBRATION_BINS, MODALITY_SUBSETS
from training.calibrate import cell_rows
from training.encoders.trimodal import Classifier
from training.stream.examples import Examples, set_of
from training.stream.head import Head
from training.stream.material import Inputs, Material
from training.stream.other_network import HIDDEN, MEMBERS, OtherHead, OtherHeads, mean_of
from training.stream.other_threshold import FEW, other_thresholds
from training.stream.outside_examples import source_of

DRAWN, DRAWN_OF_DIFFERENCES = 20_000, 12_000
"""Histories of one training, drawn anew for each."""
EPOCHS, BATCH = 6, 256
ONLY_AS_ALERTS = ("simulated", "difference")
"""Sets that are there as difference photometry; the network for total fluxes is not trained on these."""
LEARNING_RATE = 1.5e-3
SHARE_OF_SET = {"simulated": 0.7, "archive": 2.0}
"""How often a set is drawn against the others, 1.0 where nothing is said: the archive has all ten classes."""
PLAIN_SHARE = 0.5
"""Of the objects whose metadata keep colours and ranges only, so that neither the sky nor a survey's habits speak."""
PLAIN_VALUES = (*COLORS, "blue_range", "red_range")
MOST_HIDDEN, NOISE, EVENT_NOISE = 0.5, 0.2, 0.05
LEAST_IN_CELL = 150
NOT_HEARD = ("asassn",)
"""Sets that have no part in the thresholds: of ASAS-SN's labels half are doubtful."""
OTHER_SUBSETS = ((True, False, False), (False, False, True), (True, False, True))
_PLAIN = np.array([name in PLAIN_VALUES for name in MODEL_FEATURES])


@dataclass(frozen=True, slots=True, eq=False)
class OtherMaterial:
    """Objects of the ten classes and outside of them, a row each history."""

    light_curve: NDArray[np.float16]
    inputs: Inputs
    has_light_curve: NDArray[np.bool_]
    detections: NDArray[np.int32]
    event: NDArray[np.float32]
    outside: NDArray[np.bool_]
    group: NDArray[np.object_]
    """(n,) the set: weights are equal by set, and scores are by set."""
    fold: NDArray[np.intp]
    """(n,) of a star; -1 for the archive's training stars, -2 for its validation stars."""
    star: NDArray[np.object_]
    label: NDArray[np.int64]
    """(n,) position in CLASSES; -1 outside."""

    def __len__(self) -> int:
        return len(self.group)

    @staticmethod
    def of(
        material: Material, fold: NDArray[np.intp], outside: Examples, outside_fold: NDArray[np.intp]
    ) -> OtherMaterial:
        """From the head's material with the fold of each real star, and ``outside`` with its own folds."""
        kinds = material.archive.kind.astype(str)
        training, validation = (np.flatnonzero(np.char.startswith(kinds, name)) for name in ("train", "val"))
        archive = np.concatenate([training, validation])
        real = np.flatnonzero(material.usable)
        parts = [material.archive.take(archive), material.real.take(real), outside]
        inputs = [
            material.packet_like.take(archive),
            material.real_inputs.take(real),
            Inputs.of(outside, outside.values, material.scaler),
        ]
        groups = [
            np.full(len(archive), "archive", object),
            set_of(material.real.kind[real]),
            np.where(outside.label < 0, source_of(outside.kind), set_of(outside.kind)),
        ]
        folds = [np.where(np.arange(len(archive)) < len(training), -1, -2), fold[real], outside_fold]
        return OtherMaterial(
            np.concatenate([p.light_curve for p in parts]),
            Inputs(*(np.concatenate([getattr(i, n) for i in inputs]) for n in Inputs.__slots__)),
            np.concatenate([p.present for p in parts]),
            np.concatenate([p.detections for p in parts]),
            np.concatenate([p.event for p in parts]),
            np.concatenate([np.zeros(len(archive) + len(real), np.bool_), outside.label < 0]),
            np.concatenate(groups),
            np.concatenate(folds),
            np.concatenate([p.star for p in parts]),
            np.concatenate([p.label for p in parts]),
        )

    @property
    def is_difference(self) -> NDArray[np.bool_]:
        """(n,) which have a light curve of difference photometry."""
        return (self.event[:, 0] > 0) & self.has_light_curve

    @property
    def only_as_alerts(self) -> NDArray[np.bool_]:
        """(n,) which are of ONLY_AS_ALERTS."""
        return np.isin([str(name).split(":")[0] for name in self.group], ONLY_AS_ALERTS)

    def weights(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """(len(rows),) probabilities: half of them outside, and within a side each set by its share."""
        weight = np.zeros(len(rows))
        for side in (False, True):
            own = self.outside[rows] == side
            for name in np.unique(self.group[rows][own].astype(str)):
                members = own & (self.group[rows] == name)
                share = SHARE_OF_SET.get(name, SHARE_OF_SET.get(name.split(":")[0], 1.0))
                weight[members] = share / members.sum()
            weight[own] /= max(2 * weight[own].sum(), 1e-12)
        normalised: NDArray[np.float64] = weight / weight.sum()
        return normalised


def train_other(
    head: Head,
    material: OtherMaterial,
    rows: NDArray[np.intp],
    seed: int,
    report: Callable[[str], None],
    *,
    total: OtherHead | None = None,
    difference: OtherHead | None = None,
) -> OtherHeads:
    """Networks that tell ``rows`` that are outside from those of the ten classes; ``head`` stays as it is.

    ``total`` and ``difference`` are networks that are there already.
    """
    if total is None:
        own = rows[~material.only_as_alerts[rows]]
        total = mean_of([_train_member(head, material, own, seed + 100 * m, report, DRAWN) for m in range(MEMBERS)])
    if difference is None:
        own = rows[material.is_difference[rows]]
        difference = mean_of(
            [
                _train_member(head, material, own, seed + 100 * m, report, DRAWN_OF_DIFFERENCES, with_event=True)
                for m in range(MEMBERS)
            ]
        )
    return OtherHeads(total, difference).eval()


def _train_member(
    head: Head,
    material: OtherMaterial,
    rows: NDArray[np.intp],
    seed: int,
    report: Callable[[str], None],
    drawn: int,
    *,
    with_event: bool = False,
) -> OtherHead:
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 21])
    other = OtherHead(HIDDEN, with_event=with_event)
    if not len(rows):
        return other.eval()  # nothing to learn from; without stars there is no threshold, and nothing is called Other
    pool = _draw(head.eval(), material, rows, rng, drawn)
    steps = EPOCHS * drawn // BATCH
    optimizer = torch.optim.AdamW(other.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, drawn, BATCH))
        loss = torch.zeros(())
        for subset, ten in zip(OTHER_SUBSETS, pool.ten, strict=True):
            wanted = torch.tensor(subset)
            own = batch[(pool.there[batch] | ~wanted).all(dim=1)]
            positive = pool.outside[own]
            if not 0 < int(positive.sum()) < len(positive):
                continue
            logit = other.logit(
                pool.embeddings[own], wanted.expand(len(own), -1), pool.detections[own], pool.event[own], ten[own]
            )
            # Sets without colours are all on one side, or mostly: that a modality is missing shall say nothing.
            balance = torch.where(positive > 0, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))
            loss = loss + functional.binary_cross_entropy_with_logits(logit, positive * 0.96 + 0.02, weight=balance)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(other.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    report(f"Other: loss {float(loss.detach()):.3f}")
    return other.eval()


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Drawn histories, embedded once: the encoders and the ten-class head cost far more than what is trained."""

    embeddings: Tensor
    """(drawn, 3, 512); spectra are zero."""
    there: Tensor
    """(drawn, 3) which modalities each has."""
    detections: Tensor
    event: Tensor
    outside: Tensor
    """(drawn,) 1.0 or 0.0."""
    ten: list[Tensor]
    """(drawn, 10) logits of the ten-class head from each of OTHER_SUBSETS."""


@torch.no_grad()
def _draw(head: Head, material: OtherMaterial, rows: NDArray[np.intp], rng: np.random.Generator, drawn: int) -> _Pool:
    """Histories of ``rows`` by their weights, with values hidden and blurred."""
    cumulative = np.cumsum(material.weights(rows))
    chosen = rows[np.searchsorted(cumulative, rng.random(drawn), side="right").clip(max=len(rows) - 1)]
    size = (drawn, len(MODEL_FEATURES))
    values = material.inputs.values[chosen] + rng.normal(0, NOISE, size).astype(np.float32)
    known = material.inputs.known[chosen] & (rng.random(size) >= rng.uniform(0, MOST_HIDDEN, (drawn, 1)))
    known &= _PLAIN | (rng.random((drawn, 1)) >= PLAIN_SHARE)
    has_metadata = usable_metadata(known)
    known &= has_metadata[:, None]
    light_curve = torch.from_numpy(material.light_curve[chosen].astype(np.float32))
    event = material.event[chosen]
    # Zero is what total fluxes have, and that is exact.
    event = event + np.where(event != 0, rng.normal(0, EVENT_NOISE, event.shape), 0.0).astype(np.float32)
    metadata = head.metadata_encoder(torch.from_numpy(values), torch.from_numpy(known))
    embeddings = torch.stack([light_curve, torch.zeros_like(light_curve), metadata], dim=1)
    there = np.stack([material.has_light_curve[chosen], np.zeros(drawn, np.bool_), has_metadata], axis=1)
    return _Pool(
        embeddings,
        torch.from_numpy(there),
        torch.from_numpy(material.detections[chosen].astype(np.float32))[:, None],
        torch.from_numpy(event),
        torch.from_numpy(material.outside[chosen].astype(np.float32)),
        [head.classifier.logits(embeddings, torch.tensor(s).expand(drawn, -1)) for s in OTHER_SUBSETS],
    )


@torch.no_grad()
def other_logits(
    head: Head,
    other: OtherHeads,
    material: OtherMaterial,
    rows: NDArray[np.intp],
    subset: tuple[bool, ...] | None,
    *,
    as_total: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Of ``rows`` from the modalities of ``subset``, or all that they have: logits (n,), which have these, and the
    ten-class logits (n, 10). ``as_total`` by the network for total fluxes, whatever they are."""
    light_curve = torch.from_numpy(material.light_curve[rows].astype(np.float32))
    inputs = material.inputs.take(rows)
    metadata = head.metadata_encoder(torch.from_numpy(inputs.values), torch.from_numpy(inputs.known))
    there = np.stack([material.has_light_curve[rows], np.zeros(len(rows), np.bool_), inputs.present], axis=1)
    wanted = there if subset is None else np.broadcast_to(np.array(subset), there.shape)
    usable: NDArray[np.bool_] = np.logical_and((there | ~wanted).all(axis=1), wanted.any(axis=1))
    embeddings = torch.stack([light_curve, torch.zeros_like(light_curve), metadata], dim=1)
    present = torch.from_numpy(np.array(wanted))
    detections = torch.from_numpy(material.detections[rows].astype(np.float32))[:, None]
    ten = head.classifier.logits(embeddings, present)
    event = torch.from_numpy(material.event[rows] * np.float32(not as_total))
    return other.logit(embeddings, present, detections, event, ten).numpy(), usable, ten.numpy()


@torch.no_grad()
def other_probabilities(
    head: Head, other: OtherHeads, material: OtherMaterial, rows: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(n,) calibrated, from all that each of ``rows`` has; NaN for neither light curve nor metadata."""
    logit, usable, _ = other_logits(head, other, material, rows, None)
    subset = material.has_light_curve[rows] + 4 * material.inputs.present[rows]
    number = np.searchsorted(CALIBRATION_BINS[1:], material.detections[rows], side="right")
    cell = material.is_difference[rows].astype(np.intp), subset, number
    slope, offset = other.slope.numpy()[cell], other.offset.numpy()[cell]
    probability = 1.0 / (1.0 + np.exp(-(slope * logit.astype(np.float64) + offset)))
    result: NDArray[np.float64] = np.where(usable, probability, np.nan)
    return result


def balanced_weights(outside: NDArray[np.bool_], group: NDArray[np.object_]) -> NDArray[np.float64]:
    """(n,) weights: both sides one half, and each set of a side alike."""
    weight = np.zeros(len(outside))
    for side in (False, True):
        own = outside == side
        names = np.unique(group[own].astype(str))
        for name in names:
            members = own & (group == name)
            weight[members] = 0.5 / len(names) / members.sum()
    return weight


def fit_platt(
    logit: NDArray[np.float32], outside: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope, at least 0.05, and offset of the logistic regression of ``outside`` on ``logit`` (Platt 1999)."""
    if outside.all() or not outside.any():
        return 1.0, 0.0
    fitted = LogisticRegression(C=10.0).fit(logit[:, None], outside, sample_weight=weight * len(weight))
    return max(float(fitted.coef_[0, 0]), 0.05), float(fitted.intercept_[0])


@dataclass(frozen=True, slots=True, eq=False)
class OtherCalibration:
    """Logits of objects that the network had not seen, a row each and subset."""

    code: NDArray[np.intp]
    """(n,) number of the subset, as ``subset_codes``."""
    logit: NDArray[np.float32]
    row: NDArray[np.intp]
    """(n,) in the material."""
    right: NDArray[np.bool_]
    """(n,) whether the ten-class head's answer from these modalities is the label."""
    difference: NDArray[np.bool_]
    """(n,) whether the logit is that of the network for difference photometry."""

    def fit(
        self, material: OtherMaterial, without: int | None = None
    ) -> tuple[Tensor, Tensor, list[dict[str, tuple[float, ...]]]]:
        """Slopes and offsets (2, 8, CALIBRATION_BINS) and the manifest's thresholds, but for one fold's stars.

        The first are those of total fluxes, the second those of difference photometry.
        """
        parts = [self._fit(material, without, difference) for difference in (False, True)]
        slopes, offsets, thresholds = zip(*parts, strict=True)
        return torch.stack(slopes), torch.stack(offsets), list(thresholds)

    def _fit(
        self, material: OtherMaterial, without: int | None, difference: bool
    ) -> tuple[Tensor, Tensor, dict[str, tuple[float, ...]]]:
        size = (2 ** len(MODALITIES), len(CALIBRATION_BINS))
        slope, offset = torch.ones(size), torch.zeros(size)
        kept = self.difference == difference
        if difference:
            # A star's alerts have a reference source, and with it colours: hiding these makes stars that do not occur.
            kept &= (self.code & 4 > 0) == material.inputs.present[self.row]
        if without is not None:
            kept &= material.fold[self.row] != without
        group = material.group[self.row].astype(str)
        thresholds = {}
        for subset in OTHER_SUBSETS:
            code = subset_code(subset)
            own = np.flatnonzero(kept & (self.code == code))
            detections = material.detections[self.row[own]]
            for cell, chosen in enumerate(cell_rows(detections, LEAST_IN_CELL)):
                rows = own[chosen]
                outside = material.outside[self.row[rows]]
                weight = balanced_weights(outside, group[rows])
                slope[code, cell], offset[code, cell] = fit_platt(self.logit[rows], outside, weight)
            ten = own[~material.outside[self.row[own]] & ~np.isin(group[own], NOT_HEARD)]
            detections = material.detections[self.row[ten]]
            number = np.searchsorted(CALIBRATION_BINS[1:], detections, side="right")
            a, b = slope.numpy()[code, number], offset.numpy()[code, number]
            probability = 1 / (1 + np.exp(-(a * self.logit[ten].astype(np.float64) + b)))
            few = CALIBRATION_BINS[-1] + 1 if difference and not subset[2] else FEW
            thresholds[code] = other_thresholds(probability, self.right[ten], group[ten], detections, few)
        never = (1.0,) * len(CALIBRATION_BINS)
        # What a spectrum says of Other is not known.
        return slope, offset, {name: thresholds.get(_without_spectrum(name), never) for name in MODALITY_SUBSETS}


def _without_spectrum(subset: str) -> int:
    """Number of a named subset of the modalities, but for the spectrum."""
    present = [name in subset.split("+") and name != "spectrum" for name in MODALITIES]
    return sum(1 << i for i, there in enumerate(present) if there)


def subset_code(subset: Sequence[bool]) -> int:
    """Its number, whose lowest bit is the light curve."""
    return int(Classifier.subset_index(torch.tensor([subset]))[0])


def aurocs(
    material: OtherMaterial, rows: NDArray[np.intp], score: NDArray[np.float64]
) -> dict[str, tuple[float, int, int]]:
    """By set outside, AUROC against the ten classes' stars (each set of these alike), and numbers on both sides."""
    inside = ~material.outside[rows]
    result = {}
    for name in np.unique(material.group[rows][~inside].astype(str)).tolist():
        own = material.outside[rows] & (material.group[rows] == name)
        chosen = inside | own
        weight = balanced_weights(material.outside[rows][chosen], material.group[rows][chosen])
        area = roc_auc_score(material.outside[rows][chosen], score[chosen], sample_weight=weight)
        result[name] = (round(float(area), 3), int(own.sum()), int(inside.sum()))
    return result
