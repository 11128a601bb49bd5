"""The ten variable-star classes of AstroM3 (arXiv 2411.08842, Table 1), in the order the model uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class VariableClass:
    """One class: its position in the model's output, its short name and what it is."""

    class_id: int
    name: str
    description: str


CLASSES: Final[tuple[VariableClass, ...]] = (
    VariableClass(0, "EW", "W Ursae Majoris contact binary"),
    VariableClass(1, "SR", "semi-regular variable"),
    VariableClass(2, "EA", "detached (Algol-type) eclipsing binary"),
    VariableClass(3, "RRAB", "RR Lyrae, fundamental mode, asymmetric light curve"),
    VariableClass(4, "EB", "beta Lyrae eclipsing binary"),
    VariableClass(5, "ROT", "rotational (spotted) variable"),
    VariableClass(6, "RRC", "RR Lyrae, first overtone"),
    VariableClass(7, "HADS", "high-amplitude delta Scuti star"),
    VariableClass(8, "M", "Mira variable"),
    VariableClass(9, "DSCT", "delta Scuti star"),
)

CLASS_NAMES: Final[tuple[str, ...]] = tuple(c.name for c in CLASSES)
CLASS_INDEX: Final[dict[str, int]] = {c.name: c.class_id for c in CLASSES}

NOT_CLASSIFIED: Final = VariableClass(len(CLASSES), "NotClassified", "not enough data to classify")
