"""How much longer everything takes because the machine has other work to do."""

from __future__ import annotations

import threading
import time
from typing import Self

_SAMPLE_S = 0.02
_PAUSE_S = 0.2


class Stopwatch:
    """Seconds that something takes, with what other work on the machine adds to them divided out.

    Meanwhile a thread measures, again and again, how much wall time a little work of its own takes in units of its CPU
    time: 1 on a quiet machine, more on a busy one. So a limit that is asserted holds as it is where nothing else runs,
    and no test fails because of what runs beside it. What a test only waits for has a limit that is far away instead
    (tests/waiting.py).
    """

    def __init__(self) -> None:
        self.elapsed = self.seconds = 0.0
        """Known when the period is over: its wall time, and that divided by how busy the machine was in it."""
        self._wall = self._work = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="stopwatch")

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = time.monotonic() - self._begun
        self._over.set()
        self._thread.join()
        self.seconds = self.elapsed / max(1.0, self._wall / self._work)

    def _measure(self) -> None:
        while True:
            begun, work = time.monotonic(), time.thread_time()
            while time.thread_time() - work < _SAMPLE_S:
                pass
            self._work += time.thread_time() - work
            self._wall += time.monotonic() - begun
            if self._over.wait(_PAUSE_S):
                return
