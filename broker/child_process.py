"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Have this process end as soon as the one that began it does, even if that is killed.

    For the initializer of a pool: its processes would finish what they are at, or wait for more for ever. Not by
    prctl(2), PR_SET_PDEATHSIG, which is about the thread that began the process, and there is none elsewhere than on
    Linux.
    """
    threading.Thread(target=_end_after_parent, name="parent", daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
