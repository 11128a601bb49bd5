"""From the state of objects to the arrays the model takes; training imports the same functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker import barycentre
from broker.assemble import chromatic, harmonics, passes
from broker.assemble.history import history_features
from broker.assemble.inputs import LightCurveInputs, ModelInputs
from broker.assemble.kept import KeptSearches, PeriodSearches
from broker.assemble.lightcurve import UsablePoints, assemble_points, assemble_with_kept, usable_points
from broker.assemble.metadata import assemble_metadata
from broker.assemble.spectrum import assemble_spectra
from broker.barycentre import barycentric_light_curves
from broker.records import ObjectState

__all__ = ["ModelInputs", "assemble", "assemble_with_searches", "warm_up"]


def warm_up() -> None:
    """Compile what a light curve needs now and not at the first one."""
    harmonics.warm_up()
    chromatic.warm_up()
    passes.warm_up()
    barycentre.warm_up()


def assemble(states: Sequence[ObjectState]) -> ModelInputs:
    """Model inputs of a batch of objects, a row each, with a mask for each modality that is missing."""
    points = usable_points(barycentric_light_curves(states))
    return _inputs(states, points, assemble_points(points))


def assemble_with_searches(states: Sequence[ObjectState], growth: float) -> tuple[ModelInputs, PeriodSearches]:
    """As ``assemble``, with full period searches only where the kept result of an earlier one is not enough.

    That is where a light curve has grown by the fraction ``growth`` since, among others (``broker.assemble.kept``).
    """
    points = usable_points(barycentric_light_curves(states))
    light_curve, searches = assemble_with_kept(points, KeptSearches.of(states, growth))
    return _inputs(states, points, light_curve), searches


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
