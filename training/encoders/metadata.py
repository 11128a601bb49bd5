"""The metadata encoder: a perceptron on piecewise linear encodings of what is known of the source."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.metadata import MODEL_FEATURES
from training.encoders.lightcurve import EMBEDDING

LEAST_KNOWN = 20
"""Values of a column from which its pieces are cut; with fewer they are even."""


class PiecewiseLinear(nn.Module):
    """Piecewise linear encodings of values (Gorishniy et al. 2022, arXiv 2203.05556, section 3.2), cut at quantiles."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        count = len(MODEL_FEATURES)
        self.encoded = count * (pieces + 2)
        """Numbers that ``encoding`` makes of one object's values."""
        self.register_buffer("lower", torch.linspace(-3.0, 3.0, pieces + 1)[:-1].repeat(count, 1))
        self.register_buffer("size", torch.full((count, pieces), 6.0 / pieces))
        self.lower: Tensor
        self.size: Tensor

    def fit_pieces(self, values: NDArray[np.float32], known: NDArray[np.bool_]) -> None:
        """Cut each column at the quantiles of its known values; both arrays (n, MODEL_FEATURES)."""
        pieces = self.lower.shape[1]
        for column in range(len(self.lower)):
            own = values[known[:, column], column]
            if len(own) >= LEAST_KNOWN:
                cuts = np.quantile(own, np.linspace(0, 1, pieces + 1)).astype(np.float32)
                self.lower[column] = torch.from_numpy(cuts[:-1])
                self.size[column] = torch.from_numpy(np.diff(cuts)).clamp(min=1e-3)

    def encoding(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, MODEL_FEATURES) standardised values and True where known, to (batch, ``encoded``)."""
        mask = known.to(values.dtype)
        filled = ((values[:, :, None] - self.lower) / self.size).clamp(0.0, 1.0) * mask[:, :, None]
        return torch.cat([filled.flatten(1), values * mask, mask], dim=1)


class MetadataEncoder(PiecewiseLinear):
    """Values and the mask of known values to one unit vector.

    AstroM3's is a perceptron with 512 hidden units on the values themselves. Here each value also goes through a
    piecewise linear encoding, as the light curve's features do: real packets are few, and cuts at values are what a few
    hundred stars can teach.
    """

    def __init__(self, hidden: int = 256, pieces: int = 10, dropout: float = 0.3) -> None:
        super().__init__(pieces)
        self.layers = nn.Sequential(
            nn.Linear(self.encoded, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, EMBEDDING),
        )  # fmt: skip

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, MODEL_FEATURES) standardised values and True where known, to (batch, 512), unit length."""
        return functional.normalize(self.layers(self.encoding(values, known)), dim=1)
