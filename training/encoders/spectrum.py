"""Trifid's spectrum encoder: strided convolutions, a third of GalSpecNet's work.

AstroM3 uses GalSpecNet (Wu et al. 2024), which convolves at full resolution before it pools. Strides from the
first layer on keep what tells stellar types apart, bands and strong lines, at a fraction of the memory traffic.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.spectrum import BAD_PIXEL_ERROR
from training.encoders.lightcurve import EMBEDDING

CONTINUUM_BIN = 5
"""Grid steps that the continuum is averaged over before it is smoothed."""
CONTINUUM_REACH = 20
"""Bins to either side, 200 Angstrom, that the continuum at a place is a mean of, weighted with their distance."""
LEAST_CONTINUUM = 0.05
"""Of the median flux: fainter light has no lines that can be measured."""
LINE_SCALE = 4.0
USEFUL_ERROR = 0.03
"""Of the continuum: the error at which a pixel counts half."""


def lines_and_continuum(spectra: Tensor) -> Tensor:
    """(batch, 3, 2575) as in ``SpectrumInputs`` to the same shape: depth of lines, precision, shape of the continuum.

    Scaled by mean and MAD, the same pixels have other values where the spectrograph saw another part of the star's
    light. So the flux over its median is taken back from the three channels, and divided by its continuum: the mean of
    the pixels within 200 Angstrom that are covered. The first channel is then the same for a fifth of the grid as for
    all of it; the second is 0 where there is no pixel, and 1 where its error is nil; the third is the continuum's
    logarithm less its mean, so that a unit or a median of other wavelengths does not show.
    """
    flux, error = spectra[:, 0], spectra[:, 1]
    good = error < 0.999 * BAD_PIXEL_ERROR
    mask = good.to(flux.dtype)
    mad = torch.pow(10.0, spectra[:, 2, :1])
    count = mask.sum(dim=1, keepdim=True)
    middle = ((count - 1.0) / 2.0).clamp(min=0.0).long()
    median = torch.where(good, flux, 1e4).sort(dim=1).values.gather(1, middle)
    flux = 1.0 + mad * (flux - median)

    reach = torch.arange(-CONTINUUM_REACH, CONTINUUM_REACH + 1, device=flux.device)
    kernel = (1.0 - reach.abs().to(flux.dtype) / (CONTINUUM_REACH + 1.0))[None, None]

    def smooth(values: Tensor) -> Tensor:
        binned = functional.avg_pool1d(values[:, None], CONTINUUM_BIN)
        return functional.conv1d(binned, kernel, padding=CONTINUUM_REACH)

    binned = smooth(flux * mask) / smooth(mask).clamp(min=1e-3)
    continuum = functional.interpolate(binned, scale_factor=float(CONTINUUM_BIN), mode="linear")[:, 0]
    continuum = continuum.clamp(min=LEAST_CONTINUUM)
    depth = (flux / continuum - 1.0).clamp(-3.0, 3.0) * mask
    precision = mask / (1.0 + error * mad / continuum / USEFUL_ERROR)
    shape = continuum.log().clamp(-3.0, 3.0)
    shape = (shape - (shape * mask).sum(dim=1, keepdim=True) / count.clamp(min=1.0)) * mask
    return torch.stack([LINE_SCALE * depth, precision, shape], dim=1)


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
        return self.embed(lines_and_continuum(spectra))

    def embed(self, lines: Tensor) -> Tensor:
        """(batch, 3, 2575) as ``lines_and_continuum`` gives it to (batch, 512), unit length."""
        x = self.pool(self.convolutions(lines))
        return functional.normalize(self.project(x.flatten(1)), dim=1)
