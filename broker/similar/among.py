"""Among which objects similar ones are looked for: conditions as people write them, as Redis's filter takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker import sky
from broker.errors import ConfigurationError
from broker.sky import unit_vector
from broker.taxonomy import NOT_CLASSIFIED, OUTPUT_NAMES, PARENTS

FORMS: Final = "class=RRAB, class=RRLyrae, survey=ztf, mag<18, probability>0.9, detections>50, cone=RA,DEC,ARCSEC"
MAX_RADIUS: Final = 36_000.0
"""Arcsec of a cone."""
_NUMBERS: Final = {"mag": "m", "probability": "p", "detections": "n"}
_CONDITION: Final = re.compile(r"(?P<name>[a-z]+)\s*(?P<sign>=|<|>)\s*(?P<value>.+)")
_SURVEY: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_CLASSES: Final = {name.lower(): (name,) for name in OUTPUT_NAMES if name != NOT_CLASSIFIED.name} | {
    name.lower(): tuple(classes) for name, classes in PARENTS.items()
}


@dataclass(frozen=True, slots=True)
class Among:
    """Conditions that all have to hold."""

    expressions: tuple[str, ...] = ()
    """In the language of ``VSIM ... FILTER``."""

    @property
    def filter(self) -> str | None:
        """All of them as one; None where there is none."""
        return " and ".join(self.expressions) or None


def among(conditions: Sequence[str]) -> Among:
    """Conditions in the FORMS, each a text, or several in one with spaces between; names in any case.

    Classes with ``|`` between are alternatives. Raises ConfigurationError, which says what is meant, for others.
    """
    return Among(tuple(_expression(one) for text in conditions for one in text.split()))


def _expression(text: str) -> str:
    found = _CONDITION.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"among: {text!r:.80} is none of {FORMS}")
    name, sign, value = found["name"], found["sign"], found["value"].strip()
    if name in _NUMBERS and sign in "<>":
        return f".{_NUMBERS[name]} {sign} {_number(name, value):.9g}"
    if name == "class" and sign == "=":
        return _classes(value)
    if name == "survey" and sign == "=" and _SURVEY.fullmatch(value):
        return f'.s == "{value.lower()}"'
    if name == "cone" and sign == "=":
        return _cone(value)
    raise ConfigurationError(f"among: {text!r:.80} is none of {FORMS}")


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"among: {name} {text!r:.40} is no number")
    return number


def _classes(text: str) -> str:
    names: list[str] = []
    for one in text.split("|"):
        if one.lower() not in _CLASSES:
            known = ", ".join([name for name in OUTPUT_NAMES if name != NOT_CLASSIFIED.name] + list(PARENTS))
            raise ConfigurationError(f"among: class {one!r:.40} is none of {known}")
        names += _CLASSES[one.lower()]
    listed = ", ".join(f'"{name}"' for name in dict.fromkeys(names))
    return f".c in [{listed}]"


def _cone(text: str) -> str:
    """Squared distances on the unit sphere: of an arcsecond no digit is lost, as of the cosine nearly all are."""
    parts = text.split(",")
    angles = [sky.angle(part, hours=hours) for part, hours in zip(parts, (True, False), strict=False)]
    radius = _number("radius", parts[2]) if len(parts) == 3 else math.nan
    ra, dec = angles if len(angles) == 2 else (None, None)
    if ra is None or dec is None or not (0 <= ra <= 360 and -90 <= dec <= 90 and 0 < radius <= MAX_RADIUS):
        raise ConfigurationError(
            f"among: cone={text:.60} is no RA,DEC,ARCSEC, as cone=10.5,-3.2,3600 (at most {MAX_RADIUS:g} arcsec)"
        )
    chord = 2.0 * math.sin(math.radians(radius / sky.ARCSEC) / 2.0)
    terms = [f"(.{axis} - ({value:.12f})) ** 2" for axis, value in zip("xyz", unit_vector(ra, dec), strict=True)]
    return f"({' + '.join(terms)}) <= {chord * chord:.18f}"
