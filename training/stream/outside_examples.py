"""Histories of objects that are none of the ten classes, and of Gaia's stars that are, as the frozen encoders see
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.records import SOURCE_FEATURES
from broker.taxonomy import CLASS_NAMES
from training.datasets.multiband import LabelledObjects, load_archive, load_packets, scored
from training.datasets.outside import (
    gaia_stars,
    outside_of_archive,
    outside_of_ztf,
    unlabelled_packets,
)
from training.datasets.tables import load_objects
from training.simulate.transients import KINDS, as_difference, simulated_events
from training.stream.examples import (
    CHUNK,
    Cut,
    Examples,
    FrozenEncoder,
    class_indices,
    cut_versions,
    first_n,
    random_n,
)
from training.stream.material import packet_colors
from training.streams import CEPHEID, Cadence, as_streamed, load_cadences

SEVERAL_BANDS_OF = "gaia"
"""The set whose light curves are shown in several bands, too. Catalina's, two thirds of them RRd stars, made something
else of EROS-2's RR Lyrae stars."""
_STARS_OF_CLASS, _DRAWS_OF_STARS = 100, 8
"""Of the archive's stars of each class and survey, as alerts, and how often each star is there."""


def outside_examples(encoder: FrozenEncoder, data: Path, trained: NDArray[np.object_]) -> Examples:
    """Whole and cut; ``label`` is -1 for none of the ten, ``kind`` is ``<set>:<what it is>/<version>``.

    ``trained`` are the names of the archive's stars that are trained on.

    Packets of ZTF have short histories as they are, and are cut once. Gaia's light curves of one band are also shown in
    several (``training.streams``): a Cepheid in several bands would else be one of ZTF's 29.
    """
    labelled = frozenset(state.object_id for state in load_packets(data).states)
    cepheids, stars = gaia_stars(data)
    cadences = load_cadences(data)
    sets: list[tuple[LabelledObjects, tuple[Cut, ...]]] = [
        (outside_of_archive(load_objects(data), data), (first_n, random_n)),
        (outside_of_ztf(data), (first_n, random_n, first_n, random_n)),
        (cepheids, (first_n, random_n)),
        (stars, (first_n, random_n)),
        (unlabelled_packets(data, labelled), (first_n,)),
    ]
    parts = _as_alerts(encoder, data, frozenset(trained), cadences)
    for objects, cuts in sets:
        versions = [objects, *cut_versions(objects, cuts, seed=2)]
        if objects.name == SEVERAL_BANDS_OF:
            several = in_several_bands(objects, cadences, seed=3)
            versions += [several, *cut_versions(several, (first_n,), seed=4)]
        for number, version in enumerate(versions):
            examples = encoder.examples(version.states, class_indices(objects.label), "", objects.name)
            examples.kind[:] = [f"{objects.name}:{original}/{number}" for original in objects.original]
            parts.append(examples)
    return Examples.join(parts)


def _as_alerts(
    encoder: FrozenEncoder, data: Path, trained: frozenset[object], cadences: Sequence[Cadence]
) -> list[Examples]:
    """Simulated events, and stars of the ten classes in the same way: difference photometry, some without a source."""
    parts = []
    events = simulated_events(cadences, seed=5)
    for kind in KINDS:
        states = [state for own, state in events if own == kind]
        outside = np.full(len(states), -1, np.int64)
        parts.append(encoder.examples(states, outside, f"simulated:{kind}/0", f"simulated {kind}"))
    for number, stars in enumerate(_stars(data, trained, cadences)):
        states, label = [], []
        for draw in range(_DRAWS_OF_STARS):
            rngs = (np.random.default_rng([6, number, draw, i]) for i in range(len(stars)))
            for state, own, rng in zip(stars.states, stars.label, rngs, strict=True):
                curve = as_difference(state.light_curve, rng)
                if curve is not None:
                    states.append(replace(state, light_curve=curve, metadata=None))
                    label.append(own)
        indices = class_indices(np.array(label, object))
        parts.append(encoder.examples(states, indices, f"difference:{stars.name}/0", f"{stars.name} as alerts"))
    return parts


def _stars(data: Path, trained: frozenset[object], cadences: Sequence[Cadence]) -> list[LabelledObjects]:
    """Of ZTF's data releases, Stripe 82 and, in several bands, the archive's that are ``trained`` on."""
    table = load_objects(data)
    rows: list[int] = []
    rng = np.random.default_rng(7)
    for survey in np.unique(table.survey):
        for name in CLASS_NAMES:
            own = [
                i
                for i in np.flatnonzero((table.survey == survey) & (table.label == name))
                if table.object_id[i] in trained
            ]
            rows += rng.permutation(own)[:_STARS_OF_CLASS].astype(int).tolist()
    none = np.full(len(rows), None, object)
    archive = LabelledObjects("archive", table.states(rows), table.label[rows], none, none)
    return [
        *(scored(load_archive(data, name)) for name in ("ztf_dr", "stripe82")),
        in_several_bands(archive, cadences, seed=8),
    ]


def in_several_bands(objects: LabelledObjects, cadences: Sequence[Cadence], seed: int) -> LabelledObjects:
    """The same with light curves as surveys of several bands would have them; all outside vary as Cepheids do."""
    curves = [state.light_curve for state in objects.states]
    result = []
    for first in range(0, len(curves), CHUNK):
        own = curves[first : first + CHUNK]
        whole = assemble_light_curves(own)
        quality = whole.features[:, LIGHT_CURVE_FEATURES.index("r2_period")]
        for i, curve in enumerate(own, start=first):
            metadata = objects.states[i].metadata
            bp_rp = np.nan if metadata is None else metadata.values[SOURCE_FEATURES.index("bp_rp")]
            g_r = packet_colors(np.array([bp_rp], np.float64))[0]
            result.append(
                as_streamed(
                    curve, objects.label[i] or CEPHEID, 1.0 / float(whole.period[i - first]), float(quality[i - first]),
                    cadences, np.random.default_rng([seed, i]), float(g_r[0]),
                )
            )  # fmt: skip
    return objects.with_light_curves(result)


def source_of(kind: NDArray[np.object_]) -> NDArray[np.object_]:
    """(n,) what each outside example is, such as ``ztf_packets:moving``."""
    return np.array([name.split("/")[0] for name in kind], object)
