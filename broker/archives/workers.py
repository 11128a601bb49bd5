"""Worker processes of a run, forked from one process that has loaded what all of them need.

LSDB takes two seconds of CPU to import, with all that it brings. Were each worker an interpreter of its own, each would
import it after the run had; so it is imported once for all workers, while the run imports it for itself.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing import forkserver
from typing import Final

ONE_THREAD: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
"""Environment of workers, of which there are as many as cores."""
METHOD: Final = "forkserver"
"""How Dask starts worker processes."""
_LOADED: Final = ["distributed", "broker.archives.sources"]
"""Nothing that starts threads of Python's or locks, which a fork would leave without their threads: no ONNX Runtime."""


def prepare() -> None:
    """Start the process that workers are forked from, and return while it loads; once in a process.

    Workers have the environment of now.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        multiprocessing.get_context(METHOD).set_forkserver_preload(_LOADED)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
