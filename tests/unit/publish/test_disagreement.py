"""When the model contradicts a catalogue."""

from __future__ import annotations

import pytest

from broker.publish.disagreement import compare
from broker.records import KnownObject
from broker.taxonomy import CLASS_NAMES, PARENTS

RRAB_FOR_CERTAIN = {"RRAB": 0.97, "RRC": 0.02, "EW": 0.01}


def test_a_leading_class_of_another_parent_than_the_leading_one_contradicts_no_type_of_that() -> None:
    """ROT leads, yet EA and EB together have more: of a star that is called EW nothing is known for certain."""
    all_of = dict.fromkeys(CLASS_NAMES, 0.0) | {"ROT": 0.375, "EA": 0.3125, "EB": 0.3125}
    parents = {name: sum(all_of[c] for c in classes) for name, classes in PARENTS.items()}
    (found,) = compare([KnownObject("vsx", "V1", "EW", 0.5, 0.1)], all_of, parents, ("ROT", "EA", "EB"), 0.25)
    assert found.disagrees is None


@pytest.mark.parametrize(
    ("probabilities", "of_set", "text", "expected"),
    [
        (RRAB_FOR_CERTAIN, ("RRAB",), "EW", "parent"),
        (RRAB_FOR_CERTAIN, ("RRAB",), "EW|ESD", "parent"),
        (RRAB_FOR_CERTAIN, ("RRAB",), "EC|RRC|ESD", "class"),
        (RRAB_FOR_CERTAIN, ("RRAB",), "EW|RRAB", None),
        (RRAB_FOR_CERTAIN, ("RRAB",), "RRC", "class"),
        (RRAB_FOR_CERTAIN, ("RRAB",), "RR", None),
        (RRAB_FOR_CERTAIN, ("RRAB",), "RRAB/BL", None),
        # Of the catalogue not certain, none of our classes, or nothing.
        (RRAB_FOR_CERTAIN, ("RRAB",), "EW:", None),
        (RRAB_FOR_CERTAIN, ("RRAB",), "DCEP", None),
        (RRAB_FOR_CERTAIN, ("RRAB",), "EA+HB", None),
        (RRAB_FOR_CERTAIN, ("RRAB",), "", None),
        # Of the model not certain: a class of the type is in the set, or the answer is below the probability.
        (RRAB_FOR_CERTAIN, ("RRAB", "EW"), "EW", None),
        ({"RRAB": 0.94, "EW": 0.06}, ("RRAB",), "EW", None),
        # The parent is certain, the class is not.
        ({"RRAB": 0.6, "RRC": 0.38, "EW": 0.02}, ("RRAB", "RRC"), "EW", "parent"),
        ({"EA": 0.6, "EB": 0.38, "EW": 0.02}, ("EA", "EB"), "EW", None),
        # Exactly as certain as it has to be, of the parent and of the class.
        ({"RRAB": 0.95, "EW": 0.05}, ("RRAB",), "EW", "parent"),
        ({"RRAB": 0.95, "RRC": 0.05}, ("RRAB",), "RRC", "class"),
    ],
)
def test_verdict(probabilities: dict[str, float], of_set: tuple[str, ...], text: str, expected: str | None) -> None:
    all_of = dict.fromkeys(CLASS_NAMES, 0.0) | probabilities
    parents = {name: sum(all_of[c] for c in classes) for name, classes in PARENTS.items()}
    (found,) = compare([KnownObject("vsx", "V1", text, 0.5, 0.1)], all_of, parents, of_set, 0.95)
    assert found.disagrees == expected
    assert (found.name, found.type, found.period) == ("V1", text, 0.5)
