"""Waiting for what happens in its own time, with a limit that is far away: no test depends on how fast a machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 300.0, pause: float = 0.05) -> None:
    """Until a condition holds, which is asked for every ``pause`` seconds; AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(pause)
