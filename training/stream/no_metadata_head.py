"""The head for objects without metadata: kept as it is where it fits the encoders, else trained anew on them.

``python -m training train`` trains it together with the encoders, on more stars and views of each light curve than are
embedded here, so that it is the better one for these: trained anew on the embeddings of 2026.11.28 ASAS's validation
stars lose 0.8 points (0.926 to 0.918 of 864). But where an encoder has been trained without it, as that of spectra
alone, it no longer fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_NAMES
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import LIGHT_CURVE_ONLY, ConcatClassifier, subset_name
from training.stream.head import published_head
from training.stream.material import Material

SUBSET_WEIGHTS: dict[tuple[bool, bool, bool], float] = {
    (True, False, False): 2.0,
    (True, True, False): 0.3,
    (False, True, False): 0.2,
}
"""As in ``training.finetune``."""
EPOCHS, BATCH, LEARNING_RATE, SMOOTHING, CLASS_BALANCE = 4, 512, 1e-3, 0.05, 0.3
FITS, SLACK = 1.25, 0.1
"""A head fits while its loss is no more than this times that of one trained anew, and this more (nats).

Which of two that fit is lower says little: Catalina's EW, a third of its stars, are not among the validation stars.
"""
_SPECTRUM = MODALITIES.index("spectrum")
_INPUTS = np.arange(len(MODALITIES) * EMBEDDING + len(MODALITIES))
_NOT_SPECTRUM = torch.from_numpy(
    (_INPUTS // EMBEDDING != _SPECTRUM) & (len(MODALITIES) * EMBEDDING + _SPECTRUM != _INPUTS)
)
"""Inputs of a head that are zero or the same with and without a spectrum."""


def head_without_metadata(material: Material, seed: int, report: Callable[[str], None]) -> ConcatClassifier:
    """The repository's head where it fits the encoders, by FITS; else one that is trained anew.

    Where it fits the light curves alone, only what it makes of spectra is. A repository whose classifier has no such
    head gets a new one.
    """
    anew = train_plain_head(material, seed)
    expected = validation_losses(material, anew, report, "trained anew")
    try:
        kept = published_head(material.repository)
    except ConfigurationError as error:
        report(f"{error}; the head for objects without metadata is trained anew")
        return anew
    losses = validation_losses(material, kept, report, "kept")
    fits = {subset for subset, loss in losses.items() if loss <= FITS * expected[subset] + SLACK}
    if fits == set(losses):
        report("head for objects without metadata: kept")
        return kept
    if LIGHT_CURVE_ONLY not in fits:
        report("head for objects without metadata: trained anew")
        return anew
    report("head for objects without metadata: kept for light curves, trained anew for spectra")
    return train_plain_head(material, seed, kept)


def train_plain_head(material: Material, seed: int, kept: ConcatClassifier | None = None) -> ConcatClassifier:
    """A head of the archive's training stars, on light curves and spectra, in evaluation mode.

    Of ``kept`` all stays but what it makes of a spectrum: from light curves alone it answers as before.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 17])
    rows = np.flatnonzero([kind.startswith("train") for kind in material.archive.kind])
    label = torch.from_numpy(material.archive.label)
    counts = np.bincount(material.archive.label[rows], minlength=len(CLASS_NAMES)).clip(min=1)
    weight = torch.from_numpy(((counts.mean() / counts) ** CLASS_BALANCE).astype(np.float32))
    head, learnt_subsets = ConcatClassifier(), dict(SUBSET_WEIGHTS)
    learnt: list[Tensor] = list(head.parameters())
    first = cast("nn.Linear", head.layers[0]).weight
    if kept is not None:
        with torch.no_grad():
            for own, other in zip(head.parameters(), kept.parameters(), strict=True):
                own.copy_(other)
        learnt = [first]
        del learnt_subsets[LIGHT_CURVE_ONLY]
    before = first.detach().clone()
    steps = max(1, EPOCHS * len(rows) // BATCH)
    optimizer = torch.optim.AdamW(learnt, LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    head.train()
    for _ in range(steps):
        drawn = rng.choice(rows, BATCH)
        loss = torch.zeros(())
        for subset, share in learnt_subsets.items():
            own_rows = drawn[material.archive.present[drawn]] if subset[0] else drawn
            target = label[own_rows]
            logits = _logits(material, head, own_rows, subset)
            each = functional.cross_entropy(logits, target, reduction="none", label_smoothing=SMOOTHING)
            loss = loss + share * (weight[target] * each).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if kept is not None:
            with torch.no_grad():
                first[:, _NOT_SPECTRUM] = before[:, _NOT_SPECTRUM]
    return head.eval()


@torch.no_grad()
def validation_losses(
    material: Material, head: ConcatClassifier, report: Callable[[str], None], name: str
) -> dict[tuple[bool, ...], float]:
    """Cross-entropy of each subset without metadata on the archive's validation stars, whole and cut."""
    rows = np.flatnonzero([kind.startswith("val") for kind in material.archive.kind])
    whole = np.array([kind.endswith("/0") for kind in material.archive.kind])
    losses: dict[tuple[bool, ...], float] = {}
    for subset in SUBSET_WEIGHTS:
        own = rows[material.archive.present[rows]] if subset[0] else rows
        logits, target = _logits(material, head, own, subset), torch.from_numpy(material.archive.label[own])
        losses[subset] = float(functional.cross_entropy(logits, target))
        right = (logits.argmax(dim=1) == target).numpy()[whole[own]]
        report(
            f"{subset_name(subset)}, {name}: loss {losses[subset]:.3f}, accuracy {right.mean():.4f} of {len(right)} "
            "whole validation stars"
        )
    return losses


def _logits(
    material: Material, head: ConcatClassifier, rows: NDArray[np.intp], subset: tuple[bool, bool, bool]
) -> Tensor:
    nothing = torch.zeros(len(rows), EMBEDDING)
    light_curve, spectrum = (
        torch.from_numpy(source[rows].astype(np.float32)) if wanted else nothing
        for source, wanted in ((material.archive.light_curve, subset[0]), (material.spectrum, subset[1]))
    )
    return head.logits(torch.stack([light_curve, spectrum, nothing], dim=1), torch.tensor(subset).expand(len(rows), -1))
