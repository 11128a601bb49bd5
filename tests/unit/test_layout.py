"""What a reader may expect of any module: that it is short enough to be read at once, or says why it is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400


def too_long(text: str) -> bool:
    """Whether a module has more than MOST_LINES without a reason, which its docstring begins with these words."""
    return len(text.splitlines()) > MOST_LINES and f"over {MOST_LINES} lines" not in " ".join(
        (ast.get_docstring(ast.parse(text)) or "").split()
    )


def test_modules_are_short_or_say_why_not() -> None:
    modules = [path for folder in ("broker", "training", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert ROOT / "broker" / "pipeline.py" in modules
    assert [str(path.relative_to(ROOT)) for path in modules if too_long(path.read_text())] == []


@pytest.mark.parametrize(
    ("first", "lines", "expected"),
    [
        ('"""Reads."""', 400, False),
        ('"""Reads."""', 401, True),
        ('"""Reads; over 400 lines, as the compiler wants one file."""', 401, False),
    ],
)
def test_which_modules_are_too_long(first: str, lines: int, expected: bool) -> None:
    assert too_long("\n".join([first, *["pass"] * (lines - 1)])) is expected
