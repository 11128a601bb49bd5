"""What similar objects are looked for by: an object that is kept, a light curve or a spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from broker.lightcurves.objects import NamedLightCurve
from broker.pipeline import Pipeline
from broker.records import LightCurve, ObjectState, ObservedSpectrum
from broker.similar.among import Among
from broker.similar.answer import BY, Answer
from broker.similar.search import Similar
from broker.similar.sets import KINDS

Vectors = Mapping[str, NDArray[np.float32]]
"""Embeddings (d,) by kind, of those that there are."""


def kind_of(by: str) -> str:
    """One of KINDS from one of BY; raises ConfigurationError for others."""
    if by not in BY:
        raise ConfigurationError(f"by: {by!r:.40} is none of {', '.join(BY)}")
    return by.replace("-", "_")


def vectors_of(pipeline: Pipeline, states: Sequence[ObjectState]) -> list[Vectors]:
    """The embeddings of each object, by the pipeline's model."""
    if not states:
        return []
    fused, by_modality = pipeline.embed(states)
    found: list[Vectors] = []
    for row in range(len(states)):
        rows = {KINDS[0]: fused[row]}
        if by_modality is not None:
            rows |= dict(zip(MODALITIES, by_modality[row], strict=True))
        found.append({kind: vector for kind, vector in rows.items() if vector.any()})
    return found


def state_of_curve(curve: NamedLightCurve) -> ObjectState:
    """A light curve of a table as all that is known of an object."""
    return ObjectState(curve.name, curve.ra, curve.dec, curve.light_curve, time_system=curve.time_system)


def state_of_spectrum(observed: ObservedSpectrum) -> ObjectState:
    """A spectrum as all that is known of an object."""
    return ObjectState(observed.spectrum_id, observed.ra, observed.dec, LightCurve.empty(), spectrum=observed.spectrum)


def like_object(similar: Similar, name: tuple[str, str], by: str, of: str | None, among: Among, limit: int) -> Answer:
    """Objects like one that is kept: its embedding ``of`` one modality among all objects' ``by`` another.

    ``of`` is ``by`` where it is None. Raises UnknownToSetsError where the object has no such embedding.
    """
    vector = similar.translated(similar.vector_of(name, kind_of(of or by)), kind_of(of or by), kind_of(by))
    return similar.search(vector, kind_of(by), limit, among, without=name)


def like_vectors(similar: Similar, vectors: Vectors, by: str, of: str | None, among: Among, limit: int) -> Answer:
    """Objects like something from elsewhere: as ``like_object``.

    Where ``of`` is None and there is none of ``by``, its only modality is taken: so a spectrum finds light curves.
    Raises ConfigurationError where there is no such embedding, or it is not clear which.
    """
    there = [kind for kind in MODALITIES if kind in vectors]
    kind = kind_of(of or by)
    if of is None and kind not in vectors and len(there) == 1:
        kind = there[0]
    if kind not in vectors:
        has = ", ".join(one.replace("_", "-") for one in there) or "nothing that can be used (5 points, or a spectrum)"
        raise ConfigurationError(f"there is no {kind.replace('_', '-')} to look with, only: {has}")
    return similar.search(similar.translated(vectors[kind], kind, kind_of(by)), kind_of(by), limit, among)
