"""The networks of ``Other``, as they are trained and as they are exported beside the ten-class head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from broker.assemble.event import EVENT_FEATURES
from broker.assemble.inputs import MODALITIES
from broker.inference.manifest import CALIBRATION_BINS
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import Classifier

MEMBERS, HIDDEN = 4, 128
"""Networks with draws of their own, whose mean logit is used, and the width of each: of what is new they differ."""


class OtherHead(nn.Module):
    """Embeddings, the ten-class head's logits, the number of detections and perhaps the event's values to a logit."""

    def __init__(self, hidden: int = MEMBERS * HIDDEN, dropout: float = 0.3, *, with_event: bool = False) -> None:
        super().__init__()
        self.light_curve = nn.Linear(EMBEDDING, hidden, bias=False)
        self.metadata = nn.Linear(EMBEDDING, hidden, bias=False)
        self.rest = nn.Linear(10 + 3, hidden)
        self.event: nn.Sequential | None = None
        if with_event:
            own = hidden // 4
            self.event = nn.Sequential(
                nn.Linear(len(EVENT_FEATURES), own), nn.GELU(), nn.Linear(own, hidden, bias=False)
            )
        self.last = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))

    def logit(self, embeddings: Tensor, present: Tensor, detections: Tensor, event: Tensor, logits: Tensor) -> Tensor:
        """(batch, 3, 512), (batch, 3), (batch, 1), (batch, EVENT_FEATURES), (batch, 10) to (batch,), not calibrated.

        Spectra are not used."""
        mask = present.to(embeddings.dtype)
        x = embeddings * mask[..., None] * EMBEDDING**0.5
        known = torch.cat([mask[:, 0:1], mask[:, 2:3], (detections + 1).log10()], dim=1)
        ten = logits.log_softmax(dim=1).clamp(min=-8.0) / 4.0
        hidden = self.light_curve(x[:, 0]) + self.metadata(x[:, 2]) + self.rest(torch.cat([ten, known], dim=1))
        if self.event is not None:
            hidden = hidden + self.event(event)
        result: Tensor = self.last(hidden)[:, 0]
        return result


class OtherHeads(nn.Module):
    """The network for total fluxes, the one for difference photometry, and the calibration of either."""

    def __init__(self, total: OtherHead, difference: OtherHead) -> None:
        super().__init__()
        self.total = total
        self.difference = difference
        size = (2, 2 ** len(MODALITIES), len(CALIBRATION_BINS))
        # Platt's two numbers (1999) for total fluxes and difference photometry, each subset of the modalities and
        # number of detections.
        self.register_buffer("slope", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("bin_ends", torch.tensor(CALIBRATION_BINS[1:], dtype=torch.float32), persistent=False)
        self.slope: Tensor
        self.offset: Tensor
        self.bin_ends: Tensor

    def logit(self, embeddings: Tensor, present: Tensor, detections: Tensor, event: Tensor, logits: Tensor) -> Tensor:
        """As ``OtherHead.logit``, of the network for the kind of photometry of each object."""
        inputs = embeddings, present, detections, event, logits
        own = self._is_difference(present, event)
        return torch.where(own, self.difference.logit(*inputs), self.total.logit(*inputs))

    @staticmethod
    def _is_difference(present: Tensor, event: Tensor) -> Tensor:
        """Of fewer points than a light curve has, no rise and decline can be seen."""
        return (event[:, 0] > 0) & present[:, 0]

    def forward(self, embeddings: Tensor, present: Tensor, detections: Tensor, event: Tensor, logits: Tensor) -> Tensor:
        """(batch, 1) calibrated probability; NaN for an object with neither light curve nor metadata."""
        # What a spectrum says of Other is not known, and the calibration is that without it.
        subset = present[:, 0].long() + 4 * present[:, 2].long()
        number = (detections >= self.bin_ends).long().sum(dim=1)
        logit = self.logit(embeddings, present, detections, event, logits)
        kind = self._is_difference(present, event).long()
        probability = (self.slope[kind, subset, number] * logit + self.offset[kind, subset, number]).sigmoid()
        return torch.where(subset > 0, probability, torch.full_like(probability, torch.nan))[:, None]


class ClassifierWithOther(nn.Module):
    """What is exported: the ten-class classifier as it is, and a third output beside its two."""

    def __init__(self, classifier: Classifier, other: OtherHeads) -> None:
        super().__init__()
        self.classifier = classifier
        self.other = other

    def forward(
        self,
        light_curve: Tensor,
        spectrum: Tensor,
        metadata: Tensor,
        present: Tensor,
        detections: Tensor,
        event: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Classifier.forward``, and with ``broker.assemble.event`` that of none of the ten (batch, 1)."""
        probabilities, embedding = self.classifier(light_curve, spectrum, metadata, present, detections)
        embeddings = torch.stack([light_curve, spectrum, metadata], dim=1)
        logits = self.classifier.logits(embeddings, present)
        return probabilities, embedding, self.other(embeddings, present, detections, event, logits)


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedOther:
    """What is published of ``Other``."""

    network: OtherHeads
    thresholds: dict[str, tuple[float, ...]]
    """For the manifest: probabilities from which an object is published as Other, of total fluxes."""
    difference_thresholds: dict[str, tuple[float, ...]]
    """Likewise, of difference photometry."""
    scores: dict[str, object]
    """For the manifest, for people to read."""


@torch.no_grad()
def mean_of(members: Sequence[OtherHead]) -> OtherHead:
    """One network whose logit is the mean of those of ``members``, not calibrated: their hidden layers side by side."""
    hidden = sum(member.rest.out_features for member in members)
    joined = OtherHead(hidden, with_event=members[0].event is not None)
    for name in ("light_curve", "metadata", "rest"):
        getattr(joined, name).weight.copy_(torch.cat([getattr(member, name).weight for member in members]))
    joined.rest.bias.copy_(torch.cat([member.rest.bias for member in members]))
    events = [member.event for member in members if member.event is not None]
    if joined.event is not None:
        first, second = ([cast("nn.Linear", event[i]) for event in events] for i in (0, 2))
        into, out_of = (cast("nn.Linear", joined.event[i]) for i in (0, 2))
        into.weight.copy_(torch.cat([layer.weight for layer in first]))
        into.bias.copy_(torch.cat([layer.bias for layer in first]))
        out_of.weight.copy_(torch.block_diag(*[layer.weight for layer in second]))  # type: ignore[no-untyped-call]
    last = [cast("nn.Linear", member.last[-1]) for member in members]
    own = cast("nn.Linear", joined.last[-1])
    own.weight.copy_(torch.cat([layer.weight for layer in last], dim=1) / len(members))
    own.bias.copy_(torch.stack([layer.bias for layer in last]).mean(dim=0))
    return joined.eval()
