"""Trimodal contrastive pre-training (AstroM3, section 4.1)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import PretrainSettings
from training.data import TrainingSet, to_device
from training.encoders.trimodal import Trimodal
from training.loop import Context, fit
from training.losses import trimodal_contrastive


def pretrain(
    model: Trimodal,
    data: TrainingSet,
    rows: NDArray[np.intp],
    settings: PretrainSettings,
    seed: int,
    context: Context,
) -> None:
    """Train the three encoders in place so that the modalities of one object lie close together.

    ``rows`` (n,) of ``data``. Raises what ``training.loop.fit`` raises.
    """
    workers = context.workers

    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        version = rng.integers(0, data.versions, len(chosen))
        batch = to_device(data.batch(chosen[workers.own], version[workers.own]), workers.device)
        # Each object is told from all others of the whole batch, wherever they were encoded.
        embeddings = workers.gather(model.encode(batch).float())
        present = workers.gather(batch.present.to(torch.uint8)).bool()
        with torch.autocast(workers.device.type, enabled=False):  # similarities of up to 100 need all their digits
            return trimodal_contrastive(embeddings, present, model.log_scale)

    fit("pretrain", model, rows, settings, [seed, 1], context, loss)
