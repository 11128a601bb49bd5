"""How much longer everything takes because the machine has other work to do."""

from __future__ import annotations

import time

_SAMPLE_S = 0.05


def slowness() -> float:
    """Wall time of a thread's work in units of its CPU time, now: 1 on a quiet machine, more on a busy one.

    A limit of time that is asserted is multiplied by it, so that it holds as it is where nothing else runs, and no test
    fails because of what runs beside it. What a test only waits for has a limit that is far away instead.
    """
    begun, work = time.monotonic(), time.thread_time()
    while time.thread_time() - work < _SAMPLE_S:
        pass
    return max(1.0, (time.monotonic() - begun) / _SAMPLE_S)
