"""Losses: trimodal contrastive pre-training, and classification with labels that may be coarse."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional


def trimodal_contrastive(embeddings: Tensor, present: Tensor, log_scale: Tensor, pair_weight: float = 0.5) -> Tensor:
    """Sum over the three pairs of modalities of CLIP's symmetric cross-entropy (AstroM3, equation 3).

    ``embeddings`` (batch, 3, 512) unit vectors, ``present`` (batch, 3); only objects that have both
    modalities of a pair take part in that pair. ``log_scale`` is one for all pairs or (3,), one for each. The two
    cross-entropies of a pair have ``pair_weight``: half is their mean, as in CLIP, 1 their sum, as in AstroM3's code.
    """
    scales = log_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
    loss = embeddings.new_zeros(())
    pairs = list(combinations(range(embeddings.shape[1]), 2))
    for (first, second), scale in zip(pairs, scales if scales.ndim else [scales] * len(pairs), strict=True):
        both = present[:, first] & present[:, second]
        if int(both.sum()) < 2:
            continue
        similarity = scale * embeddings[both, first] @ embeddings[both, second].T
        target = torch.arange(similarity.shape[0], device=similarity.device)
        pair = functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)
        loss = loss + pair_weight * pair
    return loss


def label_cross_entropy(logits: Tensor, target: Tensor, confusion: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted mean of the cross-entropy between the catalogue's label and what it would be by the predicted classes.

    ``logits`` (batch, 10) of the classes; ``target`` (batch, 10) the label, one-hot or a distribution; ``confusion``
    (batch, 10, 10) the probability that the object's catalogue gives a star of the row's class the column's label,
    unity for a catalogue that names its classes as we do (forward correction, Patrini et al. 2017, arXiv 1609.03683);
    ``weight`` (batch,). ``smoothing`` mixes in the mean over all classes, as label smoothing does.
    """
    log_probability = functional.log_softmax(logits.float(), dim=1)
    named = torch.einsum("bc,bcl->bl", log_probability.exp(), confusion).clamp(min=1e-7).log()
    loss = -(1 - smoothing) * (target * named).sum(dim=1) - smoothing * log_probability.mean(dim=1)
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
