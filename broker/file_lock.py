"""One process at a time, where several share a file or folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process is in here for the same file or folder, which is not changed.

    The lock is the kernel's (flock), and ends with the process however that ends. Raises OSError where ``path`` cannot
    be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
