"""Supervised fine-tuning of encoders and classifier on every subset of the modalities."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import FinetuneSettings
from training.data import TrainingSet
from training.encoders.trimodal import SUBSETS, Batch, Trimodal
from training.losses import coarse_cross_entropy

SUBSET_WEIGHT: dict[tuple[bool, ...], float] = {
    (True, False, False): 1.0,
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


def finetune(
    model: Trimodal,
    data: TrainingSet,
    rows: NDArray[np.intp],
    settings: FinetuneSettings,
    seed: int,
    report: Callable[[str], None],
    validate: Callable[[Trimodal], str],
) -> Trimodal:
    """Train in place and return the moving average of the weights; ``validate`` gives a line for the report."""
    rng = np.random.default_rng([seed, 2])
    labels = data.labels
    rows = rows[labels.weight[rows] > 0]
    weight = torch.from_numpy(labels.class_balanced(rows, settings.class_balance))
    allowed = torch.from_numpy(labels.allowed)
    average = copy.deepcopy(model).eval()
    steps = len(rows) // settings.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(1, steps * settings.epochs), pct_start=0.1
    )
    for epoch in range(settings.epochs):
        model.train()
        order = rng.permutation(rows)
        losses = []
        for step in range(steps):
            chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            cropped = rng.random(len(chosen)) < settings.crop_share
            version = np.where(cropped, rng.integers(1, data.versions, len(chosen)), 0)
            # The objects come in random order, so the first ones are a random share.
            with_spectrum = max(1, int(settings.spectrum_share * len(chosen)))
            batch = data.batch(chosen, version)
            index = torch.from_numpy(chosen)
            loss = subsets_loss(
                model, _augment(batch), allowed[index], weight[index], with_spectrum, settings.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            _move_average(average, model, settings.average_decay, epoch * steps + step)
            losses.append(loss.item())
        report(f"finetune epoch {epoch + 1}/{settings.epochs}: loss {np.mean(losses):.3f}; {validate(average)}")
    return average


def subsets_loss(
    model: Trimodal, batch: Batch, allowed: Tensor, weight: Tensor, with_spectrum: int, smoothing: float
) -> Tensor:
    """Loss summed over all subsets; those with a spectrum only over the first ``with_spectrum`` objects."""
    light_curve = model.light_curve_encoder(batch.points, batch.points_mask, batch.folded, batch.features)
    metadata = model.metadata_encoder(batch.values, batch.known)
    spectrum = torch.zeros_like(light_curve)
    spectrum[:with_spectrum] = model.spectrum_encoder(batch.spectra[:with_spectrum])
    embeddings = torch.stack([light_curve, spectrum, metadata], dim=1)
    loss = torch.zeros(())
    for subset in SUBSETS:
        wanted = torch.tensor(subset)
        size = with_spectrum if subset[1] else len(allowed)
        usable = (batch.present[:size] | ~wanted).all(dim=1)
        present = wanted.expand(size, -1)
        logits = model.classifier.logits(embeddings[:size], present)
        loss = loss + SUBSET_WEIGHT[subset] * coarse_cross_entropy(
            logits, allowed[:size], weight[:size] * usable, smoothing
        )
    return loss


def _augment(batch: Batch) -> Batch:
    """Turn the phase by a few bins, hide one point in ten, blur catalogue values and hide some of them.

    The catalogue values come from a few hundred donors, which would otherwise be learned by heart.
    """
    turn = int(torch.randint(-6, 7, ()))
    hidden = torch.rand(batch.points_mask.shape) < 0.1
    mask = batch.points_mask & ~hidden
    points = batch.points.clone()
    points[..., 3] = torch.remainder(points[..., 3] + turn / batch.folded.shape[2], 1.0)
    return Batch(
        points, mask, batch.folded.roll(turn, dims=2), batch.features,
        batch.spectra, batch.values + METADATA_BLUR * torch.randn_like(batch.values),
        batch.known & (torch.rand(batch.known.shape) > METADATA_HIDDEN), batch.present,
    )  # fmt: skip


@torch.no_grad()
def _move_average(average: Trimodal, model: Trimodal, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # follows closely at first, while the weights move fast
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
