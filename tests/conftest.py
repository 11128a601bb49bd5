"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a failure seen once is seen again.
settings.register_profile("trifid", derandomize=True, deadline=None)
settings.load_profile("trifid")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real alerts and data beside the checkout; the test is skipped where it is absent."""
    path = Path(os.environ.get("TRIFID_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no real alerts and data: {path} does not exist (set TRIFID_SHARED)")
    return path
