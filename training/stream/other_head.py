"""``Other``: the probability that an object is none of the ten classes, from the same embeddings.

A small network beside the ten-class head, which it does not touch. It is trained on what is known to be outside
(``training.datasets.outside``) against stars of the ten classes, each set of objects weighted alike, with values hidden
and blurred: simulated alerts and survey's archives differ from packets in which values they have, and that must not be
what tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

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
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import Classifier
from training.stream.examples import Examples, set_of
from training.stream.head import Head
from training.stream.material import Inputs, Material
from training.stream.other_threshold import other_thresholds
from training.stream.outside_examples import source_of

DRAWN = 20_000
"""Histories of one training, drawn anew for each."""
EPOCHS, BATCH = 6, 256
MEMBERS, HIDDEN = 4, 128
"""Networks with draws of their own, whose mean logit is used, and the width of each: of what is new they differ."""
LEARNING_RATE = 1.5e-3
SHARE_OF_SET = {"elasticc": 0.7, "archive": 2.0}
"""How often a set is drawn against the others, 1.0 where nothing is said: ELAsTiCC is simulated, the archive has all
ten classes."""
PLAIN_SHARE = 0.5
"""Of the objects whose metadata keep colours and ranges only, so that neither the sky nor a survey's habits speak."""
PLAIN_VALUES = (*COLORS, "blue_range", "red_range")
MOST_HIDDEN, NOISE = 0.5, 0.2
LEAST_IN_CELL = 150
NOT_HEARD = ("asassn",)
"""Sets that have no part in the thresholds: of ASAS-SN's labels half are doubtful."""
OTHER_SUBSETS = ((True, False, False), (False, False, True), (True, False, True))
_PLAIN = np.array([name in PLAIN_VALUES for name in MODEL_FEATURES])


class OtherHead(nn.Module):
    """Embeddings, the ten-class head's logits and the number of detections to the probability of none of the ten."""

    def __init__(self, hidden: int = MEMBERS * HIDDEN, dropout: float = 0.3) -> None:
        super().__init__()
        self.light_curve = nn.Linear(EMBEDDING, hidden, bias=False)
        self.metadata = nn.Linear(EMBEDDING, hidden, bias=False)
        self.rest = nn.Linear(10 + 3, hidden)
        self.last = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
        size = (2 ** len(MODALITIES), len(CALIBRATION_BINS))
        # Platt's two numbers (1999) for each subset of the modalities and number of detections.
        self.register_buffer("slope", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("bin_ends", torch.tensor(CALIBRATION_BINS[1:], dtype=torch.float32), persistent=False)
        self.slope: Tensor
        self.offset: Tensor
        self.bin_ends: Tensor

    def logit(self, embeddings: Tensor, present: Tensor, detections: Tensor, logits: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3), (batch, 1), (batch, 10) to (batch,), not calibrated. Spectra are not used."""
        mask = present.to(embeddings.dtype)
        x = embeddings * mask[..., None] * EMBEDDING**0.5
        known = torch.cat([mask[:, 0:1], mask[:, 2:3], (detections + 1).log10()], dim=1)
        ten = logits.log_softmax(dim=1).clamp(min=-8.0) / 4.0
        hidden = self.light_curve(x[:, 0]) + self.metadata(x[:, 2]) + self.rest(torch.cat([ten, known], dim=1))
        result: Tensor = self.last(hidden)[:, 0]
        return result

    def forward(self, embeddings: Tensor, present: Tensor, detections: Tensor, logits: Tensor) -> Tensor:
        """(batch, 1) calibrated probability; NaN for an object with neither light curve nor metadata."""
        # What a spectrum says of Other is not known, and the calibration is that without it.
        subset = present[:, 0].long() + 4 * present[:, 2].long()
        number = (detections >= self.bin_ends).long().sum(dim=1)
        logit = self.logit(embeddings, present, detections, logits)
        probability = (self.slope[subset, number] * logit + self.offset[subset, number]).sigmoid()
        return torch.where(subset > 0, probability, torch.full_like(probability, torch.nan))[:, None]


class ClassifierWithOther(nn.Module):
    """What is exported: the ten-class classifier as it is, and a third output beside its two."""

    def __init__(self, classifier: Classifier, other: OtherHead) -> None:
        super().__init__()
        self.classifier = classifier
        self.other = other

    def forward(
        self, light_curve: Tensor, spectrum: Tensor, metadata: Tensor, present: Tensor, detections: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Classifier.forward``, and the probability of none of the ten (batch, 1)."""
        probabilities, embedding = self.classifier(light_curve, spectrum, metadata, present, detections)
        embeddings = torch.stack([light_curve, spectrum, metadata], dim=1)
        logits = self.classifier.logits(embeddings, present)
        return probabilities, embedding, self.other(embeddings, present, detections, logits)


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedOther:
    """What is published of ``Other``."""

    network: OtherHead
    thresholds: dict[str, tuple[float, ...]]
    """For the manifest: probabilities from which an object is published as Other."""
    scores: dict[str, object]
    """For the manifest, for people to read."""


@dataclass(frozen=True, slots=True, eq=False)
class OtherMaterial:
    """Objects of the ten classes and outside of them, a row each history."""

    light_curve: NDArray[np.float16]
    inputs: Inputs
    has_light_curve: NDArray[np.bool_]
    detections: NDArray[np.int32]
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
            np.concatenate([np.zeros(len(archive) + len(real), np.bool_), outside.label < 0]),
            np.concatenate(groups),
            np.concatenate(folds),
            np.concatenate([p.star for p in parts]),
            np.concatenate([p.label for p in parts]),
        )

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
    head: Head, material: OtherMaterial, rows: NDArray[np.intp], seed: int, report: Callable[[str], None]
) -> OtherHead:
    """A network that tells ``rows`` that are outside from those of the ten classes; ``head`` stays as it is."""
    return mean_of([_train_member(head, material, rows, seed + 100 * member, report) for member in range(MEMBERS)])


@torch.no_grad()
def mean_of(members: Sequence[OtherHead]) -> OtherHead:
    """One network whose logit is the mean of those of ``members``, not calibrated: their hidden layers side by side."""
    joined = OtherHead(sum(member.rest.out_features for member in members))
    for name in ("light_curve", "metadata", "rest"):
        getattr(joined, name).weight.copy_(torch.cat([getattr(member, name).weight for member in members]))
    joined.rest.bias.copy_(torch.cat([member.rest.bias for member in members]))
    last = [cast("nn.Linear", member.last[-1]) for member in members]
    own = cast("nn.Linear", joined.last[-1])
    own.weight.copy_(torch.cat([layer.weight for layer in last], dim=1) / len(members))
    own.bias.copy_(torch.stack([layer.bias for layer in last]).mean(dim=0))
    return joined.eval()


def _train_member(
    head: Head, material: OtherMaterial, rows: NDArray[np.intp], seed: int, report: Callable[[str], None]
) -> OtherHead:
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 21])
    other = OtherHead(HIDDEN)
    pool = _draw(head.eval(), material, rows, rng)
    steps = EPOCHS * DRAWN // BATCH
    optimizer = torch.optim.AdamW(other.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, DRAWN, BATCH))
        loss = torch.zeros(())
        for subset, ten in zip(OTHER_SUBSETS, pool.ten, strict=True):
            wanted = torch.tensor(subset)
            own = batch[(pool.there[batch] | ~wanted).all(dim=1)]
            positive = pool.outside[own]
            if not 0 < int(positive.sum()) < len(positive):
                continue
            logit = other.logit(pool.embeddings[own], wanted.expand(len(own), -1), pool.detections[own], ten[own])
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
    """DRAWN histories, embedded once: the encoders and the ten-class head cost far more than what is trained."""

    embeddings: Tensor
    """(DRAWN, 3, 512); spectra are zero."""
    there: Tensor
    """(DRAWN, 3) which modalities each has."""
    detections: Tensor
    outside: Tensor
    """(DRAWN,) 1.0 or 0.0."""
    ten: list[Tensor]
    """(DRAWN, 10) logits of the ten-class head from each of OTHER_SUBSETS."""


@torch.no_grad()
def _draw(head: Head, material: OtherMaterial, rows: NDArray[np.intp], rng: np.random.Generator) -> _Pool:
    """Histories of ``rows`` by their weights, with values hidden and blurred."""
    cumulative = np.cumsum(material.weights(rows))
    chosen = rows[np.searchsorted(cumulative, rng.random(DRAWN), side="right").clip(max=len(rows) - 1)]
    size = (DRAWN, len(MODEL_FEATURES))
    values = material.inputs.values[chosen] + rng.normal(0, NOISE, size).astype(np.float32)
    known = material.inputs.known[chosen] & (rng.random(size) >= rng.uniform(0, MOST_HIDDEN, (DRAWN, 1)))
    known &= _PLAIN | (rng.random((DRAWN, 1)) >= PLAIN_SHARE)
    has_metadata = usable_metadata(known)
    known &= has_metadata[:, None]
    light_curve = torch.from_numpy(material.light_curve[chosen].astype(np.float32))
    metadata = head.metadata_encoder(torch.from_numpy(values), torch.from_numpy(known))
    embeddings = torch.stack([light_curve, torch.zeros_like(light_curve), metadata], dim=1)
    there = np.stack([material.has_light_curve[chosen], np.zeros(DRAWN, np.bool_), has_metadata], axis=1)
    return _Pool(
        embeddings,
        torch.from_numpy(there),
        torch.from_numpy(material.detections[chosen].astype(np.float32))[:, None],
        torch.from_numpy(material.outside[chosen].astype(np.float32)),
        [head.classifier.logits(embeddings, torch.tensor(s).expand(DRAWN, -1)) for s in OTHER_SUBSETS],
    )


@torch.no_grad()
def other_logits(
    head: Head, other: OtherHead, material: OtherMaterial, rows: NDArray[np.intp], subset: tuple[bool, ...] | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Of ``rows`` from the modalities of ``subset``, or all that they have: logits (n,), which have these, and the
    ten-class logits (n, 10)."""
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
    return other.logit(embeddings, present, detections, ten).numpy(), usable, ten.numpy()


@torch.no_grad()
def other_probabilities(
    head: Head, other: OtherHead, material: OtherMaterial, rows: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(n,) calibrated, from all that each of ``rows`` has; NaN for neither light curve nor metadata."""
    logit, usable, _ = other_logits(head, other, material, rows, None)
    subset = material.has_light_curve[rows] + 4 * material.inputs.present[rows]
    number = np.searchsorted(CALIBRATION_BINS[1:], material.detections[rows], side="right")
    slope, offset = other.slope.numpy()[subset, number], other.offset.numpy()[subset, number]
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

    def fit(
        self, material: OtherMaterial, without: int | None = None
    ) -> tuple[Tensor, Tensor, dict[str, tuple[float, ...]]]:
        """Slopes and offsets (8, CALIBRATION_BINS) and the manifest's thresholds, but for one fold's stars."""
        size = (2 ** len(MODALITIES), len(CALIBRATION_BINS))
        slope, offset = torch.ones(size), torch.zeros(size)
        kept = np.ones(len(self.row), np.bool_) if without is None else material.fold[self.row] != without
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
            thresholds[code] = other_thresholds(probability, self.right[ten], group[ten], detections)
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
