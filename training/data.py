"""The training set as tensors: labels, splits and the prepared inputs of all three modalities."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.taxonomy import CLASS_INDEX, CLASSES
from training.encoders.trimodal import Batch
from training.prepare import PreparedLightCurves

WEAK_LABEL_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What is known of each object's class."""

    index: NDArray[np.int64]
    """(n,) position in ``taxonomy.CLASSES``, -1 where unknown."""
    allowed: NDArray[np.bool_]
    """(n, 10) the classes the label may mean; a coarse EW may be EW or EB."""
    likelihood: NDArray[np.float32]
    """(n, 10) probability of the object's label for a star of each class; 1 or 0 as ``allowed`` until
    ``with_confusion`` knows better."""
    weight: NDArray[np.float32]
    """(n,) weight in training: 0 for objects without a label, less for weak labels."""
    scored: NDArray[np.bool_]
    """(n,) whether the label is good enough to be scored against (gold and std, not coarse)."""

    @staticmethod
    def from_columns(label: NDArray[np.object_], quality: NDArray[np.object_], coarse: NDArray[np.bool_]) -> Labels:
        """From class name or None, label quality (gold, std, weak, conflict or None) and the coarse flag."""
        index = np.array([CLASS_INDEX.get(name, -1) if name else -1 for name in label], np.int64)
        allowed = np.zeros((len(index), len(CLASSES)), np.bool_)
        known = index >= 0
        allowed[known, index[known]] = True
        allowed[known & coarse, CLASS_INDEX["EB"]] = True
        weak = quality == "weak"
        conflict = quality == "conflict"
        weight = np.where(known & ~conflict, np.where(weak, WEAK_LABEL_WEIGHT, 1.0), 0.0).astype(np.float32)
        return Labels(index, allowed, allowed.astype(np.float32), weight, known & ~weak & ~conflict & ~coarse)

    def with_confusion(self, rows: NDArray[np.bool_], confusion: NDArray[np.float32]) -> Labels:
        """The same labels, but those of ``rows`` (n,) drawn from the true class with ``confusion`` (10, 10)."""
        likelihood = self.likelihood.copy()
        named = rows & (self.index >= 0)
        likelihood[named] = confusion.T[self.index[named]]
        return replace(self, likelihood=likelihood)

    def class_balanced(self, rows: NDArray[np.intp], power: float) -> NDArray[np.float32]:
        """``weight`` times (mean class count / class count) ** ``power``, counted over ``rows``."""
        counts = np.bincount(self.index[rows][self.weight[rows] > 0], minlength=len(CLASSES)).clip(min=1)
        factor = (counts.mean() / counts) ** power
        return (self.weight * np.where(self.index >= 0, factor[self.index], 0.0)).astype(np.float32)


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
        """``spectra`` (v, n, 3, 2575); ``values`` and ``known`` (n, 34); the ``present`` arrays (n,)."""
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

    def batch(self, rows: NDArray[np.intp], version: NDArray[np.intp] | int = 0) -> Batch:
        """Inputs of ``rows`` with the given light-curve version for each, as float32 tensors."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        v = torch.as_tensor(np.broadcast_to(np.asarray(version, np.int64), len(rows)).copy())
        sample = v.numpy() % self.spectra.shape[0]
        return Batch(
            points=self.points[v, index].float(),
            points_mask=self.points_mask[v, index],
            folded=self.folded[v, index].float(),
            features=self.features[v, index].float(),
            spectra=torch.from_numpy(self.spectra[sample, rows]).float(),
            values=self.values[index],
            known=self.known[index],
            present=self.present(index, v),
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


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with all its tensors on ``device``; no copies where they are there already."""
    return Batch(**{field.name: getattr(batch, field.name).to(device) for field in fields(Batch)})
