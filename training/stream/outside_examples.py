"""Histories of objects that are none of the ten classes, and of Gaia's stars that are, as the frozen encoders see
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.multiband import LabelledObjects, load_packets
from training.datasets.outside import (
    elasticc_objects,
    gaia_stars,
    outside_of_archive,
    outside_of_ztf,
    unlabelled_packets,
)
from training.datasets.tables import load_objects
from training.stream.examples import Cut, Examples, FrozenEncoder, class_indices, cut_versions, first_n, random_n


def outside_examples(encoder: FrozenEncoder, data: Path) -> Examples:
    """Whole and cut; ``label`` is -1 for none of the ten, ``kind`` is ``<set>:<what it is>/<version>``.

    Packets of ZTF have short histories as they are, and are cut once.
    """
    labelled = frozenset(state.object_id for state in load_packets(data).states)
    cepheids, stars = gaia_stars(data)
    sets: list[tuple[LabelledObjects, tuple[Cut, ...]]] = [
        (outside_of_archive(load_objects(data)), (first_n, random_n)),
        (outside_of_ztf(data), (first_n, random_n, first_n, random_n)),
        (cepheids, (first_n, random_n)),
        (stars, (first_n, random_n)),
        (unlabelled_packets(data, labelled), (first_n,)),
        (elasticc_objects(data), (first_n,)),
    ]
    parts = []
    for objects, cuts in sets:
        for number, version in enumerate([objects, *cut_versions(objects, cuts, seed=2)]):
            examples = encoder.examples(version.states, class_indices(objects.label), "", objects.name)
            examples.kind[:] = [f"{objects.name}:{original}/{number}" for original in objects.original]
            parts.append(examples)
    return Examples.join(parts)


def source_of(kind: NDArray[np.object_]) -> NDArray[np.object_]:
    """(n,) what each outside example is, such as ``ztf_packets:moving``."""
    return np.array([name.split("/")[0] for name in kind], object)
