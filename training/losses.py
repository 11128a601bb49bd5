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


def label_cross_entropy(logits: Tensor, likelihood: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted mean of -log of the probability of the catalogue's label.

    ``logits`` (batch, 10); ``likelihood`` (batch, 10) the probability of the object's label for an object of each
    class: 1 at one class for a plain label, more where a catalogue lumps or mistakes classes (the forward correction of
    Patrini et al. 2017, arXiv 1609.03683); ``weight`` (batch,). ``smoothing`` mixes in the mean over all
    classes, as label smoothing does.
    """
    log_probability = functional.log_softmax(logits, dim=1)
    right = torch.logsumexp(log_probability + likelihood.log().clamp(min=-1e4), dim=1)
    loss = -(1 - smoothing) * right - smoothing * log_probability.mean(dim=1)
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
