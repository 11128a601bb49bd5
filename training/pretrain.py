"""Trimodal contrastive pre-training (AstroM3, section 4.1)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.errors import ConfigurationError
from training.config import PlateauSettings, PretrainSettings
from training.data import TrainingSet, to_device
from training.encoders.trimodal import Trimodal
from training.loop import Context, fit
from training.losses import trimodal_contrastive
from training.schedules import Judgement


def pretrain(
    model: Trimodal,
    data: TrainingSet,
    rows: NDArray[np.intp],
    settings: PretrainSettings | PlateauSettings,
    seed: int,
    context: Context,
    validation_rows: NDArray[np.intp] | None = None,
) -> None:
    """Train the three encoders in place so that the modalities of one object lie close together.

    ``rows`` (n,) of ``data``. Settings with a plateau are AstroM3's recipe: whole light curves and spectra alone, the
    loss on the scale of AstroM3's code, and the weights of the best epoch on ``validation_rows`` (m,), which it needs.
    Raises what ``training.loop.fit`` raises.
    """
    workers = context.workers
    published = isinstance(settings, PlateauSettings)
    # Gradients are cut at a norm and weights decay beside them, so that the loss's scale matters.
    pair_weight = 1.0 if published else 0.5

    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        version = 0 if published else rng.integers(0, data.versions, len(chosen))[workers.own]
        batch = to_device(data.batch(chosen[workers.own], version), workers.device)
        # Each object is told from all others of the whole batch, wherever they were encoded.
        embeddings = workers.gather(model.encode(batch).float())
        present = workers.gather(batch.present.to(torch.uint8)).bool()
        with torch.autocast(workers.device.type, enabled=False):  # similarities of up to 100 need all their digits
            return trimodal_contrastive(embeddings, present, model.log_scale, pair_weight)

    def judge(candidate: Trimodal) -> Judgement:
        if validation_rows is None:
            raise ConfigurationError("pretrain: a plateau needs validation objects")
        return contrastive_judgement(candidate, data, validation_rows, settings.batch_size)

    best = fit("pretrain", model, rows, settings, [seed, 1], context, loss, judge=judge if published else None)
    if best is not model:
        model.load_state_dict(best.state_dict())


@torch.no_grad()
def contrastive_judgement(model: Trimodal, data: TrainingSet, rows: NDArray[np.intp], batch_size: int) -> Judgement:
    """Loss and accuracy of telling each of ``rows`` (n,) from the others of its batch, as AstroM3's trainer has them.

    The loss is the mean over batches. An object is told right if it has the largest probability of all in the batch,
    averaged over the three pairs of modalities in both directions; only objects with all three are asked.
    ConfigurationError where no batch has two of them.
    """
    device = model.log_scale.device
    losses, right, asked = [], 0, 0
    for first in range(0, len(rows), batch_size):
        batch = to_device(data.batch(rows[first : first + batch_size]), device)
        whole = batch.present.all(dim=1)
        if int(whole.sum()) < 2:
            continue
        embeddings = model.encode(batch).float()
        with torch.autocast(device.type, enabled=False):
            losses.append(trimodal_contrastive(embeddings, batch.present, model.log_scale, pair_weight=1.0))
            right += int(_told(embeddings[whole], model.log_scale).sum())
        asked += int(whole.sum())
    if not losses:
        raise ConfigurationError("pretrain: no two validation objects with all modalities in a batch to judge by")
    return Judgement(float(torch.stack(losses).mean()), right / asked)


def _told(embeddings: Tensor, log_scale: Tensor) -> Tensor:
    """(n,) whether each of n objects with all modalities, (n, 3, 512), is the likeliest to be itself."""
    probability = embeddings.new_zeros(len(embeddings), len(embeddings))
    scales = log_scale.clamp(max=4.6052).exp().expand(3)
    for (one, other), scale in zip(((0, 1), (0, 2), (1, 2)), scales, strict=True):
        similarity = scale * embeddings[:, one] @ embeddings[:, other].T
        probability += similarity.softmax(dim=1) + similarity.T.softmax(dim=1)
    return probability.argmax(dim=1) == torch.arange(len(embeddings), device=embeddings.device)
