"""Where the model contradicts a catalogue of known variable stars with confidence: a wrong label, or a wrong model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from broker.catalog.types import known_type
from broker.records import KnownObject
from broker.taxonomy import PARENT_OF, PARENTS

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
