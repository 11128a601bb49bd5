"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.random_models import MODEL_REPO, build_random_repository

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


@pytest.fixture(scope="module", params=["random", "trained"])
def repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: one of random weights, then the trained one."""
    if request.param == "random":
        return build_random_repository(tmp_path_factory.mktemp("model_repo"))
    if not (MODEL_REPO / "manifest.json").exists():
        pytest.skip("model_repo holds no trained model (see training/export.py)")
    return MODEL_REPO
