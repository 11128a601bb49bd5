"""The trimodal model: three encoders into one space and a classifier for any subset of the modalities."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.inputs import MODALITIES
from broker.inference.manifest import CALIBRATION_BINS
from broker.taxonomy import CLASSES
from training.encoders.astrom3 import GalSpecNetEncoder, InformerEncoder, PerceptronEncoder
from training.encoders.lightcurve import EMBEDDING, LightCurveEncoder
from training.encoders.metadata import MetadataEncoder
from training.encoders.spectrum import SpectrumEncoder

SUBSETS: tuple[tuple[bool, ...], ...] = tuple(
    subset for subset in product((True, False), repeat=len(MODALITIES)) if any(subset)
)
LIGHT_CURVE_ONLY = (True, False, False)
START_SCALE = torch.tensor(1.0 / 0.07)
"""CLIP's (Radford et al. 2021, arXiv 2103.00020)."""


def subset_name(subset: tuple[bool, ...]) -> str:
    """``light_curve+metadata`` for (True, False, True)."""
    return "+".join(name for name, present in zip(MODALITIES, subset, strict=True) if present)


class Classifier(nn.Module):
    """Class probabilities and the joint embedding, their mean, from the embeddings of the modalities present."""

    def __init__(self) -> None:
        super().__init__()
        # One temperature for each subset, indexed by its bits, and number of detections (Guo et al. 2017, arXiv
        # 1706.04599): a few points deserve another trust than a thousand.
        self.register_buffer("log_temperature", torch.zeros(2 ** len(MODALITIES), len(CALIBRATION_BINS)))
        self.register_buffer("bin_ends", torch.tensor(CALIBRATION_BINS[1:], dtype=torch.float32), persistent=False)
        self.log_temperature: Tensor
        self.bin_ends: Tensor

    @staticmethod
    def subset_index(present: Tensor) -> Tensor:
        """(batch,) number whose bits are ``present`` (batch, 3)."""
        return present[:, 0].long() + 2 * present[:, 1].long() + 4 * present[:, 2].long()

    @abstractmethod
    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to uncalibrated logits (batch, 10)."""

    def forward(
        self, light_curve: Tensor, spectrum: Tensor, metadata: Tensor, present: Tensor, detections: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (batch, 512) each, ``present`` (batch, 3) and number of detections (batch, 1) to probabilities
        and joint embedding.
        """
        embeddings = torch.stack([light_curve, spectrum, metadata], dim=1)
        number = (detections >= self.bin_ends).long().sum(dim=1)
        temperature = self.log_temperature[self.subset_index(present), number].exp()[:, None]
        probabilities = (self.logits(embeddings, present) / temperature).softmax(dim=1)
        mask = present.to(embeddings.dtype)[..., None]
        return probabilities, functional.normalize((embeddings * mask).sum(dim=1), dim=1)


class ConcatClassifier(Classifier):
    """Trifid's head: it sees the embeddings side by side, so that a weak modality cannot blur a strong one."""

    def __init__(self, hidden: int = 256, dropout: float = 0.2) -> None:
        super().__init__()
        inputs = len(MODALITIES) * EMBEDDING + len(MODALITIES)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, len(CLASSES))
        )

    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to uncalibrated logits (batch, 10)."""
        mask = present.to(embeddings.dtype)
        # Unit vectors have entries of about 0.04; the factor brings them to the scale layers start out for.
        x = torch.cat([(embeddings * mask[..., None]).flatten(1) * EMBEDDING**0.5, mask], dim=1)
        result: Tensor = self.layers(x)
        return result


class StreamClassifier(Classifier):
    """Two heads: one for objects without metadata, and one, trained on streams, for objects with them.

    What is known of a light curve alone was learnt from tens of thousands of stars, and what a packet says from a few
    hundred: neither is to be blurred by the other.
    """

    def __init__(self, without_metadata: ConcatClassifier, with_metadata: Classifier) -> None:
        super().__init__()
        self.without_metadata = without_metadata
        self.with_metadata = with_metadata

    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to uncalibrated logits (batch, 10)."""
        has_metadata = present[:, MODALITIES.index("metadata"), None]
        with_, without = (head.logits(embeddings, present) for head in (self.with_metadata, self.without_metadata))
        return torch.where(has_metadata, with_, without)


class MeanClassifier(Classifier):
    """AstroM3's head (arXiv 2411.08842, section 4): one linear layer on the mean of the embeddings present."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(EMBEDDING, len(CLASSES))

    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to uncalibrated logits (batch, 10)."""
        mask = present.to(embeddings.dtype)[..., None]
        result: Tensor = self.linear((embeddings * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return result


class HeadsClassifier(Classifier):
    """A linear layer for each modality, on its embedding alone; the mean of the logits of the modalities present.

    With one head for all it would be ``MeanClassifier``. AstroM3 trains one model a modality, each with its own head,
    and for several modalities another one, which is not this mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(EMBEDDING, len(CLASSES)) for _ in MODALITIES])

    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to uncalibrated logits (batch, 10)."""
        mask = present.to(embeddings.dtype)[..., None]
        each = torch.stack([head(embeddings[:, i]) for i, head in enumerate(self.heads)], dim=1)
        result: Tensor = (each * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return result


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """Tensors of one batch; ``present`` (batch, 3) says which modalities each object really has."""

    points: Tensor
    points_mask: Tensor
    folded: Tensor
    features: Tensor
    spectra: Tensor
    values: Tensor
    known: Tensor
    present: Tensor
    detections: Tensor
    """(batch, 1), as a number."""


class Trimodal(nn.Module):
    """Encoders, classifier and the temperature of the contrastive loss; ``training.encoders.build`` makes them."""

    def __init__(
        self,
        light_curve_encoder: LightCurveEncoder | InformerEncoder,
        spectrum_encoder: SpectrumEncoder | GalSpecNetEncoder,
        metadata_encoder: MetadataEncoder | PerceptronEncoder,
        classifier: Classifier,
        scale: Tensor = START_SCALE,
    ) -> None:
        """``scale`` is that of the contrastive loss at the start, one or (3,), one for each pair of modalities."""
        super().__init__()
        self.light_curve_encoder = light_curve_encoder
        self.spectrum_encoder = spectrum_encoder
        self.metadata_encoder = metadata_encoder
        self.classifier = classifier
        self.log_scale = nn.Parameter(scale.log())

    def encode(self, batch: TensorBatch) -> Tensor:
        """Embeddings of the three modalities, (batch, 3, 512)."""
        return torch.stack([self.encode_one(batch, i) for i in range(len(MODALITIES))], dim=1)

    def encode_one(self, batch: TensorBatch, modality: int) -> Tensor:
        """Embedding (batch, 512) of one modality, by its place in MODALITIES."""
        if modality == 0:
            embedding: Tensor = self.light_curve_encoder(batch.points, batch.points_mask, batch.folded, batch.features)
        elif modality == 1:
            embedding = self.spectrum_encoder(batch.spectra)
        else:
            embedding = self.metadata_encoder(batch.values, batch.known)
        return embedding
