"""What the documents tell a reader to type: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LANGUAGES: Final = ("bash", "console", "python", "text", "toml", "yaml")
_FENCE: Final = re.compile(r"^( *)```(.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    document: str
    """Its path in the repository."""
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """The commands of a shell, one a line, without comments and prompts; what a console printed is left out."""
        text = self.text
        if self.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        found: list[str] = []
        begun = ""
        for line in text.replace("\\\n", " ").splitlines():
            command = _without_comment(f"{begun}\n{line}" if begun else line).strip()
            begun = ""
            try:
                words = shlex.split(command)
            except ValueError:  # a quote that ends on another line
                begun = command
                continue
            if words:
                found.append(command)
        assert not begun, f"{self.document}:{self.line}: a quote without an end"
        return found


def _without_comment(line: str) -> str:
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def documents() -> list[str]:
    """All that a reader is given, in the order in which somebody new reads them."""
    first = ["README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/examples.md"]
    return first + sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - set(first))


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, in its order."""
    lines = (ROOT / document).read_text().splitlines()
    start: int | None = None
    indent, language = "", ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, indent, language = number, fence[1], fence[2].strip()
        else:
            text = "\n".join(one.removeprefix(indent) for one in lines[start : number - 1])
            yield Block(document, start, language, text)
            start = None
    assert start is None, f"{document}:{start}: a block without an end"
