"""From the state of objects to the arrays the model takes; training imports the same functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from broker import barycentre
from broker.assemble import chromatic, event_passes, harmonics, passes, point_passes
from broker.assemble.history import history_features
from broker.assemble.inputs import LightCurveInputs, ModelInputs
from broker.assemble.kept import KeptSearches, Reason
from broker.assemble.lightcurve import assemble_points, assemble_with_kept
from broker.assemble.metadata import assemble_metadata
from broker.assemble.spectrum import assemble_spectra
from broker.assemble.usable import UsablePoints, usable_points
from broker.barycentre import barycentric_light_curves
from broker.records import KeptSearch, ObjectState

__all__ = ["ModelInputs", "assemble", "assemble_with_searches", "warm_up"]

_PIECE: Final = 50_000
"""Points that are assembled at once: their columns (0.4 MB each) stay in a core's cache, those of a batch do not."""


@dataclass(frozen=True, slots=True)
class FoundSearches:
    """Of each object why its period was searched, and what is to be kept of it (see ``PeriodSearches``)."""

    reason: list[Reason | None]
    kept: list[KeptSearch | None]


def warm_up() -> None:
    """Compile what a light curve needs now and not at the first one."""
    harmonics.warm_up()
    chromatic.warm_up()
    passes.warm_up()
    point_passes.warm_up()
    event_passes.warm_up()
    barycentre.warm_up()


def assemble(states: Sequence[ObjectState]) -> ModelInputs:
    """Model inputs of a batch of objects, a row each, with a mask for each modality that is missing."""
    points = usable_points(barycentric_light_curves(states))
    return _inputs(states, points, assemble_points(points))


def assemble_with_searches(states: Sequence[ObjectState], growth: float) -> tuple[ModelInputs, FoundSearches]:
    """As ``assemble``, with full period searches only where the kept result of an earlier one is not enough.

    That is where a light curve has grown by the fraction ``growth`` since, among others (``broker.assemble.kept``).
    """
    inputs: list[ModelInputs] = []
    searches = FoundSearches([], [])
    for some in _pieces(states):
        points = usable_points(barycentric_light_curves(some))
        light_curve, found = assemble_with_kept(points, KeptSearches.of(some, growth))
        inputs.append(_inputs(some, points, light_curve))
        searches.reason.extend(found.reason)
        searches.kept.extend(found.kept)
    return ModelInputs.joined(inputs), searches


def _pieces(states: Sequence[ObjectState]) -> Iterator[Sequence[ObjectState]]:
    """The objects in as many pieces as hold about _PIECE points each; one at least."""
    points = np.cumsum([len(state.light_curve) for state in states])
    total = int(points[-1]) if len(points) else 0
    pieces = max(1, round(total / _PIECE))
    edges = np.flatnonzero(np.diff((points - 1) * pieces // max(total, 1))) + 1
    for first, last in pairwise([0, *edges.tolist(), len(states)]):
        yield states[first:last]


def _inputs(states: Sequence[ObjectState], points: UsablePoints, light_curve: LightCurveInputs) -> ModelInputs:
    return ModelInputs(
        light_curve=light_curve,
        spectrum=assemble_spectra([s.spectrum for s in states]),
        metadata=assemble_metadata(
            [s.metadata for s in states],
            history_features(points),
            np.array([s.ra for s in states]),
            np.array([s.dec for s in states]),
        ),
    )
