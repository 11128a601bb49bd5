"""Functions compiled to machine code by Numba, kept on disk where that can be; `assemble` and `avro` share it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba import njit

from broker.file_lock import locked

F = TypeVar("F", bound=Callable[..., Any])

_CACHE_VARIABLE: Final = "NUMBA_CACHE_DIR"


def compiled(function: F, signature: Any, fastmath: bool | set[str] = False) -> F:
    """``function`` for arguments of ``signature``, from Numba's cache on disk or compiled now.

    The cache (beside the sources, or in NUMBA_CACHE_DIR) is renewed when the function's file changes, and only then:
    whatever is compiled into the function must be defined in the same file. Where several processes want it at once,
    one compiles and the others wait: two might make different machine code, whose sums differ in the last bits.
    """
    _read_only_cache()
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(locked(Path(function.__code__.co_filename)))
        try:
            return cast(F, njit(signature, nogil=True, cache=True, fastmath=fastmath)(function))
        except Exception:  # no place to write a cache to, or a damaged cache
            return cast(F, njit(signature, nogil=True, fastmath=fastmath)(function))


@cache
def _read_only_cache() -> None:
    """Use a copy of a NUMBA_CACHE_DIR that this process may not write to, as the one of the container image.

    Numba does not even read a cache that it cannot write to, and would compile at each start. The copy (half a MB) is
    this process's own, in the folder for temporary files; where there is none, all is compiled.
    """
    given = os.environ.get(_CACHE_VARIABLE)
    if not given or not Path(given).is_dir() or os.access(given, os.W_OK):
        return
    try:
        copy = Path(tempfile.mkdtemp(prefix="trifid-numba-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        shutil.copytree(given, copy, dirs_exist_ok=True)
        for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
            folder.chmod(0o700)  # copytree took the original's permissions over
    except OSError:  # shutil.Error is one
        return
    os.environ[_CACHE_VARIABLE] = str(copy)
    numba.config.reload_config()  # type: ignore[no-untyped-call]
