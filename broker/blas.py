"""BLAS on one thread: `assemble` and `anomaly` share it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from threadpoolctl import ThreadpoolController

_BLAS: Final = ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it NumPy's matrix products run on the calling thread alone.

    A batch's matrices are small, and OpenBLAS's threads spin while they wait for the next product: of a worker's CPU
    time they took a tenth (`benchmarks/stream.py`), from a core that another worker needs.
    """
    limited: AbstractContextManager[object] = _BLAS.limit(limits=1, user_api="blas")
    return limited
