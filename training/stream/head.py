"""The head: metadata encoder and classifier, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.metadata import (
    MODEL_FEATURES,
    usable_metadata,
)
from broker.errors import ConfigurationError
from broker.records import METADATA_FEATURES
from broker.taxonomy import CLASS_NAMES
from training.encoders.ensemble import MEMBERS, EnsembleClassifier, MetadataEnsemble
from training.encoders.trimodal import ConcatClassifier, StreamClassifier
from training.stream.examples import set_of
from training.stream.material import PACKETS, Inputs, Material

ARCHIVE_SHARE = 0.4
"""Fraction of the archive's light curves drawn for each head; every head draws its own."""
EPOCHS = 7
BATCH = 512
LEARNING_RATE = 2e-3
SMOOTHING = 0.05
CLASS_BALANCE = 0.3
REAL_WEIGHT = 12.0
"""Sampling weight of a real light curve in several bands relative to an archive's: there are few, and they are what
streams are like."""
WEIGHT_OF_SET = {PACKETS: 6.0, "stripe82": 3.0}
"""Sets of another weight: of packets there are more, and Stripe 82 has RR Lyrae stars only."""
PACKET_LIKE_SHARE = 0.5
SWAPPED, SWAPPED_COLUMNS = 0.5, 0.3
NOISE = 0.2
"""Deviation of the noise on standardised values."""
MOST_HIDDEN = 0.5
"""Share of known values that are hidden: even between 0 and this."""
LEAST_IN_BATCH = 8
SUBSET_WEIGHTS: dict[tuple[bool, bool, bool], float] = {
    (False, False, True): 0.4,
    (True, False, True): 0.6,
    (False, True, True): 0.2,
    (True, True, True): 0.4,
}
"""Weight of each subset with metadata (light curve, spectrum, metadata) in the loss."""
NAMES = ("values", "known", "present")
_COLUMN = {name: i for i, name in enumerate(MODEL_FEATURES)}
_APPARENT = [i for name, i in _COLUMN.items() if name.endswith("_mag") and i >= len(METADATA_FEATURES)]
"""Apparent magnitudes; AstroM3's are made absolute."""


class Head(nn.Module):
    """What is trained: metadata encoder and classifier."""

    def __init__(self, without_metadata: ConcatClassifier) -> None:
        """``without_metadata`` is the head for objects without metadata, and stays as it is."""
        super().__init__()
        self.metadata_encoder = MetadataEnsemble()
        self.ensemble = EnsembleClassifier()
        self.classifier = StreamClassifier(without_metadata.requires_grad_(False), self.ensemble)

    def logits(self, light_curve: Tensor, spectrum: Tensor, metadata: Tensor, present: Tensor) -> Tensor:
        """Embeddings (n, 512) each, ``present`` (n, 3), to logits (n, 10)."""
        return self.classifier.logits(torch.stack([light_curve, spectrum, metadata], dim=1), present)


def published_head(repository: Path) -> ConcatClassifier:
    """The head that a repository's classifier has for objects without metadata, from the weights in its ONNX file.

    Raises ConfigurationError where the classifier is another one.
    """
    path = repository / "classifier" / "1" / "model.onnx"
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    head = ConcatClassifier()
    for prefix in ("classifier.without_metadata.", "without_metadata.", ""):
        found = {name: weights.get(f"{prefix}{name}") for name in ("layers.0.weight", "layers.0.bias")}
        found |= {name: weights.get(f"{prefix}{name}") for name in ("layers.3.weight", "layers.3.bias")}
        if all(value is not None for value in found.values()):
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
            head.load_state_dict(tensors, strict=False)
            return head.eval()
    raise ConfigurationError(f"{path} has no layers of a ConcatClassifier: only heads of Trifid's own can be kept")


def train_head(
    material: Material,
    training_star: NDArray[np.bool_],
    without_metadata: ConcatClassifier,
    seed: int,
    report: Callable[[str], None],
) -> Head:
    """A head of the archive's training stars and those of ``material.real`` (m,) that ``training_star`` names.

    Objects without metadata get ``without_metadata``, which stays as it is.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 11])
    is_training = np.array([kind.startswith("train") for kind in material.archive.kind])
    archive = rng.permutation(np.flatnonzero(is_training))[: int(ARCHIVE_SHARE * is_training.sum())]
    real = np.flatnonzero(material.usable & training_star)
    pool = _Pool.of(material, archive, real, rng)
    head = Head(without_metadata)
    head.metadata_encoder.fit_pieces(
        np.concatenate([i.values for i in pool.sources]), np.concatenate([i.known for i in pool.sources])
    )
    steps = EPOCHS * len(pool) // BATCH
    learnt = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    head.train()
    for step in range(steps):
        batch = pool.draw(rng)
        metadata = head.metadata_encoder(batch.values, batch.known)
        # What each modality adds is the same in every subset.
        parts = head.ensemble.parts(torch.stack([batch.light_curve, batch.spectrum, metadata], dim=1))
        loss = torch.zeros(())
        for subset, weight in SUBSET_WEIGHTS.items():
            wanted = torch.tensor(subset)
            chosen = (batch.present | ~wanted).all(dim=1)
            if int(chosen.sum()) < LEAST_IN_BATCH:
                continue
            logits = head.ensemble.member_logits(parts[chosen], wanted.expand(int(chosen.sum()), -1))
            loss = loss + weight * _members_loss(logits, batch.target[chosen], batch.weight[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learnt, 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            report(f"step {step} of {steps}: loss {float(loss.detach()):.3f}")
    return head.eval()


def _members_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy of the members: ``logits`` (n, members, 10), classes (n,), ``weight`` (n, members)."""
    each = functional.cross_entropy(
        logits.flatten(0, 1), target.repeat_interleave(logits.shape[1]), label_smoothing=SMOOTHING, reduction="none"
    )
    return (each * weight.flatten()).mean()


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    light_curve: Tensor
    spectrum: Tensor
    values: Tensor
    known: Tensor
    present: Tensor
    target: Tensor
    weight: Tensor
    """(n, MEMBERS)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Examples to draw from, the archive's first, then the real ones."""

    light_curve: NDArray[np.float32]
    spectrum: NDArray[np.float32]
    has_light_curve: NDArray[np.bool_]
    sources: tuple[Inputs, Inputs]
    """Metadata of the pool: of a catalogue, and of a packet; the same twice for real stars."""
    target: NDArray[np.int64]
    weight: NDArray[np.float32]
    """(n, MEMBERS) of each star for each member: the Bayesian bootstrap (Rubin 1981), so that members differ."""
    cumulative: NDArray[np.float64]
    """(n,) of the probabilities of being drawn."""
    archive: int
    """How many are the archive's."""
    by_class: NDArray[np.intp]
    """Rows of packets, in order of their class."""
    packet_class: NDArray[np.int64]
    """Class of each row that is of a packet, else -1."""

    def __len__(self) -> int:
        return len(self.target)

    @staticmethod
    def of(material: Material, archive: NDArray[np.intp], real: NDArray[np.intp], rng: np.random.Generator) -> _Pool:
        label = np.concatenate([material.archive.label[archive], material.real.label[real]])
        packet = material.is_packet[real]
        counts = np.bincount(label[: len(archive)], minlength=len(CLASS_NAMES)).clip(min=1)
        weight = np.concatenate(
            [
                (counts.mean() / counts[material.archive.label[archive]]) ** CLASS_BALANCE,
                [WEIGHT_OF_SET.get(name, REAL_WEIGHT) for name in set_of(material.real.kind[real])],
            ]
        )
        names = np.concatenate([material.archive.star[archive], material.real.star[real]]).astype(str)
        stars, star = np.unique(names, return_inverse=True)
        rows = len(archive) + np.flatnonzero(packet)
        own = [
            Inputs(*(np.concatenate([getattr(i, n)[archive], getattr(material.real_inputs, n)[real]]) for n in NAMES))
            for i in (material.catalogued, material.packet_like)
        ]
        packet_class = np.full(len(label), -1)
        packet_class[rows] = label[rows]
        return _Pool(
            np.concatenate([material.archive.light_curve[archive], material.real.light_curve[real]]).astype(np.float32),
            material.spectrum[archive].astype(np.float32),
            np.concatenate([material.archive.present[archive], material.real.present[real]]),
            (own[0], own[1]),
            label,
            rng.exponential(size=(len(stars), MEMBERS)).astype(np.float32)[star],
            np.cumsum(weight) / weight.sum(),
            len(archive),
            rows[np.argsort(label[rows], kind="stable")],
            packet_class,
        )

    def draw(self, rng: np.random.Generator) -> _Drawn:
        """A batch, with noise on the values, some of them hidden, and some swapped between packets of one class.

        Real packets are few and would be overfitted: values are exchanged between packets of one class.
        """
        rows = np.searchsorted(self.cumulative, rng.random(BATCH), side="right").clip(max=len(self) - 1)
        from_packet = rng.random(BATCH) < PACKET_LIKE_SHARE
        values = np.where(from_packet[:, None], self.sources[1].values[rows], self.sources[0].values[rows])
        known = np.where(from_packet[:, None], self.sources[1].known[rows], self.sources[0].known[rows])
        swapped = np.flatnonzero((self.packet_class[rows] >= 0) & (rng.random(BATCH) < SWAPPED))
        other = self._alike(rows[swapped], rng)
        lent = rng.random((len(swapped), values.shape[1])) < SWAPPED_COLUMNS
        values[swapped] = np.where(lent, self.sources[0].values[other], values[swapped])
        known[swapped] = np.where(lent, self.sources[0].known[other], known[swapped])
        values = values + rng.normal(0, NOISE, values.shape).astype(np.float32)
        values[:, _APPARENT] += rng.normal(0, NOISE, (BATCH, 1)).astype(np.float32)  # one star, nearer or farther
        known &= rng.random(known.shape) >= rng.uniform(0, MOST_HIDDEN, (BATCH, 1))
        has_metadata = usable_metadata(known)
        known &= has_metadata[:, None]
        spectrum = np.zeros((BATCH, self.light_curve.shape[1]), np.float32)
        of_archive = rows < self.archive
        spectrum[of_archive] = self.spectrum[rows[of_archive]]
        present = np.stack([self.has_light_curve[rows], of_archive, has_metadata], axis=1)
        return _Drawn(
            *(
                torch.from_numpy(a)
                for a in (
                    self.light_curve[rows], spectrum, values, known, present, self.target[rows], self.weight[rows],
                )
            )
        )  # fmt: skip

    def _alike(self, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """For each of ``rows`` of packets another one, or the same, of its class."""
        classes = self.packet_class[self.by_class]
        start, stop = (np.searchsorted(classes, self.packet_class[rows], side=s) for s in ("left", "right"))
        return self.by_class[rng.integers(start, stop)]
