"""AstroM3's published encoders, written from the papers: the baseline that Trifid's own are measured against.

Photometry: the encoder of Informer (Zhou et al. 2021, arXiv 2012.07436), without its distilling convolutions.
Spectra: GalSpecNet (Wu et al. 2024, MNRAS 527, 1163). Metadata: a perceptron. Sizes are those of AstroM3
(Rizhko & Bloom 2024, arXiv 2411.08842, section 4 and the published configuration). Each gives a unit vector of
512 and takes what Trifid's own encoder of that modality takes, so that either fits ``Trimodal``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, POINTS
from broker.records import METADATA_FEATURES
from training.encoders.lightcurve import EMBEDDING

AUXILIARIES = ("log10_mad", "log10_span", "log10_range_90", "log10_period", "r2_period")
"""Features repeated at every point. AstroM3 repeats log10 MAD, span and four values of the ASAS-SN catalogue:
amplitude, period, the string-length statistic of the folded light curve and the score of the catalogue's own
classifier. These are their equivalents, found from the light curve itself, but for the last: another
classifier's verdict is not known for a new star. The phase of each point stands in for it as ninth channel."""
PUBLISHED_CHANNELS = 4
"""Time, magnitude, error and phase: of what a point has, AstroM3 knows no more."""
HIDDEN = -1e4
"""Attention score of what must not be attended to."""


class ProbSparseAttention(nn.Module):
    """Self-attention in which only the queries that matter attend (Informer, section 3.1).

    A query whose scores are nearly all alike would return about the mean of the values, and is given just that.
    How far a query is from it is measured on a sample of ``factor * ceil(ln length)`` keys, as the largest
    score less the mean score; the ``factor * ceil(ln length)`` queries with the largest measure attend to all
    keys. The sample differs from query to query. It is drawn anew in each training step, and is one fixed
    sample, kept with the weights, in evaluation, so that a light curve always has the same embedding.
    """

    def __init__(self, width: int, heads: int, factor: int, length: int, seed: int) -> None:
        """``width`` is split over ``heads``; sequences have ``length`` places; ``seed`` draws the fixed sample."""
        super().__init__()
        self.heads = heads
        self.active = min(length, factor * math.ceil(math.log(length)))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        # Where in the sequence of observed points a sampled key lies, 0 to 1: light curves differ in length.
        sample = torch.rand(length, self.active, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("sample", sample)
        self.sample: Tensor

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor) -> Tensor:
        """(batch, length, width), (batch, length) True where observed, to (batch, length, width).

        ``observed`` (batch, length) holds the places of the observed points first, then the others. What is
        returned at places that are not observed is of no meaning.
        """
        batch, length, width = x.shape
        size = width // self.heads

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, size).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        score = query @ key.transpose(2, 3) / math.sqrt(size)
        chosen = self._active_queries(score, mask, observed)
        attention = score.gather(2, chosen.expand(-1, -1, -1, length))
        attention = attention.masked_fill(~mask[:, None, None, :], HIDDEN).softmax(dim=3)
        weight = mask.to(x.dtype)[:, None, :, None]
        mean = (value * weight).sum(dim=2, keepdim=True) / weight.sum(dim=2, keepdim=True).clamp(min=1)
        # Under autocast the two have different precision.
        attended = (attention @ value).to(mean.dtype)
        context = mean.expand(-1, -1, length, -1).scatter(2, chosen.expand(-1, -1, -1, size), attended)
        result: Tensor = self.out(context.transpose(1, 2).reshape(batch, length, width))
        return result

    def _active_queries(self, score: Tensor, mask: Tensor, observed: Tensor) -> Tensor:
        """(batch, heads, active, 1) places of the queries with the largest measure (Informer, equation 4)."""
        batch, heads, length, _ = score.shape
        place = torch.rand_like(self.sample) if self.training else self.sample
        count = mask.sum(dim=1)[:, None, None]
        rank = (place * count).long().clamp(max=length - 1)
        keys = observed.gather(1, rank.view(batch, -1)).view(batch, 1, length, self.active)
        sampled = score.gather(3, keys.expand(-1, heads, -1, -1))
        measure = sampled.amax(dim=3) - sampled.mean(dim=3)
        measure = measure.masked_fill(~mask[:, None, :], HIDDEN)
        return measure.topk(self.active, dim=2).indices[..., None]


class InformerLayer(nn.Module):
    """ProbSparse attention and a feed-forward network, each added to its input and normalised."""

    def __init__(
        self, width: int, heads: int, feed_forward: int, factor: int, dropout: float, length: int, seed: int
    ) -> None:
        super().__init__()
        self.attention = ProbSparseAttention(width, heads, factor, length, seed)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, feed_forward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feed_forward, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor) -> Tensor:
        """As ``ProbSparseAttention``."""
        x = self.norms[0](x + self.dropout(self.attention(x, mask, observed)))
        result: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return result


def _sinusoids(length: int, width: int) -> Tensor:
    """(length, width) fixed positional embedding (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class InformerEncoder(nn.Module):
    """AstroM3's photometry encoder: nine channels at each of the points, through Informer, to one unit vector."""

    def __init__(
        self,
        layers: int = 8,
        width: int = 128,
        heads: int = 4,
        feed_forward: int = 512,
        factor: int = 1,
        dropout: float = 0.245,
    ) -> None:
        """``factor`` is the constant c of Informer's section 3.1, which AstroM3 sets to 1."""
        super().__init__()
        columns = [LIGHT_CURVE_FEATURES.index(name) for name in AUXILIARIES]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(len(columns)))
        self.register_buffer("feature_std", torch.ones(len(columns)))
        self.register_buffer("position", _sinusoids(POINTS, width), persistent=False)
        self.columns: Tensor
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.position: Tensor
        channels = PUBLISHED_CHANNELS + len(columns)
        self.embed = nn.Conv1d(channels, width, 3, padding=1, padding_mode="circular")
        self.layers = nn.ModuleList(
            [InformerLayer(width, heads, feed_forward, factor, dropout, POINTS, seed) for seed in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.embed_dropout = nn.Dropout(0.1)  # Informer's own, which AstroM3 leaves as it is
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(POINTS * width, EMBEDDING)

    def set_feature_scale(self, features: Tensor) -> None:
        """Standardise the auxiliaries by the mean and deviation of ``features`` (n, LIGHT_CURVE_FEATURES)."""
        features = features[:, self.columns]
        self.feature_mean.copy_(features.mean(dim=0))
        self.feature_std.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, points: Tensor, points_mask: Tensor, folded: Tensor, features: Tensor) -> Tensor:
        """Inputs as in ``broker.assemble.inputs.LightCurveInputs``; (batch, 512), unit length.

        ``folded`` is not read: Informer sees the points alone, and of these what AstroM3 has, which is no wavelength.
        """
        points = points[..., :PUBLISHED_CHANNELS]
        auxiliaries = ((features[:, self.columns] - self.feature_mean) / self.feature_std).clamp(-6, 6)
        shown = points_mask.to(points.dtype)[..., None]
        x = torch.cat([points, auxiliaries[:, None, :].expand(-1, points.shape[1], -1)], dim=2) * shown
        x = self.embed_dropout(self.embed(x.transpose(1, 2)).transpose(1, 2) + self.position)
        # All keys of the sort are different, so the order of the observed places is that of time.
        earlier = -torch.arange(POINTS, device=points.device)
        observed = (points_mask.long() * POINTS + earlier).topk(POINTS, dim=1).indices
        for layer in self.layers:
            x = layer(x, points_mask, observed)
        x = self.dropout(self.norm(x)) * shown
        return functional.normalize(self.project(x.flatten(1)), dim=1)


class GalSpecNetEncoder(nn.Module):
    """AstroM3's spectrum encoder: four convolutions at full resolution, pooled between them, to one unit vector."""

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 64, 32, 32),
        kernel: int = 3,
        pool: int = 4,
        dropout: float = 0.339,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, *channels)):
            layers += [nn.Conv1d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool1d(pool)]
        self.convolutions = nn.Sequential(*layers[:-1])
        length = 2575
        for _ in channels[1:]:
            length = (length - kernel + 1) // pool
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear((length - kernel + 1) * channels[-1], EMBEDDING)

    def forward(self, spectra: Tensor) -> Tensor:
        """(batch, 3, 2575) as in ``SpectrumInputs`` to (batch, 512), unit length."""
        # asinh is ours: bad pixels have an error of 1000 MADs here, a convention that AstroM3's spectra lack.
        x = self.convolutions(torch.asinh(spectra))
        return functional.normalize(self.project(self.dropout(x.flatten(1))), dim=1)


class PerceptronEncoder(nn.Module):
    """AstroM3's metadata encoder: two hidden layers, to one unit vector."""

    def __init__(self, hidden: int = 512, dropout: float = 0.16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(len(METADATA_FEATURES), hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, EMBEDDING),
        )  # fmt: skip

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, MODEL_FEATURES) standardised values and True where known, to (batch, 512), unit length.

        AstroM3 has the first 34 of these columns, and knows all values of all stars; here an unknown one takes the
        mean, 0.
        """
        filled = values * known.to(values.dtype)
        return functional.normalize(self.layers(filled[:, : len(METADATA_FEATURES)]), dim=1)


def set_dropout(encoder: nn.Module, share: float) -> None:
    """Give ``share`` to all dropouts of an encoder but that of Informer's embedding, which AstroM3 leaves as it is."""
    kept = encoder.embed_dropout if isinstance(encoder, InformerEncoder) else None
    for module in encoder.modules():
        if isinstance(module, nn.Dropout) and module is not kept:
            module.p = share
