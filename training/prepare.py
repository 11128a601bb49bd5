"""Model inputs of all training objects, assembled once by the service's own code and kept on disk."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.records import LightCurve
from training.crops import crop, thin

VERSIONS = 5
"""Of each light curve in training: the whole one, two crops and two thinned ones."""
CHUNK = 128
_COLUMNS = ("points", "points_mask", "folded", "features", "present", "period", "detections")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedLightCurves:
    """Inputs of n objects in v versions: version 0 is the whole light curve, odd ones are crops, even ones thinned.

    Arrays as in ``LightCurveInputs`` with a leading version axis; ``points``, ``folded`` and ``features``
    are kept in half precision.
    """

    points: NDArray[np.float16]
    points_mask: NDArray[np.bool_]
    folded: NDArray[np.float16]
    features: NDArray[np.float16]
    present: NDArray[np.bool_]
    period: NDArray[np.float64]
    detections: NDArray[np.int32]


def _assemble_chunk(task: tuple[int, int, list[LightCurve]]) -> tuple[int, int, LightCurveInputs]:
    version, first, curves = task
    if version:
        # Seeded by position, so that the crops do not depend on how the work is divided.
        change = crop if version % 2 else thin
        curves = [change(c, np.random.default_rng([version, first + i])) for i, c in enumerate(curves)]
    return version, first, assemble_light_curves(curves)


def prepare_light_curves(
    curves: Sequence[LightCurve], versions: int, cache: Path, processes: int = 2
) -> PreparedLightCurves:
    """Assemble ``curves`` in ``versions`` versions, or read them from ``cache`` (a folder of .npy files)."""
    size = len(curves)
    # Other features, other arrays: a cache of an earlier release is not taken for this one's.
    features = hashlib.sha256(" ".join(LIGHT_CURVE_FEATURES).encode()).hexdigest()[:8]
    done = cache / f"done-{size}-{versions}-{features}"
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _assemble_all(curves, versions, cache, processes)
        done.touch()
    loaded = {name: np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS}
    return PreparedLightCurves(**loaded)


def _assemble_all(curves: Sequence[LightCurve], versions: int, cache: Path, processes: int) -> None:
    size = len(curves)

    def tasks() -> Iterator[tuple[int, int, list[LightCurve]]]:
        for version in range(versions):
            for first in range(0, size, CHUNK):
                yield version, first, list(curves[first : first + CHUNK])

    arrays: dict[str, np.memmap[Any, Any]] = {}
    count = versions * -(-size // CHUNK)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        results = pool.imap_unordered(_assemble_chunk, tasks(), chunksize=1)
        for version, first, inputs in track(results, "Assembling light curves", total=count):
            for name in _COLUMNS:
                part = getattr(inputs, name)
                if name not in arrays:
                    dtype = np.float16 if part.dtype == np.float32 else part.dtype
                    arrays[name] = np.lib.format.open_memmap(
                        cache / f"{name}.npy", "w+", dtype, (versions, size, *part.shape[1:])
                    )
                if part.dtype == np.float32:
                    part = np.clip(part, -6e4, 6e4)  # the range of half precision
                arrays[name][version, first : first + len(part)] = part
    for array in arrays.values():
        array.flush()
