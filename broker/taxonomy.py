"""What an object may be: AstroM3's ten classes of variable stars, their parents, and what is none of them.

The classes are those of arXiv 2411.08842 (Table 1), in the order the model uses. Parents are the groups in which the
AAVSO's VSX and the GCVS put them (https://vsx.aavso.org/index.php?view=about.vartypes; Samus et al. 2017, Astronomy
Reports 61, 80). Beside ours stand the numbers of ELAsTiCC's taxonomy, in which DESC's brokers report their
classifications (https://github.com/LSSTDESC/elasticc, taxonomy/taxonomy.ipynb, of 2024 November 18): it knows each
parent but no class below it, and rotational variables only as what is periodic and none of its own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class VariableClass:
    """One class: its position in the model's output, its short name and what it is."""

    class_id: int
    name: str
    description: str
    elasticc_id: int
    """``classId`` of the same, or of the least class that holds it, in ELAsTiCC's taxonomy."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A group of classes: where the class is not known, its parent often is."""

    name: str
    description: str
    classes: tuple[str, ...]
    elasticc_id: int


CLASSES: Final[tuple[VariableClass, ...]] = (
    VariableClass(0, "EW", "W Ursae Majoris contact binary", 2325),
    VariableClass(1, "SR", "semi-regular variable", 2326),
    VariableClass(2, "EA", "detached (Algol-type) eclipsing binary", 2325),
    VariableClass(3, "RRAB", "RR Lyrae, fundamental mode, asymmetric light curve", 2323),
    VariableClass(4, "EB", "beta Lyrae eclipsing binary", 2325),
    VariableClass(5, "ROT", "rotational (spotted) variable", 2321),
    VariableClass(6, "RRC", "RR Lyrae, first overtone", 2323),
    VariableClass(7, "HADS", "high-amplitude delta Scuti star", 2324),
    VariableClass(8, "M", "Mira variable", 2326),
    VariableClass(9, "DSCT", "delta Scuti star", 2324),
)

CLASS_NAMES: Final[tuple[str, ...]] = tuple(c.name for c in CLASSES)
CLASS_INDEX: Final[dict[str, int]] = {c.name: c.class_id for c in CLASSES}

NOT_CLASSIFIED: Final = VariableClass(len(CLASSES), "NotClassified", "not enough data to classify", 300)
OTHER: Final = VariableClass(
    len(CLASSES) + 1,
    "Other",
    "none of the ten: another variable star, a supernova, an active nucleus, an asteroid, no real source",
    100,  # Meta/Other: 2100, Variable/Other, would say that it is real and in the sky
)
OUTPUT_NAMES: Final[tuple[str, ...]] = (*CLASS_NAMES, OTHER.name, NOT_CLASSIFIED.name)
"""All that an annotation's most probable class may be."""

PARENT_CLASSES: Final[tuple[Parent, ...]] = (
    Parent("Eclipsing", "eclipsing binary", ("EA", "EB", "EW"), 2325),
    Parent("RRLyrae", "RR Lyrae star", ("RRAB", "RRC"), 2323),
    Parent("DeltaScuti", "delta Scuti star of any amplitude", ("HADS", "DSCT"), 2324),
    Parent("LongPeriod", "long-period variable", ("M", "SR"), 2326),
    Parent("Rotational", "rotational variable", ("ROT",), 2321),
)
PARENTS: Final[dict[str, tuple[str, ...]]] = {parent.name: parent.classes for parent in PARENT_CLASSES}
"""Names of the classes of each parent; each class has one parent."""
PARENT_OF: Final[dict[str, str]] = {name: parent for parent, names in PARENTS.items() for name in names}
ELASTICC_ID: Final[dict[str, int]] = {c.name: c.elasticc_id for c in (*CLASSES, NOT_CLASSIFIED, OTHER)} | {
    parent.name: parent.elasticc_id for parent in PARENT_CLASSES
}
"""ELAsTiCC's number by the name of a class or parent."""


def place_of_best(names: Sequence[str], probabilities: Sequence[float]) -> int:
    """Which of the classes of one answer is its class: Other wherever it is there, else the first most probable one.

    Other is there only where its probability reaches its threshold, which may be below the probability of a class.
    """
    return names.index(OTHER.name) if OTHER.name in names else probabilities.index(max(probabilities))
