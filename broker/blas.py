"""BLAS on one thread: a worker in all that it does, and the search of neighbours wherever it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import numpy as np  # noqa: F401 - whose BLAS the controller has to find
from threadpoolctl import ThreadpoolController

_BLAS: Final = ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it NumPy's matrix products, of all threads of the process, run on the thread that calls them.

    A batch's matrices are small, and OpenBLAS's threads spin while they wait for the next product: of a worker's CPU
    time they took a tenth (`benchmarks/stream.py`), from a core that another worker needs.
    """
    limited: AbstractContextManager[object] = _BLAS.limit(limits=1, user_api="blas")
    return limited
