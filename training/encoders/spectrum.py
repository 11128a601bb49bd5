"""Trifid's spectrum encoder: strided convolutions, a third of GalSpecNet's work.

AstroM3 uses GalSpecNet (Wu et al. 2024), which convolves at full resolution before it pools. Strides from the
first layer on keep what tells stellar types apart, bands and strong lines, at a fraction of the memory traffic.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.encoders.lightcurve import EMBEDDING


class SpectrumEncoder(nn.Module):
    """Four strided convolutions, pooled to 16 places along the spectrum, to one unit vector."""

    def __init__(self, channels: tuple[int, ...] = (24, 32, 48, 64), dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(3, channels[0], 9, stride=4), nn.GELU()]
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv1d(inputs, outputs, 5, stride=2, padding=2), nn.GELU()]
        self.convolutions = nn.Sequential(*layers)
        # Lengths of 81 after the convolutions, so windows of 6 with stride 5 give 16 places.
        self.pool = nn.AvgPool1d(6, stride=5)
        self.project = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(16 * channels[-1], 256), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(256, EMBEDDING),
        )  # fmt: skip

    def forward(self, spectra: Tensor) -> Tensor:
        """(batch, 3, 2575) as in ``SpectrumInputs`` to (batch, 512), unit length."""
        # Bad pixels carry very large errors; asinh keeps them from swamping the convolutions.
        x = self.pool(self.convolutions(torch.asinh(spectra)))
        return functional.normalize(self.project(x.flatten(1)), dim=1)
