"""Supervised fine-tuning of encoders and classifier on every subset of the modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from training.config import FinetuneSettings
from training.data import Labels, TrainingSet, to_device
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import LIGHT_CURVE_ONLY, SUBSETS, TensorBatch, Trimodal
from training.loop import Context, fit
from training.losses import label_cross_entropy
from training.workers import Workers

SUBSET_WEIGHT: dict[tuple[bool, ...], float] = {
    LIGHT_CURVE_ONLY: 2.0,
    (True, False, True): 0.5,
    (True, True, False): 0.3,
    (True, True, True): 0.5,
    (False, True, False): 0.2,
    (False, False, True): 0.2,
    (False, True, True): 0.2,
}
"""Weight of each subset (light curve, spectrum, metadata) in the loss: most live alerts have no spectrum."""
METADATA_BLUR = 0.3
"""Deviation of the noise on standardised catalogue values."""
METADATA_HIDDEN = 0.3
"""Share of the catalogue values that are hidden."""
SURVEY_FEATURES = ("noise_to_std", "von_neumann_time", "log10_points", "log10_span", "log10_period_to_span")
"""Features that depend on how a survey observes more than on the star."""
SURVEY_LENT = 0.2
"""Share of the objects that have them from another object."""
_SURVEY = [LIGHT_CURVE_FEATURES.index(name) for name in SURVEY_FEATURES]
_NOISE = LIGHT_CURVE_FEATURES.index("noise_to_std")


def finetune(
    model: Trimodal,
    data: TrainingSet,
    labels: Labels,
    taught: Labels,
    rows: NDArray[np.intp],
    settings: FinetuneSettings,
    seed: int,
    context: Context,
    validate: Callable[[Trimodal], str] | None,
    subsets: Sequence[tuple[bool, ...]] = SUBSETS,
) -> Trimodal:
    """Train in place and return the moving average of the weights; ``validate`` may add to each epoch's line.

    The light curve alone is trained on ``taught``, the labels with a teacher's opinion or the labels themselves: the
    teacher knows the light curve alone. The other ``subsets`` of the modalities are trained on ``labels``. Of ``rows``
    (n,) those that count in either are used. An encoder that no subset needs stays as it is. Raises what
    ``training.loop.fit`` raises.
    """
    workers = context.workers
    rows = rows[(labels.weight[rows] > 0) | (taught.weight[rows] > 0)]
    sources = [
        (
            torch.from_numpy(source.target),
            torch.from_numpy(source.confusions),
            torch.from_numpy(source.naming),
            torch.from_numpy(source.class_balanced(rows, settings.class_balance)),
        )
        for source in (taught, labels)
    ]

    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        cropped = rng.random(len(chosen)) < settings.crop_share
        version = np.where(cropped, rng.integers(1, data.versions, len(chosen)), 0)
        # The objects come in random order, so the first ones are a random share.
        with_spectrum = len(chosen[: max(1, int(settings.spectrum_share * len(chosen)))][workers.own])
        own = chosen[workers.own]
        # Augmented before it goes to the device, so that the draws do not depend on which device that is.
        batch = to_device(augment(data.batch(own, version[workers.own])), workers.device)
        index = torch.from_numpy(own)
        alone, together = (
            Goal(*(t.to(workers.device) for t in (target[index], confusions[naming[index]], weight[index])))
            for target, confusions, naming, weight in sources
        )
        return subsets_loss(model, batch, alone, together, with_spectrum, settings.label_smoothing, workers, subsets)

    return fit("finetune", model, rows, settings, [seed, 2], context, loss, settings.average_decay, validate)


class Goal(NamedTuple):
    """What is to be learnt of the n objects of a batch, as ``label_cross_entropy`` takes it."""

    target: Tensor
    """(n, 10)."""
    confusion: Tensor
    """(n, 10, 10)."""
    weight: Tensor
    """(n,)."""


def subsets_loss(
    model: Trimodal,
    batch: TensorBatch,
    alone: Goal,
    together: Goal,
    with_spectrum: int,
    smoothing: float,
    workers: Workers,
    subsets: Sequence[tuple[bool, ...]] = SUBSETS,
) -> Tensor:
    """Loss summed over ``subsets`` of the modalities; with a spectrum only over the first ``with_spectrum`` objects.

    ``alone`` is the goal of the light curve alone, ``together`` that of all other subsets. The average of what the
    processes get is the loss of all their objects together.
    """
    needs_light_curve, needs_spectrum, needs_metadata = (any(column) for column in zip(*subsets, strict=True))
    objects, device = len(batch.present), batch.present.device
    light_curve, spectrum, metadata = (torch.zeros(objects, EMBEDDING, device=device) for _ in range(3))
    if needs_light_curve:
        light_curve = model.light_curve_encoder(batch.points, batch.points_mask, batch.folded, batch.features).float()
    if needs_spectrum:
        spectrum[:with_spectrum] = model.spectrum_encoder(batch.spectra[:with_spectrum]).float()
    if needs_metadata:
        metadata = model.metadata_encoder(batch.values, batch.known).float()
    embeddings = torch.stack([light_curve, spectrum, metadata], dim=1)
    losses, weights = [], []
    for subset in subsets:
        wanted = torch.tensor(subset, device=device)
        size = with_spectrum if subset[1] else objects
        usable = (batch.present[:size] | ~wanted).all(dim=1)
        present = wanted.expand(size, -1)
        logits = model.classifier.logits(embeddings[:size], present).float()
        target, confusion, weight = (t[:size] for t in (alone if subset == LIGHT_CURVE_ONLY else together))
        own_weight = weight * usable
        value = label_cross_entropy(logits, target, confusion, own_weight, smoothing)
        losses.append(SUBSET_WEIGHT[subset] * value)
        weights.append(own_weight.sum())
    return (torch.stack(losses) * workers.share(torch.stack(weights))).sum()


def augment(batch: TensorBatch) -> TensorBatch:
    """Turn the phase by a few bins, hide one point in ten, lend surveys, blur catalogue values and hide some of them.

    The catalogue values come from a few hundred donors, which would otherwise be learned by heart. What only tells how
    a survey observes is taken from another object for every second one: otherwise the model knows classes by the
    survey that has many of them, and is lost with the errors and the cadence of another one.
    """
    turn = int(torch.randint(-6, 7, ()))
    hidden = torch.rand(batch.points_mask.shape) < 0.1
    mask = batch.points_mask & ~hidden
    points = batch.points.clone()
    points[..., 3] = torch.remainder(points[..., 3] + turn / batch.folded.shape[2], 1.0)
    lender = torch.arange(len(points))
    borrows = torch.rand(len(points)) < SURVEY_LENT
    lender[borrows] = torch.randperm(len(points))[borrows]
    features = batch.features.clone()
    features[:, _SURVEY] = features[lender][:, _SURVEY]
    louder = (features[:, _NOISE] / batch.features[:, _NOISE].clamp(min=1e-3)).clamp(0.1, 10.0)
    points[..., 2] *= louder[:, None]
    return TensorBatch(
        points, mask, batch.folded.roll(turn, dims=2), features,
        batch.spectra, batch.values + METADATA_BLUR * torch.randn_like(batch.values),
        batch.known & (torch.rand(batch.known.shape) > METADATA_HIDDEN), batch.present, batch.detections,
    )  # fmt: skip
