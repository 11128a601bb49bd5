"""What somebody can answer about an object, as people write it."""

from __future__ import annotations

from typing import Final, Literal

from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_NAMES, OTHER, PARENTS

Kind = Literal["interesting", "boring", "class"]
ARTEFACT: Final = "Artefact"
LABELS: Final = (*CLASS_NAMES, *PARENTS, OTHER.name, ARTEFACT)
"""What an object may be said to be."""
FORMS: Final = "interesting, boring or class=RRAB"
MAX_NOTE: Final = 2000
"""Characters of a note."""


def parse(answer: str) -> tuple[Kind, str | None]:
    """Kind and class of ``interesting``, ``boring`` or ``class=RRAB``; raises ConfigurationError for others."""
    if answer == "interesting":
        return "interesting", None
    if answer == "boring":
        return "boring", None
    word, _, label = answer.partition("=")
    if word != "class":
        raise ConfigurationError(f"answer: {answer!r:.80} is none of {FORMS}")
    if label not in LABELS:
        raise ConfigurationError(f"answer: {label!r:.80} is none of {', '.join(LABELS)}")
    return "class", label


def written(kind: str, label: str | None) -> str:
    """The inverse of ``parse``."""
    return f"class={label}" if kind == "class" else kind


def teaches(kind: str, label: str | None) -> bool | None:
    """Whether an answer says that an object is interesting; None where it says nothing of it.

    A star of one of the ten classes, or an artefact, is nothing to look for among anomalies; ``Other`` may be.
    """
    if kind == "class":
        return None if label == OTHER.name else False
    return kind == "interesting"
