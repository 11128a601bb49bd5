"""The worked examples as Jupyter notebooks: ``python -m deploy.site.notebook`` writes them after docs/examples.md.

One for each section, with what comes before it in the document that it needs. They are kept in the repository, without
outputs, for readers who do not build the site; tests/integration/test_documents.py runs the document's blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "docs" / "examples.md"
FOLDER: Final = ROOT / "docs" / "notebooks"
STARS: Final = "Stars to try it on"
"""The section with functions that others need."""
SECTIONS: Final = {
    "similar-objects": ("Similar objects",),
    "wrong-labels": (STARS, "Wrong labels"),
    "outliers": (STARS, "Outliers"),
    "subclasses": (STARS, "Subclasses"),
}
"""Sections of the document by notebook."""
_INTRODUCTION: Final = """# {title}

A notebook for Jupyter, to be started in the folder of `demo.toml`, beside the line of the [first steps](../tutorial.md)
(`make demo DEMO="--web --keep demo.toml"` in another terminal). `pip install '.[web]' matplotlib pandas jupyter` has
all that is imported. It is a section of the [worked examples](../examples.md)."""
_NO_BARS: Final = "%env TERM=dumb"
"""A notebook would keep each state of a progress bar."""
_BLOCK: Final = re.compile(r"^```(python|bash)\n(.*?)\n```$", re.M | re.S)
_LINK: Final = re.compile(r"\]\((?![a-z]+:|#)")
_SPLIT: Final = re.compile(r"\n(?=## )")


def notebook(text: str, sections: Sequence[str]) -> dict[str, Any]:
    """Sections of a document in Markdown as a notebook (nbformat 4.5), the last of which gives it the title.

    Blocks of Python and of the shell are cells of code; those before the first section are in each notebook.
    """
    head, *parts = _SPLIT.split(text)
    by_title = {part.partition("\n")[0].removeprefix("## "): part for part in parts}
    cells = [("markdown", _INTRODUCTION.format(title=sections[-1]))]
    cells += [("code", _NO_BARS), *(cell for cell in _cells(head) if cell[0] == "code")]
    for title in sections:
        part = by_title[title]
        cells += _cells(part if title != sections[-1] else part.partition("\n")[2])
    return {
        "cells": [_cell(number, kind, source) for number, (kind, source) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def notebooks(text: str) -> dict[Path, str]:
    """The text of each notebook, by its file."""
    return {FOLDER / f"{name}.ipynb": as_text(notebook(text, sections)) for name, sections in SECTIONS.items()}


def _cells(text: str) -> list[tuple[str, str]]:
    """Kind and source of each cell."""
    cells: list[tuple[str, str]] = []
    end = 0
    for found in _BLOCK.finditer(text):
        cells += _prose(text[end : found.start()])
        cells.append(("code", found[2] if found[1] == "python" else _of_shell(found[2])))
        end = found.end()
    return cells + _prose(text[end:])


def as_text(made: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _prose(text: str) -> list[tuple[str, str]]:
    """A cell of text, with links as they are from the notebook's folder; none of nothing."""
    return [("markdown", _LINK.sub("](../", text.strip()))] if text.strip() else []


def _of_shell(text: str) -> str:
    """Commands as IPython has them: an ``export`` is for all cells that follow."""
    commands = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return "\n".join(f"%env {c.removeprefix('export ')}" if c.startswith("export ") else f"!{c}" for c in commands)


def _cell(number: int, kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, written in notebooks(SOURCE.read_text()).items():
        file.write_text(written)
