"""Pauses before something is tried again."""

from __future__ import annotations

import random


def jittered(seconds: float) -> float:
    """A pause between half and one and a half of ``seconds``.

    So that those who were refused at the same moment do not come back at the same moment, as often as it takes.
    """
    return seconds * random.uniform(0.5, 1.5)
