"""A reference set made from the training embeddings and from what the stream has shown of the same model.

In each stratum of which the stream has enough, its objects join the reference embeddings, and *others* of its objects
replace the calibration: a new survey's cadence and noise are then no surprise. No object is in both, since those in the
set lie nearer to it than new ones do. Other strata stay as they are, with the calibration that they have
(``Scorer.base``). The embeddings must be of the base's model: it is checked where they are made.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibrating import calibration_of, distances_of
from broker.anomaly.reference_set import MIN_CALIBRATION, ReferenceSet, as_stored, digest
from broker.anomaly.shape import Shapes
from broker.anomaly.statistics import Objects
from broker.assemble.inputs import subset_codes
from broker.errors import ConfigurationError

EACH: Final = 60
"""Reference embeddings of a class, survey and stratum at most, as of the training stars."""
MOST: Final = 1500
"""Calibration stars of a survey and stratum at most, so that one survey does not speak for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """n embeddings of objects of the stream; an object may have several, of other modalities and lengths."""

    names: NDArray[np.str_]
    """(n,) ``survey:object id``."""
    class_names: NDArray[np.str_]
    """(n,) the class of the ten that each is taken for, by its whole history."""
    sure: NDArray[np.bool_]
    """(n,) whether that is sure enough for the reference embeddings; the others calibrate only."""
    objects: Objects

    @property
    def surveys(self) -> NDArray[np.str_]:
        """(n,)"""
        return np.array([name.partition(":")[0] for name in self.names.tolist()], np.str_)

    def take(self, rows: NDArray[np.intp]) -> Seen:
        """Some of them."""
        return Seen(self.names[rows], self.class_names[rows], self.sure[rows], self.objects.take(rows))


def rebuilt(base: ReferenceSet, seen: Seen, *, each: int = EACH, most: int = MOST) -> ReferenceSet:
    """``base``, the model's own set, with what the stream has shown.

    Half of the objects, by a hash of their names, may join the embeddings, the other half calibrates: what is made
    again of the same stream divides it in the same way. ``each`` and ``most`` are as EACH and MOST. Raises
    ConfigurationError where the stream has shown too little.
    """
    # A history that was cut may have as few usable points as another one of the same object.
    seen = seen.take(_first(np.arange(len(seen.names)), 1, seen.objects.strata(), seen.names))
    joins = np.array([bool(zlib.crc32(name.encode()) & 1) for name in seen.names.tolist()], np.bool_)
    strata, surveys = seen.objects.strata(), seen.surveys
    calibrates = _first(np.flatnonzero(~joins & (strata >= 0)), most, strata, surveys)
    numbers, counts = np.unique(strata[calibrates], return_counts=True)
    covered = numbers[counts >= MIN_CALIBRATION]
    if not len(covered):
        raise ConfigurationError(
            f"the stream has shown too little for a reference set: {counts.max(initial=0)} stars to calibrate the best "
            f"known stratum with, {MIN_CALIBRATION} are needed"
        )
    calibrates = calibrates[np.isin(strata[calibrates], covered)]
    may_join = np.flatnonzero(joins & seen.sure & np.isin(strata, covered))
    members = seen.take(_first(may_join, each, strata, surveys, seen.class_names))
    others = seen.take(calibrates).objects
    base_strata = base.calibration_strata()
    kept = ~np.isin(base_strata, covered)
    embeddings = np.concatenate([base.embeddings, as_stored(members.objects.embeddings)])
    codes, other_codes = (subset_codes(part.present).astype(np.uint8) for part in (members.objects, others))
    points, values = _counted(members.objects)
    other_points, other_values = _counted(others)
    made = replace(
        base,
        version=f"{base.version}.stream-{digest(embeddings.tobytes() + others.embeddings.tobytes())[:8]}",
        embeddings=embeddings,
        object_ids=np.concatenate([base.object_ids, members.names]),
        class_names=np.concatenate([base.class_names, members.class_names]),
        modalities=np.concatenate([base.modalities, codes]),
        detections=np.concatenate([base.detections, points]),
        values=np.concatenate([base.values, values]),
        calibration_distances=np.concatenate(
            [base.calibration_distances[kept], np.zeros(len(other_codes), np.float32)]
        ),
        calibration_modalities=np.concatenate([base.calibration_modalities[kept], other_codes]),
        calibration_detections=np.concatenate([base.calibration_detections[kept], other_points]),
        calibration_values=np.concatenate([base.calibration_values[kept], other_values]),
        scores=None,
        base=base,
    )
    # The calibration's columns are in the order given: only the embeddings' are sorted.
    distances = made.calibration_distances.copy()
    distances[kept.sum() :] = distances_of(made, others.embeddings, others.strata())
    made = replace(made, calibration_distances=distances)
    # Shapes stay those of the training stars; the stream's own stars calibrate their distances.
    shapes = Shapes.none() if base.scores is None else base.scores.shapes
    return replace(made, scores=calibration_of(made, others, shapes))


def _counted(objects: Objects) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Points and known values, 0 where the modality is absent."""
    light_curve, _, metadata = objects.present.T
    points = np.where(light_curve, objects.detections, 0).astype(np.int32)
    return points, np.where(metadata, objects.values, 0).astype(np.int32)


def _first(rows: NDArray[np.intp], most: int, *groups: NDArray[np.generic]) -> NDArray[np.intp]:
    """``most`` of ``rows`` in each group of those that have the same in each of ``groups`` (n,); the first ones."""
    if not len(rows):
        return rows
    codes = np.stack([np.unique(group[rows], return_inverse=True)[1] for group in groups])
    group = np.unique(codes, axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    chosen: NDArray[np.intp] = np.sort(rows[order[np.arange(len(order)) - starts < most]])
    return chosen
