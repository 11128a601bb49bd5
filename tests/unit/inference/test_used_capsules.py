"""The lines that Triton's two Python models share: each file stands alone in Triton, so that both have them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARED = [
    (ROOT / path).read_text().partition("# A capsule that was consumed")[2]
    for path in ("model_repo/trifid/1/model.py", "deploy/local/triton/onnxruntime/model.py")
]


def test_both_models_have_the_same_lines() -> None:
    assert SHARED[0] == SHARED[1] != ""


def test_argument_types_that_another_package_sets_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As dill does, which PyTorch imports: each tensor was a TypeError."""
    given: list[Any] = []
    stub = SimpleNamespace(Tensor=SimpleNamespace(from_dlpack=lambda _, capsule: given.append(capsule)))
    scope: dict[str, Any] = {"ctypes": ctypes, "Any": Any, "pb_utils": stub}
    exec("#" + SHARED[0], scope)
    monkeypatch.setattr(ctypes.pythonapi.PyCapsule_SetName, "argtypes", (ctypes.py_object, ctypes.c_char_p))
    scope["_tensor"]("embedding", np.zeros(3, np.float32))
    assert '"used_dltensor"' in repr(given[0])
