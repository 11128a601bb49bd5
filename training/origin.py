"""What kept files were made from, as checksums: data, values in memory and code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from broker.models.build import checksum

_ROOT: Final = Path(__file__).resolve().parents[1]


def digest_of(value: Any) -> str:
    """SHA-256 of all that dataclasses, tuples, lists and arrays hold, as hexadecimal digits."""
    digest = hashlib.sha256()
    left: list[Any] = [value]
    while left:
        value = left.pop()
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str} {value.shape} ".encode() + value.tobytes())
        elif is_dataclass(value):
            digest.update(f"{type(value).__name__} ".encode())
            left += [getattr(value, one.name) for one in fields(value)]
        elif isinstance(value, tuple | list):
            digest.update(f"{len(value)} ".encode())
            left += value
        else:
            digest.update(f"{value!r} ".encode())
    return digest.hexdigest()


def code_checksums(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file of modules and packages, which are named by their path from the project's folder."""
    paths = [_ROOT / name for name in names]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return {file.relative_to(_ROOT).as_posix(): checksum(file) for file in files}


def origin_of_parts(parts: Mapping[str, str]) -> str:
    """SHA-256 of named checksums, in any order, as hexadecimal digits."""
    return hashlib.sha256("\n".join(f"{name} {value}" for name, value in sorted(parts.items())).encode()).hexdigest()
