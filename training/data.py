"""The training set as tensors: labels, splits and the prepared inputs of all three modalities."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.taxonomy import CLASS_INDEX, CLASSES
from training.datasets.vsx import DISPUTED
from training.encoders.trimodal import TensorBatch
from training.prepare import PreparedLightCurves

WEAK_LABEL_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What is known of each object's class."""

    index: NDArray[np.int64]
    """(n,) position in ``taxonomy.CLASSES``, -1 where unknown."""
    target: NDArray[np.float32]
    """(n, 10) the label as a distribution over the catalogue's names: one-hot, or softer with a teacher's opinion."""
    confusions: NDArray[np.float32]
    """(k, 10, 10) for each way of naming, the probability that a star of the row's class gets the column's label."""
    naming: NDArray[np.int64]
    """(n,) which of ``confusions`` is that of the object's catalogue."""
    weight: NDArray[np.float32]
    """(n,) weight in training: 0 for objects without a label, less for weak labels."""
    scored: NDArray[np.bool_]
    """(n,) whether the label is good enough to be scored against (gold and std, not coarse, not disputed by VSX)."""
    named: NDArray[np.bool_]
    """(n,) the same, and those that VSX disputes: how catalogues name stars is counted with them, for VSX has the
    names of one catalogue where two differ."""

    @staticmethod
    def from_columns(label: NDArray[np.object_], quality: NDArray[np.object_], coarse: NDArray[np.bool_]) -> Labels:
        """From class name or None, label quality (gold, std, weak, conflict, disputed or None) and the coarse flag.

        A weak label, and one that VSX disputes, is trained on with less weight and never scored."""
        index = np.array([CLASS_INDEX.get(name, -1) if name else -1 for name in label], np.int64)
        known = index >= 0
        target = np.zeros((len(index), len(CLASSES)), np.float32)
        target[known, index[known]] = 1.0
        plain = np.eye(len(CLASSES), dtype=np.float32)
        lumped = plain.copy()
        lumped[CLASS_INDEX["EB"]] = plain[CLASS_INDEX["EW"]]
        weak = (quality == "weak") | (quality == DISPUTED)
        conflict = quality == "conflict"
        weight = np.where(known & ~conflict, np.where(weak, WEAK_LABEL_WEIGHT, 1.0), 0.0).astype(np.float32)
        scored = known & ~weak & ~conflict & ~coarse
        named = scored | (known & ~coarse & (quality == DISPUTED))
        return Labels(index, target, np.stack([plain, lumped]), coarse.astype(np.int64), weight, scored, named)

    def only(self, rows: NDArray[np.intp]) -> Labels:
        """The same labels, but none counts except those of ``rows``."""
        weight = np.zeros_like(self.weight)
        weight[rows] = self.weight[rows]
        return replace(self, weight=weight)

    def with_confusion(self, rows: NDArray[np.bool_], confusion: NDArray[np.float32]) -> Labels:
        """The same labels, but those of ``rows`` (n,) named with ``confusion`` (10, 10)."""
        naming = np.where(rows, len(self.confusions), self.naming)
        return replace(self, confusions=np.concatenate([self.confusions, confusion[None]]), naming=naming)

    def with_teacher(self, rows: NDArray[np.intp], opinion: NDArray[np.float32], share: float) -> Labels:
        """The same labels, mixed with a teacher's ``opinion`` (m, 10) of ``rows`` (m,), in the catalogue's names.

        Where a label counts the opinion has ``share`` of the target; where none does, the opinion is the target, with
        that weight.
        """
        target, weight = self.target.copy(), self.weight.copy()
        counts = self.weight[rows] > 0
        mixed = (1 - share) * self.target[rows] + share * opinion
        target[rows] = np.where(counts[:, None], mixed, opinion)
        weight[rows] = np.where(counts, self.weight[rows], share)
        return replace(self, target=target, weight=weight)

    def class_balanced(self, rows: NDArray[np.intp], power: float) -> NDArray[np.float32]:
        """``weight`` times (mean class count / class count) ** ``power``, counted over ``rows``."""
        counts = self.target[rows][self.weight[rows] > 0].sum(axis=0).clip(min=1.0)
        factor = (counts.mean() / counts) ** power
        balanced: NDArray[np.float32] = (self.weight * (self.target @ factor)).astype(np.float32)
        return balanced


class TrainingSet:
    """All objects' inputs in memory, and batches of them."""

    def __init__(
        self,
        labels: Labels,
        light_curves: PreparedLightCurves,
        spectra: NDArray[np.float16],
        spectrum_present: NDArray[np.bool_],
        values: NDArray[np.float32],
        known: NDArray[np.bool_],
        metadata_present: NDArray[np.bool_],
    ) -> None:
        """``spectra`` (v, n, 3, 2575); ``values`` and ``known`` (n, MODEL_FEATURES); the ``present`` arrays (n,)."""
        self.labels = labels
        self.points = torch.from_numpy(np.array(light_curves.points))
        self.points_mask = torch.from_numpy(np.array(light_curves.points_mask))
        self.folded = torch.from_numpy(np.array(light_curves.folded))
        self.features = torch.from_numpy(np.array(light_curves.features))
        self.light_curve_present = torch.from_numpy(np.array(light_curves.present))
        self.detections = np.array(light_curves.detections)
        self.spectra = spectra
        self.spectrum_present = torch.from_numpy(spectrum_present)
        self.values = torch.from_numpy(values)
        self.known = torch.from_numpy(known)
        self.metadata_present = torch.from_numpy(metadata_present)

    def __len__(self) -> int:
        return len(self.labels.index)

    @property
    def versions(self) -> int:
        """Versions of each light curve; 0 is the whole one."""
        return int(self.points.shape[0])

    def batch(self, rows: NDArray[np.intp], version: NDArray[np.intp] | int = 0) -> TensorBatch:
        """Inputs of ``rows`` with the given light-curve version for each, as float32 tensors."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        v = torch.as_tensor(np.broadcast_to(np.asarray(version, np.int64), len(rows)).copy())
        sample = v.numpy() % self.spectra.shape[0]
        return TensorBatch(
            points=self.points[v, index].float(),
            points_mask=self.points_mask[v, index],
            folded=self.folded[v, index].float(),
            features=self.features[v, index].float(),
            spectra=torch.from_numpy(self.spectra[sample, rows]).float(),
            values=self.values[index],
            known=self.known[index],
            present=self.present(index, v),
            detections=torch.from_numpy(self.detections[v.numpy(), rows].astype(np.float32))[:, None],
        )

    def present(self, index: Tensor, version: Tensor) -> Tensor:
        """(batch, 3) which modalities the rows have."""
        return torch.stack(
            [
                self.light_curve_present[version, index],
                self.spectrum_present[index],
                self.metadata_present[index],
            ],
            dim=1,
        )


def to_device(batch: TensorBatch, device: torch.device) -> TensorBatch:
    """The same batch with all its tensors on ``device``; no copies where they are there already."""
    return TensorBatch(**{field.name: getattr(batch, field.name).to(device) for field in fields(TensorBatch)})
