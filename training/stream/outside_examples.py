"""Histories of objects that are none of the ten classes, and of Gaia's stars that are, as the frozen encoders see
them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.records import SOURCE_FEATURES
from training.datasets.multiband import LabelledObjects, load_packets
from training.datasets.outside import (
    elasticc_objects,
    gaia_stars,
    outside_of_archive,
    outside_of_ztf,
    unlabelled_packets,
)
from training.datasets.tables import load_objects
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
_VERSIONS = 5
"""Of each of its light curves: whole, two cuts; in several bands, whole and cut."""


def has_all_versions(stored: Examples) -> bool:
    """Whether these are what ``outside_examples`` makes, and not what an earlier release made."""
    kind = stored.kind.astype(str)
    numbers = {name.split("/")[1] for name in kind if name.startswith(f"{SEVERAL_BANDS_OF}:")}
    return len(numbers) == _VERSIONS and "css:RRd/0" in kind


def outside_examples(encoder: FrozenEncoder, data: Path) -> Examples:
    """Whole and cut; ``label`` is -1 for none of the ten, ``kind`` is ``<set>:<what it is>/<version>``.

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
        (elasticc_objects(data), (first_n,)),
    ]
    parts = []
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
