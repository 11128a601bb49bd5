"""When messages of lists are due."""

from __future__ import annotations

import math

DAILY: float = 24.0


def next_message(now: float, every_hours: float, digest_hour: int) -> float:
    """MJD UTC of the next message after ``now``: daily ones at ``digest_hour`` UTC, others so many hours later."""
    if every_hours != DAILY:
        return now + every_hours / 24.0
    today = math.floor(now) + digest_hour / 24.0
    return today if today > now else today + 1.0


def next_attempt(now: float, attempts: int, first_s: float, longest_s: float) -> float:
    """MJD UTC of the attempt after so many that failed, each time twice as long after."""
    return now + min(first_s * 2.0 ** min(attempts - 1, 60), longest_s) / 86_400.0
