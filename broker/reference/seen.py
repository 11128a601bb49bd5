"""Embeddings of objects of the stream as a reference set needs them: as they are, and as they were when younger."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.statistics import Objects
from broker.anomaly.strata import DETECTION_BINS
from broker.assemble import assemble
from broker.assemble.inputs import MODALITIES, ModelInputs
from broker.inference import Engine
from broker.lightcurves.histories import first_detections
from broker.publish.disagreement import doubts
from broker.records import LightCurve, ObjectState, PhotometryKind
from broker.reference.rebuild import Seen

_BATCH: Final = 256


def younger(name: str, curve: LightCurve) -> list[LightCurve]:
    """One history in each range of lengths that the light curve has outgrown: its first detections.

    How many is drawn evenly in the logarithm within the range, and is the same whenever it is asked.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    total = int(np.sum(curve.kind != PhotometryKind.LIMIT))
    found = []
    for low, high in pairwise(DETECTION_BINS):
        points = int(np.exp(rng.uniform(np.log(low), np.log(high))))
        if high <= total:
            found.append(first_detections(curve, points))
    return found


def seen_of(
    engine: Engine, names: Sequence[str], states: Sequence[ObjectState], class_names: Sequence[str],
    sure: Sequence[bool],
) -> Seen:  # fmt: skip
    """Embeddings of objects whose class is told by ``class_names`` (n,), as ``Seen`` has it with ``sure`` (n,).

    Of all their modalities, and of each by itself: whole and as ``younger``. Names are ``survey:object id``. Raises
    DependencyUnavailableError where the engine does.
    """
    rows: list[int] = []
    histories: list[ObjectState] = []
    for row, (name, state) in enumerate(zip(names, states, strict=True)):
        curves = younger(name, state.light_curve)
        rows += [row] * (1 + len(curves))
        histories += [state, *(replace(state, light_curve=curve) for curve in curves)]
    parts: list[Objects] = []
    of: list[NDArray[np.intp]] = []
    for first in range(0, len(histories), _BATCH):
        batch = histories[first : first + _BATCH]
        inputs = assemble(batch)
        several = np.flatnonzero(inputs.present.sum(axis=1) > 1)
        for which, index in [
            (inputs, np.arange(len(batch))),
            *((inputs.rows(several).only(name), several) for name in MODALITIES if len(several)),
        ]:
            objects, good = _embedded(engine, which, [batch[i] for i in index.tolist()])
            parts.append(objects)
            of.append(np.array(rows[first : first + _BATCH], np.intp)[index[good]])
    row_of = np.concatenate(of)
    return Seen(
        np.array(list(names), np.str_)[row_of],
        np.array(list(class_names), np.str_)[row_of],
        np.array(list(sure), np.bool_)[row_of],
        Objects.joined(parts),
    )


def _embedded(engine: Engine, inputs: ModelInputs, states: Sequence[ObjectState]) -> tuple[Objects, NDArray[np.intp]]:
    """The objects that have an embedding, and which of them these are."""
    found = engine.predict(inputs)
    doubt, _ = doubts([state.known_as for state in states], found.probabilities)
    objects = Objects.of(inputs, found.embeddings, found.by_modality, found.probabilities, doubt)
    good = np.flatnonzero(found.embeddings.any(axis=1) & found.probabilities.any(axis=1))
    return objects.take(good), good
