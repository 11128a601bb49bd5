"""Trimodal contrastive pre-training (AstroM3, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import PretrainSettings
from training.data import TrainingSet
from training.encoders.trimodal import Trimodal
from training.losses import trimodal_contrastive


def pretrain(
    model: Trimodal,
    data: TrainingSet,
    rows: NDArray[np.intp],
    settings: PretrainSettings,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """Train the three encoders in place so that the modalities of one object lie close together."""
    rng = np.random.default_rng([seed, 1])
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
            batch = data.batch(chosen, rng.integers(0, data.versions, len(chosen)))
            loss = trimodal_contrastive(model.encode(batch), batch.present, model.log_scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report(f"pretrain epoch {epoch + 1}/{settings.epochs}: contrastive loss {np.mean(losses):.3f}")
