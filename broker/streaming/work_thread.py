"""A thread that works while another one looks after Kafka."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

R = TypeVar("R")


class WorkThread:
    """Does one thing after the other, always in the same thread.

    That thread does not keep the process from ending: a call that never returns has to be left alone, which the
    executors of concurrent.futures do not.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._actions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="work", daemon=True)
        self._thread.start()

    def submit(self, action: Callable[[], R]) -> Future[R]:
        """Have something done after what was asked for before, with the context variables of whoever asks."""
        future: Future[R] = Future()
        context = copy_context()

        def act() -> None:
            try:
                result = context.run(action)
            except BaseException as error:  # for whoever asks for the result
                future.set_exception(error)
            else:
                future.set_result(result)

        self._actions.put(act)
        return future

    def end(self, seconds: float) -> bool:
        """End the thread after what it does; whether it has ended within ``seconds``."""
        self._actions.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (action := self._actions.get()) is not None:
            action()
