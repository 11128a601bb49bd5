"""Which parts of the package may import which: dependencies go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import broker

ROOT = Path(broker.__file__).parent
IMPORTERS = {
    "broker.cli": {"cli"},
    "broker.web": {"cli", "web"},
    "broker.watch": {"cli", "web", "watch"},
    "training": set[str](),
}
"""Which packages and modules of ``broker`` may import it."""


def imported(path: Path) -> set[str]:
    """The modules that a module imports, wherever in it, as far as they are named in full."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("part", IMPORTERS)
def test_dependencies_go_one_way(part: str) -> None:
    importers = {
        path.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in ROOT.rglob("*.py")
        if any(name == part or name.startswith(f"{part}.") for name in imported(path))
    }
    assert importers <= IMPORTERS[part]
