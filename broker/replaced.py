"""Files that appear under their names when they are complete."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Replaced:
    """A context in which a file is written under another name beside ``path``; it is renamed where that went well.

    Folders above it are made; whoever reads ``path`` sees the old file or the new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")

    def __enter__(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)
