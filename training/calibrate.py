"""Temperatures and conformal thresholds, one for each subset of the modalities, from validation objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data import TrainingSet, to_device
from training.encoders.trimodal import SUBSETS, Classifier, Trimodal, subset_name

COVERAGE = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Embeddings (n, 3, 512) and presence (n, 3) of some rows of a training set."""

    rows: NDArray[np.intp]
    embeddings: Tensor
    present: Tensor


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
    return Encoded(rows, torch.cat(embeddings), torch.cat(present))


def usable(encoded: Encoded, subset: tuple[bool, ...]) -> NDArray[np.bool_]:
    """(n,) whether an object has all modalities of ``subset``."""
    return (encoded.present | ~torch.tensor(subset)).all(dim=1).numpy()


@torch.no_grad()
def probabilities(classifier: Classifier, encoded: Encoded, subset: tuple[bool, ...]) -> NDArray[np.float64]:
    """(n, 10) calibrated probabilities from the modalities of ``subset`` alone."""
    device = classifier.log_temperature.device
    present = torch.tensor(subset, device=device).expand(len(encoded.rows), -1)
    result, _ = classifier.eval()(*encoded.embeddings.to(device).unbind(dim=1), present)
    double: NDArray[np.float64] = result.double().cpu().numpy()
    return double


def fit_temperatures(model: Trimodal, encoded: Encoded, label: NDArray[np.int64]) -> dict[str, float]:
    """Set each subset's temperature to the one with the least cross-entropy on ``encoded`` (Guo et al. 2017)."""
    target = torch.from_numpy(label)
    result = {}
    classifier = model.classifier.eval()
    device = classifier.log_temperature.device
    grid = torch.linspace(-1.0, 1.5, 101)
    for subset in SUBSETS:
        chosen = torch.from_numpy(usable(encoded, subset))
        with torch.no_grad():
            present = torch.tensor(subset, device=device).expand(int(chosen.sum()), -1)
            logits = classifier.logits(encoded.embeddings[chosen].to(device), present).cpu()
            losses = torch.stack([functional.cross_entropy(logits / t.exp(), target[chosen]) for t in grid])
        best = grid[int(losses.argmin())]
        classifier.log_temperature[int(Classifier.subset_index(torch.tensor([subset]))[0])] = best
        result[subset_name(subset)] = float(best.exp())
    return result


def conformal_rank(count: int, coverage: float) -> int:
    """The floor((count + 1)(1 - coverage)) of split conformal prediction, for ``coverage`` as written in decimals.

    In floating point 1000 x (1 - 0.9) is a little less than 100, and its floor 99.
    """
    return math.floor((count + 1) * (1 - Fraction(repr(float(coverage)))))


def conformal_thresholds(
    model: Trimodal, encoded: Encoded, label: NDArray[np.int64], coverage: float = COVERAGE
) -> dict[str, float]:
    """Least probability that belongs in a prediction set, for each subset of the modalities.

    Split conformal prediction (Sadinle, Lei & Wasserman 2019, JASA 114, 223): with n calibration objects the
    threshold is the floor((n + 1)(1 - coverage))-th smallest probability of the true class, so that the set
    holds the true class of a new object with probability at least ``coverage``.
    """
    result = {}
    for subset in SUBSETS:
        chosen = usable(encoded, subset)
        own = probabilities(model.classifier, encoded, subset)[chosen, label[chosen]]
        rank = conformal_rank(len(own), coverage)
        result[subset_name(subset)] = float(np.sort(own)[rank - 1]) if rank > 0 else 0.0
    return result


def expected_calibration_error(predicted: NDArray[np.float64], label: NDArray[np.int64], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins (Guo et al. 2017, equation 3)."""
    confidence = predicted.max(axis=1)
    right = predicted.argmax(axis=1) == label
    cell = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gap = np.bincount(cell, confidence - right, bins)
    return float(np.abs(gap).sum() / len(label))
