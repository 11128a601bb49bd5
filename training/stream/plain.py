"""The head for objects without metadata: kept as it is where it fits the encoders, else trained anew on them.

``python -m training train`` trains it together with the encoders, on more views of each light curve than are embedded
here, so that it is the better one for these. Where an encoder has been trained without it, as that of spectra alone,
it no longer fits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

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


def head_without_metadata(material: Material, seed: int, report: Callable[[str], None]) -> ConcatClassifier:
    """Of the repository's head and one trained anew the one with the lower loss on the archive's validation stars.

    A repository whose classifier has no such head gets the new one.
    """
    trained = train_plain_head(material, seed)
    losses = {"trained anew": validation_loss(material, trained, report, "trained anew")}
    try:
        kept = published_head(material.repository)
    except ConfigurationError as error:
        report(f"{error}; the head for objects without metadata is trained anew")
        return trained
    losses["kept"] = validation_loss(material, kept, report, "kept")
    best = min(losses, key=losses.__getitem__)
    report(f"head for objects without metadata: {best}")
    return kept if best == "kept" else trained


def train_plain_head(material: Material, seed: int) -> ConcatClassifier:
    """A head of the archive's training stars, on light curves and spectra, in evaluation mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 17])
    rows = np.flatnonzero([kind.startswith("train") for kind in material.archive.kind])
    label = torch.from_numpy(material.archive.label)
    counts = np.bincount(material.archive.label[rows], minlength=len(CLASS_NAMES)).clip(min=1)
    weight = torch.from_numpy(((counts.mean() / counts) ** CLASS_BALANCE).astype(np.float32))
    head = ConcatClassifier()
    steps = max(1, EPOCHS * len(rows) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    head.train()
    for _ in range(steps):
        drawn = rng.choice(rows, BATCH)
        loss = torch.zeros(())
        for subset, share in SUBSET_WEIGHTS.items():
            own = drawn[material.archive.present[drawn]] if subset[0] else drawn
            target = label[own]
            each = functional.cross_entropy(
                _logits(material, head, own, subset), target, reduction="none", label_smoothing=SMOOTHING
            )
            loss = loss + share * (weight[target] * each).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def validation_loss(material: Material, head: ConcatClassifier, report: Callable[[str], None], name: str) -> float:
    """Cross-entropy on the archive's validation stars, whole and cut, weighted over the subsets without metadata."""
    rows = np.flatnonzero([kind.startswith("val") for kind in material.archive.kind])
    whole = np.array([kind.endswith("/0") for kind in material.archive.kind])
    total = 0.0
    for subset, share in SUBSET_WEIGHTS.items():
        own = rows[material.archive.present[rows]] if subset[0] else rows
        logits, target = _logits(material, head, own, subset), torch.from_numpy(material.archive.label[own])
        total += share * float(functional.cross_entropy(logits, target))
        if subset == LIGHT_CURVE_ONLY:
            right = (logits.argmax(dim=1) == target).numpy()[whole[own]]
            report(f"{subset_name(subset)}, {name}: accuracy {right.mean():.4f} of {len(right)} validation stars")
    return total


def _logits(
    material: Material, head: ConcatClassifier, rows: NDArray[np.intp], subset: tuple[bool, bool, bool]
) -> Tensor:
    nothing = torch.zeros(len(rows), EMBEDDING)
    light_curve, spectrum = (
        torch.from_numpy(source[rows].astype(np.float32)) if wanted else nothing
        for source, wanted in ((material.archive.light_curve, subset[0]), (material.spectrum, subset[1]))
    )
    return head.logits(torch.stack([light_curve, spectrum, nothing], dim=1), torch.tensor(subset).expand(len(rows), -1))
