"""Trifid's light-curve encoder: a folded view, the single points and shape features, to 512 dimensions.

AstroM3 encodes 200 points with an 8-layer Informer and takes the period from a catalogue. Here the period is
found by ``broker.assemble.period``, and the folded light curve, in which class differences are visible to the
eye, is read by a small convolutional network; the unfolded points are read by latent queries that attend to
them once (Jaegle et al. 2021, "Perceiver", arXiv 2103.03206). Together that is about 1/50 of Informer's work.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.lightcurve import FOLDED_CHANNELS, LIGHT_CURVE_FEATURES

EMBEDDING = 512


class ResidualBlock(nn.Module):
    """Two circular convolutions with a shortcut, then halving of the phase axis."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dropout: float) -> None:
        super().__init__()
        padding = kernel // 2
        self.first = nn.Conv1d(inputs, outputs, kernel, padding=padding, padding_mode="circular")
        self.second = nn.Conv1d(outputs, outputs, kernel, padding=padding, padding_mode="circular")
        self.shortcut = nn.Conv1d(inputs, outputs, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(1, inputs), nn.GroupNorm(1, outputs)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, bins) to (batch, outputs, bins / 2)."""
        y = self.first(functional.gelu(self.norms[0](x)))
        y = self.second(self.dropout(functional.gelu(self.norms[1](y))))
        return functional.avg_pool1d(self.shortcut(x) + y, 2)


class FoldedEncoder(nn.Module):
    """Convolutions round the phase circle, pooled to one vector."""

    def __init__(self, channels: tuple[int, ...], kernel: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv1d(FOLDED_CHANNELS, channels[0], 7, padding=3, padding_mode="circular", stride=2)
        pairs = pairwise(channels)
        self.blocks = nn.Sequential(*[ResidualBlock(i, o, kernel, dropout) for i, o in pairs])
        self.width = 2 * channels[-1]

    def forward(self, folded: Tensor) -> Tensor:
        """(batch, FOLDED_CHANNELS, PHASE_BINS) to (batch, width)."""
        x = self.blocks(self.stem(folded))
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


class PointsEncoder(nn.Module):
    """Learned queries attend once to the embedded points, then are mixed into one vector."""

    def __init__(self, width: int, queries: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("time_scales", 2.0 * math.pi * 2.0 ** torch.arange(6), persistent=False)
        self.register_buffer("phase_scales", 2.0 * math.pi * torch.arange(1, 5).float(), persistent=False)
        self.time_scales: Tensor
        self.phase_scales: Tensor
        self.embed = nn.Sequential(
            nn.Linear(2 + 2 * 6 + 2 * 4 + 3, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.queries = nn.Parameter(torch.randn(queries, width) / math.sqrt(width))
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Sequential(
            nn.LayerNorm(queries * width), nn.Linear(queries * width, 2 * width), nn.GELU(), nn.Dropout(dropout)
        )
        self.width = 2 * width

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        """(batch, n, POINT_CHANNELS), (batch, n) True where observed, to (batch, width)."""
        time, value, error, phase, tone = points.unbind(dim=2)
        time_angle = time[..., None] * self.time_scales
        phase_angle = phase[..., None] * self.phase_scales
        # MAD-normalised eclipses reach tens of MADs; asinh keeps them and the quiet parts on one scale.
        columns = [
            torch.asinh(value)[..., None], torch.asinh(error)[..., None],
            (value.clamp(-3, 3) / 3)[..., None], time[..., None], 3 * tone[..., None],
            time_angle.sin(), time_angle.cos(), phase_angle.sin(), phase_angle.cos(),
        ]  # fmt: skip
        x = self.embed(torch.cat(columns, dim=2))
        # A score is linear in a point's key, and what a query gathers in the points' values: so the queries are brought
        # to the points' space once, and only what was gathered goes through the values' weights. The keys' bias adds
        # the same to all scores of a query, which softmax does not see.
        width = x.shape[2]
        size = width // self.heads
        key, value_ = self.key_value.weight.view(2, self.heads, size, width)
        query = self.queries.view(-1, self.heads, size).transpose(0, 1) / math.sqrt(size)
        scores = torch.matmul((query @ key).flatten(0, 1), x.transpose(1, 2))
        attention = scores.masked_fill(~mask[:, None, :], -1e4).softmax(dim=-1)
        gathered = torch.matmul(attention, x).view(-1, self.heads, len(self.queries), width)
        pooled = torch.matmul(gathered, value_.transpose(1, 2)).transpose(1, 2).flatten(2)
        pooled = (pooled + self.key_value.bias[width:]).flatten(1)
        mixed: Tensor = self.mix(pooled)
        return mixed


class FeaturesEncoder(nn.Module):
    """A perceptron on piecewise linear encodings of the features.

    Each feature is cut at its quantiles and each piece is filled from 0 to 1 as the feature passes it (Gorishniy,
    Rubachev & Babenko 2022, arXiv 2203.05556, section 3.2). That lets a perceptron cut at a value, as the
    classes themselves are cut (Miras from SR stars at an amplitude), which it otherwise does worse than a forest.
    """

    def __init__(self, width: int, pieces: int, dropout: float) -> None:
        super().__init__()
        count = len(LIGHT_CURVE_FEATURES)
        self.register_buffer("lower", torch.linspace(-1.0, 1.0, pieces + 1)[:-1].repeat(count, 1))
        self.register_buffer("size", torch.full((count, pieces), 2.0 / pieces))
        self.lower: Tensor
        self.size: Tensor
        self.layers = nn.Sequential(
            nn.Linear(count * pieces, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU()
        )

    def fit_pieces(self, features: Tensor) -> None:
        """Cut at the quantiles of ``features`` (n, LIGHT_CURVE_FEATURES)."""
        pieces = self.lower.shape[1]
        quantiles = np.quantile(features.numpy(), np.linspace(0, 1, pieces + 1), axis=0).T.astype(np.float32)
        self.lower.copy_(torch.from_numpy(quantiles[:, :-1].copy()))
        # Where many objects share a value its pieces are steps.
        self.size.copy_(torch.from_numpy(np.diff(quantiles, axis=1)).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, LIGHT_CURVE_FEATURES) to (batch, width)."""
        filled = ((features[:, :, None] - self.lower) / self.size).clamp(0.0, 1.0)
        result: Tensor = self.layers(filled.flatten(1))
        return result


class LightCurveEncoder(nn.Module):
    """Folded view, points and features to one L2-normalised embedding."""

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 48, 64, 96),
        kernel: int = 5,
        point_width: int = 48,
        queries: int = 8,
        heads: int = 4,
        feature_width: int = 128,
        feature_pieces: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.folded = FoldedEncoder(channels, kernel, dropout)
        self.points = PointsEncoder(point_width, queries, heads, dropout)
        self.features = FeaturesEncoder(feature_width, feature_pieces, dropout)
        width = self.folded.width + self.points.width + feature_width
        self.project = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Dropout(dropout), nn.Linear(256, EMBEDDING)
        )

    def set_feature_scale(self, features: Tensor) -> None:
        """Fit the encoding of the features to ``features`` (n, LIGHT_CURVE_FEATURES) of training stars."""
        self.features.fit_pieces(features)

    def forward(self, points: Tensor, points_mask: Tensor, folded: Tensor, features: Tensor) -> Tensor:
        """Inputs as in ``broker.assemble.inputs.LightCurveInputs``; (batch, 512), unit length."""
        joined = torch.cat([self.folded(folded), self.points(points, points_mask), self.features(features)], dim=1)
        return functional.normalize(self.project(joined), dim=1)
