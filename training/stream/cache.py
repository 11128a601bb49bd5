"""What is prepared for a training of the head, kept on disk together with what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.models.build import checksum, checksums
from broker.replaced import Replaced
from training.origin import code_checksums, origin_of_parts
from training.stream.examples import Examples

CODE: Final = (
    "broker/assemble", "broker/bands.py", "broker/barycentre.py", "broker/lightcurves", "broker/photometry.py",
    "broker/records.py", "broker/sources.py", "broker/state", "broker/surveys", "broker/tables", "broker/times.py",
    "training/crops.py", "training/data.py", "training/datasets", "training/simulate", "training/streams.py",
    "training/stream/examples.py", "training/stream/material.py", "training/stream/outside_examples.py",
)  # fmt: skip
"""Modules and packages that histories, labels and simulated spectra are made by."""
_ALERTS: Final = ("ztf", "lsst")
"""Folders of ``alerts``, beside the data, that packets and epochs are taken from."""


def origin_of(repository: Path, data: Path) -> str:
    """SHA-256 of all that prepared histories depend on: ``data``, the encoders of ``repository``, and the CODE."""
    parts = {f"data/{name}": value for name, value in checksums(data).items()}
    for survey in _ALERTS:
        if (folder := data.parent / "alerts" / survey).is_dir():
            parts |= {f"alerts/{survey}/{name}": value for name, value in checksums(folder).items()}
    for model in ("light_curve_encoder", "spectrum_encoder"):
        parts[model] = checksum(repository / model / "1" / "model.onnx")
    return origin_of_parts(parts | code_checksums(CODE))


@dataclass(frozen=True, slots=True)
class Cache:
    """Files of one folder. One that does not say that it has this ``origin`` is made anew.

    That columns and sets of stars are the right ones is not enough: 2026.11.29.1 was trained on histories with two
    stars whose label VSX had come to dispute, and a column that a script had added.
    """

    folder: Path
    origin: str
    """That of ``origin_of``."""

    def examples(self, name: str, make: Callable[[], Examples]) -> Examples:
        """Those in the file ``name``, or what ``make`` gives, which is then there."""

        def columns() -> dict[str, NDArray[Any]]:
            made = make()
            found = {column: getattr(made, column) for column in Examples.__slots__}
            return {n: c.astype(np.str_) if c.dtype == object else c for n, c in found.items()}

        stored = self._arrays(name, columns)
        arrays = (stored[column] for column in Examples.__slots__)
        return Examples(*(c.astype(object) if c.dtype.kind == "U" else c for c in arrays))

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Likewise one array."""
        return self._arrays(name, lambda: {"array": make()})["array"]

    def _arrays(self, name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        path = self.folder / name
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                if "origin" in file.files and str(file["origin"]) == self.origin:
                    return {column: file[column] for column in file.files}
        arrays: dict[str, Any] = {**make(), "origin": np.array(self.origin)}
        with Replaced(path) as partial, partial.open("wb") as file:  # whole, or not there: it takes minutes to make
            np.savez(file, **arrays)
        return arrays
