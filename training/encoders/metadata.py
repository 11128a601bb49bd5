"""The metadata encoder: a perceptron with 512 hidden units, as in AstroM3, section 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.metadata import METADATA_FEATURES
from training.encoders.lightcurve import EMBEDDING


class MetadataEncoder(nn.Module):
    """Values and the mask of known values to one unit vector."""

    def __init__(self, hidden: int = 512, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * len(METADATA_FEATURES), hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden // 2, EMBEDDING),
        )  # fmt: skip

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, 34) standardised values, (batch, 34) True where known, to (batch, 512), unit length."""
        mask = known.to(values.dtype)
        return functional.normalize(self.layers(torch.cat([values * mask, mask], dim=1)), dim=1)
