"""Functions compiled to machine code by Numba, kept on disk where that can be; `assemble` and `avro` share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, signature: Any, fastmath: bool | set[str] = False) -> F:
    """``function`` for arguments of ``signature``, from Numba's cache on disk or compiled now.

    The cache (beside the sources, or in NUMBA_CACHE_DIR) is renewed when the function's file changes, and only then:
    whatever is compiled into the function must be defined in the same file.
    """
    try:
        return cast(F, njit(signature, nogil=True, cache=True, fastmath=fastmath)(function))
    except Exception:  # no place to write a cache to, as in a read-only container, or a damaged cache
        return cast(F, njit(signature, nogil=True, fastmath=fastmath)(function))
