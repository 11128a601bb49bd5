"""Members side by side: an ensemble of metadata encoders and heads in one metadata encoder and one classifier.

Networks that start from other weights err on other stars where a few hundred teach them, and the mean of their
probabilities is more often right and better calibrated than each (Lakshminarayanan, Pritzel & Blundell 2017, arXiv
1612.01474). The members share the embedding: each has its own slice of the 512 numbers, so that the service sees one
encoder and one classifier as before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.inputs import MODALITIES
from broker.taxonomy import CLASSES
from training.encoders.lightcurve import EMBEDDING
from training.encoders.metadata import PiecewiseLinear
from training.encoders.trimodal import Classifier

MEMBERS = 4
"""They share the embedding's 512 numbers."""


class MemberLinear(nn.Module):
    """A linear layer of each member: (batch, members, inputs) to (batch, members, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Each member its own."""
        return (torch.matmul(x.transpose(0, 1), self.weight) + self.bias).transpose(0, 1)


class MetadataEnsemble(PiecewiseLinear):
    """Values and the mask of known values to one unit vector, of which each member makes a slice of equal length."""

    def __init__(self, members: int = MEMBERS, hidden: int = 128, pieces: int = 10, dropout: float = 0.3) -> None:
        super().__init__(pieces)
        self.members = members
        self.first = nn.Linear(self.encoded, members * hidden)
        self.second = MemberLinear(members, hidden, hidden)
        self.third = MemberLinear(members, hidden, EMBEDDING // members)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, MODEL_FEATURES) standardised values and True where known, to (batch, 512), unit length."""
        x = self.first(self.encoding(values, known)).unflatten(1, (self.members, -1))
        x = self.second(self.dropout(functional.gelu(x)))
        x = self.third(self.dropout(functional.gelu(x)))
        return functional.normalize(x, dim=2).flatten(1) / math.sqrt(self.members)


class EnsembleClassifier(Classifier):
    """The mean of the probabilities of several heads, of which each reads its own slice of the metadata embedding."""

    def __init__(self, members: int = MEMBERS, hidden: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.members = members
        self.light_curve = nn.Linear(EMBEDDING, members * hidden, bias=False)
        self.spectrum = nn.Linear(EMBEDDING, members * hidden, bias=False)
        self.present = nn.Linear(len(MODALITIES), members * hidden)
        self.metadata = MemberLinear(members, EMBEDDING // members, hidden)
        self.last = MemberLinear(members, hidden, len(CLASSES))
        self.dropout = nn.Dropout(dropout)

    def parts(self, embeddings: Tensor) -> Tensor:
        """(batch, 3, 512) to what each modality adds to the members' hidden layers, (batch, 3, members, hidden)."""
        light_curve, spectrum, metadata = (embeddings * EMBEDDING**0.5).unbind(dim=1)
        shape = (self.members, -1)
        return torch.stack(
            [
                self.light_curve(light_curve).unflatten(1, shape),
                self.spectrum(spectrum).unflatten(1, shape),
                self.metadata(metadata.unflatten(1, shape)),
            ],
            dim=1,
        )

    def member_logits(self, parts: Tensor, present: Tensor) -> Tensor:
        """``parts`` of the embeddings and ``present`` (batch, 3) to the logits of each member, (batch, members, 10)."""
        mask = present.to(parts.dtype)
        hidden = (parts * mask[..., None, None]).sum(dim=1) + self.present(mask).unflatten(1, (self.members, -1))
        result: Tensor = self.last(self.dropout(functional.gelu(hidden)))
        return result

    def logits(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3) to the logarithm of the members' mean probability (batch, 10)."""
        members = self.member_logits(self.parts(embeddings), present)
        return members.log_softmax(dim=2).logsumexp(dim=1) - math.log(self.members)
