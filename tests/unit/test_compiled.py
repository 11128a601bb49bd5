from __future__ import annotations

from typing import Any

import pytest
from numba import types

from broker import compiled


def double(number: int) -> int:
    return 2 * number


def test_without_a_place_for_numbas_cache_it_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it, asked = compiled.njit, []

    def njit(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(*arguments, **options)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(double, types.int64(types.int64))(21) == 42
    assert asked == [True, False]
