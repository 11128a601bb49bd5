"""A headless Chromium for tests: Debian's, or one that TRIFID_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> tuple[str, dict[str, str]] | None:
    """The browser's program and the variables it needs; None where there is none.

    One that was unpacked and not installed (``.ci/run``) has its libraries beside it.
    """
    given = os.environ.get("TRIFID_CHROMIUM")
    program = given or next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        return None
    root = next((p for p in Path(program).resolve().parents if p.name == "usr"), None)
    if root is None or root == Path("/usr"):
        return program, {}
    libraries = sorted({str(path.parent) for path in root.glob("lib/*-linux-gnu*/**/*.so*")})
    return program, {"LD_LIBRARY_PATH": ":".join(libraries)}


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium; skips the test where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium here (Debian's package chromium, or TRIFID_CHROMIUM)")
    program, variables = found
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], env={**os.environ, **variables}
        )
        yield chromium
        chromium.close()
