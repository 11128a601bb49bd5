"""Temperatures and conformal thresholds, by subset of the modalities and number of detections.

They come from objects that the model has not seen. Where a cell has too few of them, the nearest cells of the same
subset lend theirs, those with fewer detections first: to ask for too much there is the safer mistake.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor
from torch.nn import functional

from broker.inference.manifest import CALIBRATION_BINS
from training.data import TrainingSet, to_device
from training.encoders.trimodal import SUBSETS, Classifier, Trimodal, subset_name

COVERAGE = 0.9
LEAST_IN_CELL = 40
"""Objects that a temperature or threshold is taken from, at least, where there are so many."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Embeddings (n, 3, 512), presence (n, 3) and detections (n,) of some rows of a training set."""

    rows: NDArray[np.intp]
    embeddings: Tensor
    present: Tensor
    detections: NDArray[np.int32]

    def take(self, chosen: NDArray[np.bool_]) -> Encoded:
        """Some of the rows, by a mask (n,)."""
        mask = torch.from_numpy(chosen)
        return Encoded(self.rows[chosen], self.embeddings[mask], self.present[mask], self.detections[chosen])


@torch.no_grad()
def encode_rows(
    model: Trimodal, data: TrainingSet, rows: NDArray[np.intp], version: int = 0, spectra: bool = True
) -> Encoded:
    """Embed ``rows`` in batches, on the model's device; the result is on the CPU.

    Without ``spectra`` the costly spectrum encoder is left out (zeros).
    """
    model.eval()
    device = model.log_scale.device
    embeddings, present = [], []
    for first in range(0, len(rows), 512):
        batch = to_device(data.batch(rows[first : first + 512], version), device)
        parts = [
            model.light_curve_encoder(batch.points, batch.points_mask, batch.folded, batch.features),
            model.spectrum_encoder(batch.spectra) if spectra else torch.zeros(len(batch.present), 512, device=device),
            model.metadata_encoder(batch.values, batch.known),
        ]
        embeddings.append(torch.stack(parts, dim=1).cpu())
        present.append(batch.present.cpu())
    return Encoded(rows, torch.cat(embeddings), torch.cat(present), data.detections[version, rows])


def usable(encoded: Encoded, subset: tuple[bool, ...]) -> NDArray[np.bool_]:
    """(n,) whether an object has all modalities of ``subset``."""
    return (encoded.present | ~torch.tensor(subset)).all(dim=1).numpy()


@torch.no_grad()
def probabilities(classifier: Classifier, encoded: Encoded, subset: tuple[bool, ...]) -> NDArray[np.float64]:
    """(n, 10) calibrated probabilities from the modalities of ``subset`` alone."""
    device = classifier.log_temperature.device
    present = torch.tensor(subset, device=device).expand(len(encoded.rows), -1)
    detections = torch.from_numpy(encoded.detections.astype(np.float32))[:, None].to(device)
    result, _ = classifier.eval()(*encoded.embeddings.to(device).unbind(dim=1), present, detections)
    double: NDArray[np.float64] = result.double().cpu().numpy()
    return double


@torch.no_grad()
def logits(classifier: Classifier, encoded: Encoded, subset: tuple[bool, ...]) -> Tensor:
    """(n, 10) uncalibrated logits from the modalities of ``subset`` alone, on the CPU."""
    device = classifier.log_temperature.device
    present = torch.tensor(subset, device=device).expand(len(encoded.rows), -1)
    result: Tensor = classifier.eval().logits(encoded.embeddings.to(device), present).cpu()
    return result


def cell_rows(detections: NDArray[np.integer], least: int) -> list[NDArray[np.intp]]:
    """For each of CALIBRATION_BINS the objects (n,) that calibrate it: its own, and lent ones up to ``least``."""
    number = np.searchsorted(CALIBRATION_BINS[1:], detections, side="right")
    own = [np.flatnonzero(number == cell) for cell in range(len(CALIBRATION_BINS))]
    cells = []
    for cell in range(len(CALIBRATION_BINS)):
        chosen = own[cell]
        for other in sorted((c for c in range(len(own)) if c != cell), key=lambda c: (abs(c - cell), c > cell)):
            if len(chosen) >= least:
                break
            chosen = np.concatenate([chosen, own[other]])
        cells.append(chosen)
    return cells


def best_log_temperature(logit: Tensor, target: Tensor, weight: Tensor | None = None) -> float:
    """The logarithm of the temperature with the least cross-entropy (Guo et al. 2017) of logits (n, 10).

    Objects count by ``weight`` (n,), if given.
    """
    grid = torch.linspace(-1.0, 1.5, 101)
    share = torch.ones(len(target)) if weight is None else weight
    losses = torch.stack(
        [(share * functional.cross_entropy(logit / t.exp(), target, reduction="none")).sum() for t in grid]
    )
    return float(grid[int(losses.argmin())])


def fit_temperatures(model: Trimodal, encoded: Encoded, label: NDArray[np.int64]) -> dict[str, tuple[float, ...]]:
    """Set the temperature of each subset and number of detections to the one with the least cross-entropy."""
    result = {}
    for subset in SUBSETS:
        chosen = usable(encoded, subset)
        logit, target = logits(model.classifier, encoded.take(chosen), subset), torch.from_numpy(label[chosen])
        row = model.classifier.log_temperature[int(Classifier.subset_index(torch.tensor([subset]))[0])]
        for cell, rows in enumerate(cell_rows(encoded.detections[chosen], LEAST_IN_CELL)):
            if len(rows):
                row[cell] = best_log_temperature(logit[rows], target[rows])
        result[subset_name(subset)] = tuple(row.exp().tolist())
    return result


def conformal_rank(count: int, coverage: float) -> int:
    """The floor((count + 1)(1 - coverage)) of split conformal prediction, for ``coverage`` as written in decimals.

    In floating point 1000 x (1 - 0.9) is a little less than 100, and its floor 99.
    """
    return math.floor((count + 1) * (1 - Fraction(repr(float(coverage)))))


def conformal_thresholds(
    model: Trimodal, encoded: Encoded, label: NDArray[np.int64], coverage: float = COVERAGE
) -> dict[str, tuple[float, ...]]:
    """Least probability that belongs in a prediction set, for each subset of the modalities and number of detections.

    Split conformal prediction (Sadinle, Lei & Wasserman 2019, JASA 114, 223) in each cell, so that the promise holds in
    each (Vovk 2012, arXiv 1209.2673).
    """
    result = {}
    for subset in SUBSETS:
        chosen = usable(encoded, subset)
        own = probabilities(model.classifier, encoded.take(chosen), subset)[np.arange(chosen.sum()), label[chosen]]
        cells = cell_rows(encoded.detections[chosen], LEAST_IN_CELL)
        result[subset_name(subset)] = tuple(conformal_threshold(own[rows], coverage) for rows in cells)
    return result


def sure_rank(count: int, coverage: float, confidence: float) -> int:
    """The largest rank whose threshold covers at least ``coverage`` with ``confidence``, 0 where there is none.

    The coverage of the r-th smallest of n probabilities is distributed as Beta(n + 1 - r, r) over calibration samples
    (Vovk 2012, arXiv 1209.2673, proposition 2a): of few stars it is often far below its mean.
    """
    ranks = np.arange(1, conformal_rank(count, coverage) + 1)
    return int(np.sum(beta.cdf(coverage, count + 1 - ranks, ranks) <= 1.0 - confidence))


def conformal_threshold(own: NDArray[np.float64], coverage: float, confidence: float | None = None) -> float:
    """The floor((n + 1)(1 - coverage))-th smallest probability (n,) of the true classes, 0 where there is none.

    A set of the classes that reach it holds the true class of a new object with probability at least ``coverage``, in
    the mean over calibration samples; with ``confidence`` in this share of them (``sure_rank``).
    """
    count = len(own)
    rank = conformal_rank(count, coverage) if confidence is None else sure_rank(count, coverage, confidence)
    return float(np.sort(own)[rank - 1]) if rank > 0 else 0.0


def expected_calibration_error(predicted: NDArray[np.float64], label: NDArray[np.int64], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins (Guo et al. 2017, equation 3)."""
    confidence = predicted.max(axis=1)
    right = predicted.argmax(axis=1) == label
    cell = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gap = np.bincount(cell, confidence - right, bins)
    return float(np.abs(gap).sum() / len(label))
