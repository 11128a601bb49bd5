"""Types of variability as VSX and the GCVS write them, in terms of our classes.

VSX: "Variability types" (https://www.aavso.org/vsx/index.php?view=about.vartypes); GCVS: Samus et al. 2017, Astronomy
Reports 61, 80. A type is one or more designations:

- ``EA/SD``: what follows a slash describes the star or system further, and does not change the kind of variability,
- ``RRAB/BL``, ``HADS(B)``, ``DCEP-FU``: modifiers (Blazhko effect, beating, mode),
- ``BY+UV``: both kinds of variability are seen, ``EW|EA``: one of them, undecided,
- ``RR:``: uncertain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from broker.taxonomy import CLASS_NAMES, PARENT_OF, PARENTS

_MEANINGS: Final[dict[str, str]] = {
    **{name: name for name in CLASS_NAMES},
    # Contact, semi-detached and detached as ASAS tells them by Fourier coefficients (Pojmanski 2002, AcA 52, 397).
    "E": "Eclipsing", "EC": "EW", "ESD": "EB", "ED": "EA",
    "RR": "RRLyrae", "RRD": "RRLyrae", "RRE": "RRLyrae", "ARRD": "RRLyrae",
    # SX Phoenicis stars pulsate as delta Scuti stars of the old disk and halo do, with small and large amplitudes.
    "SXPHE": "DeltaScuti", "DSCTC": "DSCT", "DSCTR": "DSCT",
    "MIRA": "M", "SRA": "SR", "SRB": "SR", "SRC": "SR", "SRS": "SR",
    "SRD": "LongPeriod", "LPV": "LongPeriod", "L": "LongPeriod", "LB": "LongPeriod", "LC": "LongPeriod",
    "OSARG": "LongPeriod",
    "ACV": "ROT", "ACVO": "ROT", "SXARI": "ROT", "BY": "ROT", "RS": "ROT", "FKCOM": "ROT", "SPOT": "ROT",
}  # fmt: skip
"""Our class, or parent, of what a designation says. Others are none of the ten."""
_MINOR: Final = frozenset({"UV", "UVN", "FLARE", "EP", "GDOR"})
"""What is too faint or too rare beside another kind of variability to decide the class of the light curve."""
_MODIFIERS: Final = re.compile(r"\([^)]*\)|-[A-Z0-9]+$|/.*$")


@dataclass(frozen=True, slots=True)
class KnownType:
    """What a catalogue's type says in our terms."""

    class_name: str | None
    """Our class, or the parent where the type says no more or leaves its classes open; None for any other."""
    classes: frozenset[str]
    """Our classes that agree with the type; those of all designations."""
    comparable: bool
    """Whether an answer outside ``classes`` contradicts the type: it is not marked uncertain, and all of its
    designations are among ours."""


@lru_cache(maxsize=8192)
def known_type(text: str) -> KnownType:
    """What a type says; of an empty or unknown one nothing."""
    plain = re.sub(r"\s", "", text).upper()
    # Minor kinds count only where they stand alone, and are none of ours then.
    found = [[_meaning(part) for part in one.split("+")] for one in plain.split("|")]
    alternatives = [[meaning for meaning in one if meaning != ""] or [None] for one in found]
    meanings = [meaning for one in alternatives for meaning in one]
    classes = frozenset(name for meaning in meanings if meaning for name in _leaves(meaning))
    # Of kinds that are seen together the first names the star.
    leading = {one[0] for one in alternatives}
    comparable = bool(classes) and not any(meaning is None for meaning in meanings) and not re.search(r"[:?]", plain)
    return KnownType(_common(leading) if classes else None, classes, comparable)


def _meaning(part: str) -> str | None:
    """Of one designation: a class, a parent, the empty text for what is minor, None for what is none of ours."""
    base = _MODIFIERS.sub("", part.strip(":?*")).strip(":?*")
    return "" if base in _MINOR else _MEANINGS.get(base)


def _leaves(name: str) -> frozenset[str]:
    return frozenset(PARENTS.get(name, (name,)))


def _common(names: set[str | None]) -> str | None:
    """The class or parent that all names are or belong to."""
    if len(names) == 1:
        return names.pop()
    parents = {PARENT_OF.get(name or "", name if name in PARENTS else None) for name in names}
    return parents.pop() if len(parents) == 1 else None
