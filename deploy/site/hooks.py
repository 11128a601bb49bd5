"""Hooks of MkDocs: pages from the code, README and its like in the site, and Markdown as GitHub reads it.

The files under docs/ are written for GitHub, where links to code work. In the site, links to other pages go to these,
and a link to a file that is no page becomes the file's name.
"""

from __future__ import annotations

import posixpath
import re
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File

from deploy.site import reference

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
    "model_repo/EVALUATION.md": "reference/evaluation.md",
}
"""Files outside docs/ that are pages of the site, by their paths there."""
_LINK: Final = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^()\s]+)\)")
_FENCE: Final = re.compile(r"^ *```")
_ITEM: Final = re.compile(r"(?:[-*]|\d+\.) |\|")
"""A line that begins an item of a list, or a table."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    for source, place in COPIED.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, place, content=at(text, posixpath.dirname(source), place)))
    for place, text in reference.pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """What a page of docs/ holds, for Python-Markdown."""
    place = page.file.src_uri
    if page.file.generated_by is None:
        markdown = at(markdown, posixpath.dirname(f"docs/{place}"), place)
    return blank_lines(markdown)


def at(text: str, folder: str, place: str) -> str:
    """The text of a file in ``folder`` of the repository with the links that it needs as ``place`` of the site."""

    def moved(found: re.Match[str]) -> str:
        to, _, anchor = found["to"].partition("#")
        if ":" in to or not to:
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, to))
        if path in COPIED:
            target = COPIED[path]
        elif path.startswith("docs/") and (ROOT / path).is_file():
            target = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return found["text"] if path in found["text"] else f"{found['text']} (`{path}`)"
        else:
            return found[0]  # MkDocs says that it leads nowhere
        target = posixpath.relpath(target, posixpath.dirname(place) or ".")
        return f"{found['image']}[{found['text']}]({target}{'#' + anchor if anchor else ''})"

    # Whole paragraphs, since the text of a link may go over lines.
    parts = groupby(_lines(text), key=lambda line: line[1])
    joined = ((code, "\n".join(line for line, _ in part)) for code, part in parts)
    return "\n".join(part if code else _LINK.sub(moved, part) for code, part in joined)


def blank_lines(text: str) -> str:
    """A blank line before each list and table that follows a paragraph, which GitHub does without."""
    lines: list[str] = []
    listed = False
    for line, code in _lines(text):
        before = lines[-1] if lines else ""
        begins = not code and _ITEM.match(line) is not None
        if begins and before.strip() and not listed and not before.startswith("|"):
            lines.append("")
        listed = begins or (listed and (code or line.startswith(" ") or bool(line.strip() and before.strip())))
        lines.append(line)
    return "\n".join(lines)


def _lines(text: str) -> list[tuple[str, bool]]:
    """Lines, and whether each is code."""
    found, code = [], False
    for line in text.splitlines():
        fence = _FENCE.match(line) is not None
        found.append((line, code or fence))
        code ^= fence
    return found
