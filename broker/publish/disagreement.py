"""Where the model contradicts a catalogue of known variable stars with confidence: a wrong label, or a wrong model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from broker.catalog.types import known_type
from broker.records import KnownObject
from broker.taxonomy import CLASS_INDEX, PARENT_OF, PARENTS

CONFIDENCE: Final = 0.95
"""Calibrated probability from which the model's answer counts against a catalogue's."""


def compare(
    known_as: Sequence[KnownObject],
    probabilities: Mapping[str, float],
    parents: Mapping[str, float],
    prediction_set: Sequence[str],
    confidence: float = CONFIDENCE,
) -> tuple[KnownObject, ...]:
    """The same stars with ``disagrees``, by the model's ``probabilities`` of classes and of ``parents``.

    The model disagrees with a type if no class that the type may stand for is in the prediction set, which leaves a
    true class out at the rate it is calibrated for, and if besides the leading parent, where it is another than the
    type's, else the leading class, has a probability of ``confidence`` or more: then all classes of the type together
    have at most the rest. Types that are uncertain (``RR:``) or not among our classes are not compared.
    """
    leading_class = max(probabilities, key=probabilities.__getitem__)
    leading_parent = max(parents, key=parents.__getitem__)

    def verdict(text: str) -> Literal["class", "parent"] | None:
        known = known_type(text)
        if not known.comparable or not known.classes.isdisjoint(prediction_set):
            return None
        if known.classes.isdisjoint(PARENTS[leading_parent]):
            return "parent" if parents[leading_parent] >= confidence else None
        same_parent = PARENT_OF[leading_class] == leading_parent and leading_class not in known.classes
        return "class" if same_parent and probabilities[leading_class] >= confidence else None

    return tuple(replace(known, disagrees=verdict(known.type)) for known in known_as)


def doubts(
    known_as: Sequence[tuple[KnownObject, ...]], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[str | None]]:
    """Of n objects 1 - the probability of the class that a catalogue names (n,), and who names it, for people.

    Of several catalogues the one that is doubted most; NaN and None where none names a class for certain. A type that
    stands for several classes has the sum of their ``probabilities`` (n, 10).
    """
    doubt = np.full(len(known_as), np.nan)
    found: list[str | None] = [None] * len(known_as)
    for row, stars in enumerate(known_as):
        for star in stars:
            known = known_type(star.type)
            if not known.comparable or not known.classes:
                continue
            value = 1.0 - float(probabilities[row, [CLASS_INDEX[name] for name in known.classes]].sum())
            if not doubt[row] >= value:  # NaN, too
                doubt[row], found[row] = value, f"{star.catalogue} says {star.type}"
    return doubt, found
