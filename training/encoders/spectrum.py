"""The spectrum encoder: GalSpecNet (Wu et al. 2024), as in AstroM3, sections 3.2 and 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.encoders.lightcurve import EMBEDDING


class SpectrumEncoder(nn.Module):
    """Four convolutions, channels 3-64-64-32-32, kernel 3, pooling 4 between them, to one unit vector."""

    def __init__(self, length: int = 2575, dropout: float = 0.2) -> None:
        super().__init__()
        channels = (3, 64, 64, 32, 32)
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            layers += [nn.Conv1d(inputs, outputs, 3), nn.ReLU()]
            length -= 2
            if index < 3:
                layers.append(nn.MaxPool1d(4))
                length //= 4
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(32 * length, 256), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(256, EMBEDDING),
        )  # fmt: skip

    def forward(self, spectra: Tensor) -> Tensor:
        """(batch, 3, 2575) as in ``SpectrumInputs`` to (batch, 512), unit length."""
        # Bad pixels carry very large errors; asinh keeps them from swamping the convolutions.
        x = self.convolutions(torch.asinh(spectra))
        return functional.normalize(self.project(x.flatten(1)), dim=1)
