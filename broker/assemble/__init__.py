"""From the state of objects to the arrays the model takes; training imports the same functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker.assemble.harmonics import warm_up
from broker.assemble.history import history_features
from broker.assemble.inputs import ModelInputs
from broker.assemble.lightcurve import assemble_points, usable_points
from broker.assemble.metadata import assemble_metadata
from broker.assemble.spectrum import assemble_spectra
from broker.barycentre import barycentric_light_curves
from broker.records import ObjectState

__all__ = ["assemble", "warm_up"]


def assemble(states: Sequence[ObjectState]) -> ModelInputs:
    """Model inputs of a batch of objects, a row each, with a mask for each modality that is missing."""
    points = usable_points(barycentric_light_curves(states))
    return ModelInputs(
        light_curve=assemble_points(points),
        spectrum=assemble_spectra([s.spectrum for s in states]),
        metadata=assemble_metadata(
            [s.metadata for s in states],
            history_features(points),
            np.array([s.ra for s in states]),
            np.array([s.dec for s in states]),
        ),
    )
