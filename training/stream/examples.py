"""Histories of objects as the frozen encoders and the assembly see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.progress import track

from broker.assemble.history import history_features
from broker.assemble.lightcurve import assemble_points
from broker.assemble.metadata import (
    raw_values,
)
from broker.assemble.usable import usable_points
from broker.barycentre import barycentric_light_curves
from broker.lightcurves.histories import first_detections
from broker.records import LightCurve, ObjectState
from broker.taxonomy import CLASS_INDEX
from training.datasets.multiband import LabelledObjects

CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n histories, as the frozen encoders and the assembly see them."""

    light_curve: NDArray[np.float16]
    """(n, 512) embedding, zero where there is none."""
    values: NDArray[np.float64]
    """(n, MODEL_FEATURES) raw values, NaN where unknown; the coordinates are not filled in."""
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    present: NDArray[np.bool_]
    """(n,) whether there is a light curve."""
    detections: NDArray[np.int32]
    event: NDArray[np.float32]
    """(n, EVENT_FEATURES): ``broker.assemble.event``."""
    label: NDArray[np.int64]
    """(n,) position in CLASSES."""
    star: NDArray[np.object_]
    """(n,) which star each history is of: folds are made of stars."""
    kind: NDArray[np.object_]
    """(n,) the set that it comes from."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Examples:
        """Some of the histories."""
        return Examples(*(getattr(self, name)[rows] for name in self.__slots__))

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples:
        """One after the other."""
        return Examples(*(np.concatenate([getattr(p, name) for p in parts]) for name in Examples.__slots__))


class FrozenEncoder:
    """The light-curve encoder of a model repository."""

    def __init__(self, repository: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        path = repository / "light_curve_encoder" / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(path, options)

    def examples(self, states: Sequence[ObjectState], label: NDArray[np.int64], kind: str, title: str) -> Examples:
        """Assemble and encode objects; their names are the stars."""
        parts = []
        starts = range(0, len(states), CHUNK)
        for first in track(starts, title, disable=len(starts) < 4):
            chunk = states[first : first + CHUNK]
            points = usable_points(barycentric_light_curves(chunk))
            inputs = assemble_points(points)
            embedding = np.zeros((len(chunk), 512), np.float16)
            rows = inputs.present
            if rows.any():
                feed = {
                    "points": inputs.points[rows], "points_mask": inputs.points_mask[rows],
                    "folded": inputs.folded[rows], "features": inputs.features[rows],
                }  # fmt: skip
                embedding[rows] = self._session.run(["embedding"], feed)[0]
            values = raw_values([s.metadata for s in chunk], history_features(points))
            parts.append(
                Examples(
                    embedding, values, np.array([s.ra for s in chunk]), np.array([s.dec for s in chunk]),
                    inputs.present, inputs.detections, inputs.event, label[first : first + CHUNK],
                    np.array([s.object_id for s in chunk], object), np.full(len(chunk), kind, object),
                )
            )  # fmt: skip
        return Examples.join(parts)


def first_n(curve: LightCurve, rng: np.random.Generator, least: int = 2, most: int = 300) -> LightCurve:
    """The light curve up to its n-th detection, n even in its logarithm."""
    n = int(np.exp(rng.uniform(np.log(least), np.log(max(min(most, len(curve)), least + 1)))))
    return first_detections(curve, n)


def random_n(curve: LightCurve, rng: np.random.Generator, least: int = 4, most: int = 300) -> LightCurve:
    """As many points, wherever they are."""
    n = min(int(np.exp(rng.uniform(np.log(least), np.log(max(min(most, len(curve)), least + 1))))), len(curve))
    return curve.take(np.sort(rng.permutation(len(curve))[:n]))


Cut = Callable[[LightCurve, np.random.Generator], LightCurve]


def cut_versions(objects: LabelledObjects, cuts: Sequence[Cut], seed: int) -> list[LabelledObjects]:
    """The objects with each of the cuts applied to their light curves."""
    versions = []
    for number, cut in enumerate(cuts):
        curves = [
            cut(s.light_curve, np.random.default_rng([seed, number, row])) if len(s.light_curve) > 2 else s.light_curve
            for row, s in enumerate(objects.states)
        ]
        versions.append(objects.with_light_curves(curves))
    return versions


def class_indices(label: NDArray[np.object_]) -> NDArray[np.int64]:
    """(n,) positions in CLASSES, -1 for others."""
    return np.array([CLASS_INDEX.get(name, -1) if name else -1 for name in label], np.int64)


def set_of(kind: NDArray[np.object_]) -> NDArray[np.object_]:
    """(n,) the set of each example by its kind, such as ``elasticc``."""
    return np.array([name.split("/")[0].split(":")[0] for name in kind], object)
