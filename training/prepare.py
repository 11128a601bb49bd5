"""Model inputs of all training objects, assembled once by the service's own code and kept on disk."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempprefix
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from broker.assemble.inputs import LightCurveInputs
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, MIN_POINTS, assemble_light_curves
from broker.child_process import end_with_parent
from broker.file_lock import locked
from broker.lightcurves.histories import first_detections
from broker.records import LightCurve
from training.crops import crop, shorten, thin
from training.origin import code_checksums, digest_of, origin_of_parts
from training.streams import Cadence, as_alerts, as_streamed, load_cadences

VERSIONS = 7
"""Of each light curve in training: the whole one, a crop, a thinned one, and what a stream would show of it: its first
points, and three in several bands, of which one is whole."""
CHUNK = 128
CODE = (
    "broker/assemble", "broker/bands.py", "broker/lightcurves/histories.py", "broker/photometry.py",
    "broker/records.py", "training/crops.py", "training/prepare.py", "training/streams.py",
)  # fmt: skip
"""Modules and packages that versions and inputs are made by."""
_ORIGIN = "origin"
"""File of the cache that says what its arrays were made from."""
_COLUMNS = ("points", "points_mask", "folded", "features", "present", "period", "detections")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedLightCurves:
    """Inputs of n objects in v versions: version 0 is the whole light curve, the others see ``_version``.

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


_PERIOD_QUALITY = LIGHT_CURVE_FEATURES.index("r2_period")


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    first: int
    """Row of the first of the objects."""
    curves: list[LightCurve]
    labels: list[str | None]
    versions: int
    cadences: list[Cadence]


def _assemble_chunk(task: _Task) -> tuple[int, list[LightCurveInputs]]:
    whole = assemble_light_curves(task.curves)
    found = [whole]
    for version in range(1, task.versions):
        changed = []
        for i, (curve, label) in enumerate(zip(task.curves, task.labels, strict=True)):
            # Seeded by position, so that the versions do not depend on how the work is divided.
            rng = np.random.default_rng([version, task.first + i])
            quality = float(whole.features[i, _PERIOD_QUALITY])
            changed.append(_version(version, curve, label, 1.0 / whole.period[i], quality, task.cadences, rng))
        found.append(assemble_light_curves(changed))
    return task.first, found


def _version(
    number: int,
    curve: LightCurve,
    label: str | None,
    frequency: float,
    quality: float,
    cadences: Sequence[Cadence],
    rng: np.random.Generator,
) -> LightCurve:
    """A version of a light curve whose best ``frequency`` (cycles/day) explains ``quality`` of its variance."""
    if len(curve) <= MIN_POINTS:
        return curve
    kind = (number - 1) % 6
    if kind == 0:
        return crop(curve, rng)
    if kind == 1:
        return thin(curve, rng)
    if kind >= 3:
        curve = as_streamed(curve, label, frequency, quality, cadences, rng)
    if kind == 3:
        return curve
    if kind >= 4 and rng.random() < 0.3:
        curve = as_alerts(curve, rng)
    if len(curve) <= MIN_POINTS:
        return curve
    points = int(np.exp(rng.uniform(np.log(MIN_POINTS), np.log(len(curve)))))
    if kind == 2 or rng.random() < 0.5:
        return first_detections(curve, points)
    return shorten(curve, points, rng)


def prepare_light_curves(
    curves: Sequence[LightCurve],
    labels: Sequence[str | None],
    versions: int,
    cache: Path,
    data: Path | None = None,
    processes: int = 2,
) -> PreparedLightCurves:
    """Assemble ``curves`` in ``versions`` versions, or read them from ``cache`` (a folder of .npy files).

    What is in ``cache`` is taken where it was made from the same light curves, labels, epochs and code, else made anew.
    ``labels`` are the class names of training stars, which decide how their amplitudes depend on wavelength; None for
    others. ``data`` is the folder with the surveys whose epochs are used, if any. Waits for another process that
    assembles into ``cache``, and deletes what one that was killed has left there.
    """
    cadences = load_cadences(data) if data else []
    made_from = {"values": digest_of([list(curves), list(labels), versions, cadences])}
    origin = origin_of_parts(made_from | code_checksums(CODE))
    if not _is_of(cache, origin):
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache):
            if not _is_of(cache, origin):  # another process may have made it meanwhile
                for left in sorted(cache.glob(f"{gettempprefix()}*")):
                    shutil.rmtree(left)
                with TemporaryDirectory(dir=cache) as partial:
                    _assemble_all(curves, labels, versions, Path(partial), cadences, processes)
                    kept = cache / _ORIGIN
                    kept.unlink(missing_ok=True)  # until all arrays are there, the cache is none
                    for name in _COLUMNS:
                        # Another process may have mapped the file that was there: it keeps that one.
                        (Path(partial) / f"{name}.npy").replace(cache / f"{name}.npy")
                kept.write_text(origin)
    loaded = {name: np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS}
    return PreparedLightCurves(**loaded)


def _is_of(cache: Path, origin: str) -> bool:
    """Whether the arrays in ``cache`` were made from what ``origin`` says."""
    kept = cache / _ORIGIN
    return kept.exists() and kept.read_text() == origin


def _assemble_all(
    curves: Sequence[LightCurve],
    labels: Sequence[str | None],
    versions: int,
    folder: Path,
    cadences: list[Cadence],
    processes: int,
) -> None:
    size = len(curves)

    def tasks() -> Iterator[_Task]:
        for first in range(0, size, CHUNK):
            own = slice(first, first + CHUNK)
            yield _Task(first, list(curves[own]), list(labels[own]), versions, cadences)

    arrays: dict[str, np.memmap[Any, Any]] = {}
    with multiprocessing.get_context("spawn").Pool(processes, end_with_parent) as pool:
        results = pool.imap_unordered(_assemble_chunk, tasks(), chunksize=1)
        for first, found in track(results, "Assembling light curves", total=-(-size // CHUNK)):
            for version, inputs in enumerate(found):
                for name in _COLUMNS:
                    part = getattr(inputs, name)
                    if name not in arrays:
                        dtype = np.float16 if part.dtype == np.float32 else part.dtype
                        arrays[name] = np.lib.format.open_memmap(
                            folder / f"{name}.npy", "w+", dtype, (versions, size, *part.shape[1:])
                        )
                    if part.dtype == np.float32:
                        part = np.clip(part, -6e4, 6e4)  # the range of half precision
                    arrays[name][version, first : first + len(part)] = part
    for array in arrays.values():
        array.flush()
