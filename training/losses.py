"""Losses: trimodal contrastive pre-training, and classification with labels that may be coarse."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional


def trimodal_contrastive(embeddings: Tensor, present: Tensor, log_scale: Tensor) -> Tensor:
    """Sum over the three pairs of modalities of CLIP's symmetric cross-entropy (AstroM3, equation 3).

    ``embeddings`` (batch, 3, 512) unit vectors, ``present`` (batch, 3); only objects that have both
    modalities of a pair take part in that pair.
    """
    scale = log_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
    loss = embeddings.new_zeros(())
    for first, second in combinations(range(embeddings.shape[1]), 2):
        both = present[:, first] & present[:, second]
        if int(both.sum()) < 2:
            continue
        similarity = scale * embeddings[both, first] @ embeddings[both, second].T
        target = torch.arange(similarity.shape[0], device=similarity.device)
        pair = functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)
        loss = loss + 0.5 * pair
    return loss


def coarse_cross_entropy(logits: Tensor, allowed: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted mean of -log of the probability that falls on the allowed classes.

    ``logits`` (batch, 10); ``allowed`` (batch, 10) True for each class the label may mean (one for a plain
    label, two where a catalogue lumps contact and semi-detached binaries); ``weight`` (batch,).
    ``smoothing`` mixes in the mean over all classes, as label smoothing does.
    """
    log_probability = functional.log_softmax(logits, dim=1)
    right = torch.logsumexp(log_probability.masked_fill(~allowed, -1e4), dim=1)
    loss = -(1 - smoothing) * right - smoothing * log_probability.mean(dim=1)
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
