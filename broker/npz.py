"""Named arrays in one ``.npz`` file: how embeddings, calibrations and counts are kept in files and in Redis."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from broker.errors import ConfigurationError

_MIB: Final = 1 << 20
_MOST: Final = 1024 * _MIB
"""Bytes of the arrays of a file; 2 MB of zeros may be so many when they are packed."""


def to_npz(**arrays: ArrayLike) -> bytes:
    """The arrays as one compressed file."""
    out = io.BytesIO()
    columns: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(out, **columns)
    return out.getvalue()


def from_npz(
    data: bytes, names: Iterable[str] | None, refusal: str, advice: str = "", most: int = _MOST
) -> dict[str, NDArray[Any]]:
    """The arrays of ``names``, or all, from the bytes of a file, where they take ``most`` bytes.

    Raises ConfigurationError ``<refusal>: <error><advice>`` for anything else, which may come from anywhere: pickled
    objects are not read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:  # of which numpy reads no more than is told here
            if (size := sum(part.file_size for part in parts.infolist())) > most:
                raise ValueError(f"{size // _MIB:,} MiB when unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise ConfigurationError(f"{refusal}: {error!r}{advice}") from error
