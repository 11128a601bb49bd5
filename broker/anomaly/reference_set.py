"""The reference set: embeddings of known objects that alerts are compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.strata import LIGHT_CURVE_BIT, METADATA_BIT, strata_of, stratum_name
from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from broker.npz import from_npz, to_npz
from broker.taxonomy import CLASS_NAMES

if TYPE_CHECKING:
    from broker.anomaly.calibration import Calibration

FORMAT: Final = 2
"""Of the file; 1, without modalities, was that of releases up to 2026.11."""
MIN_EMBEDDINGS: Final = 50
"""A stratum with fewer reference embeddings gives no score: its nearest neighbours would not be near."""
MIN_CALIBRATION: Final = 100
"""A stratum with fewer calibration distances gives no score: 0.99 would be a matter of one distance."""
_REMAKE: Final = "make it again with `python -m training reference-set`"
_STEPS: Final = 127.0
_NORM_TOLERANCE: Final = 0.02
"""Eight bits a value move the length of a unit vector by less than this."""
_ARRAYS: Final = (
    "format", "version", "model", "embeddings", "scales", "object_ids", "class_names", "modalities", "detections",
    "values", "k", "calibration_distances", "calibration_modalities", "calibration_detections", "calibration_values",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stratum:
    """What objects of one subset of the modalities and one range of lengths are compared with."""

    name: str
    first: int
    """Row of its first embedding in the whole set."""
    embeddings: NDArray[np.float32]
    """(n, d) unit vectors."""
    calibration: NDArray[np.float32]
    """(m,) sorted distances."""
    problem: str | None
    """Why it can give no score; None where it can."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReferenceSet:
    """n embeddings of reference objects; an object may have several, of other modalities and lengths.

    All columns are sorted by stratum when the set is made; a stratum is a slice of them.
    """

    version: str
    model: str
    """``Manifest.identity`` of the model that made the embeddings: those of two models have nothing in common."""
    embeddings: NDArray[np.float32]
    """(n, d) unit vectors."""
    object_ids: NDArray[np.str_]
    class_names: NDArray[np.str_]
    modalities: NDArray[np.uint8]
    """(n,) of which modalities each embedding was made, as ``broker.assemble.inputs.subset_codes``."""
    detections: NDArray[np.int32]
    """(n,) of how many photometric points; 0 where without a light curve."""
    values: NDArray[np.int32]
    """(n,) of how many known catalogue values, coordinates included; 0 where without metadata."""
    k: int
    """Neighbours whose mean distance is the anomaly distance."""
    calibration_distances: NDArray[np.float32]
    """(m,) anomaly distances of stars that the model was not trained on and that are not in the set."""
    calibration_modalities: NDArray[np.uint8]
    """(m,) as ``modalities``, of those stars."""
    calibration_detections: NDArray[np.int32]
    calibration_values: NDArray[np.int32]
    scores: Calibration | None = None
    """What calibrates combined scores, in a file of its own; None where there is none, and then no combined score."""
    base: ReferenceSet | None = None
    """Of a set that was made from the stream, the model's own: it calibrates combined scores in the strata of which
    the stream had too little."""
    strata: dict[int, Stratum] = field(init=False)
    """By the numbers of ``strata_of``; those of which there is anything."""

    def __post_init__(self) -> None:
        """Sort by stratum."""
        strata = strata_of(self.modalities, self.detections, self.values)
        order = np.argsort(strata, kind="stable")
        for name in ("embeddings", "object_ids", "class_names", "modalities", "detections", "values"):
            object.__setattr__(self, name, getattr(self, name)[order])
        strata, calibrated = strata[order], self.calibration_strata()
        found: dict[int, Stratum] = {}
        for number in np.union1d(strata, calibrated).tolist():
            first, end = np.searchsorted(strata, [number, number + 1]).tolist()
            distances = np.sort(self.calibration_distances[calibrated == number])
            name, problem = stratum_name(number), None
            if end - first < max(MIN_EMBEDDINGS, self.k):
                problem = f"{end - first} embeddings of {name}, {max(MIN_EMBEDDINGS, self.k)} are needed"
            elif len(distances) < MIN_CALIBRATION:
                problem = f"{len(distances)} calibration distances of {name}, {MIN_CALIBRATION} are needed"
            found[number] = Stratum(name, first, self.embeddings[first:end], distances, problem)
        object.__setattr__(self, "strata", found)

    def __len__(self) -> int:
        return len(self.embeddings)

    def calibration_strata(self) -> NDArray[np.intp]:
        """(m,) the strata of the stars that calibrate it."""
        return strata_of(self.calibration_modalities, self.calibration_detections, self.calibration_values)

    def check_model(self, model: str, width: int) -> None:
        """Raise ConfigurationError unless the set was made by ``model``, whose embeddings have ``width`` values."""
        if self.model != model:
            raise ConfigurationError(
                f"the reference set {self.version} was made with the model {self.model}, the service runs {model}: "
                f"distances between their embeddings mean nothing; {_REMAKE}"
            )
        if self.embeddings.shape[1] != width:
            raise ConfigurationError(
                f"the embeddings of reference set {self.version} have {self.embeddings.shape[1]} values, those of "
                f"{model} {width}; {_REMAKE}"
            )

    def to_bytes(self) -> bytes:
        """The set as one .npz file, embeddings in eight bits a value."""
        steps, scales = _quantise(self.embeddings)
        return to_npz(
            format=np.array(FORMAT, np.int32),
            version=self.version,
            model=self.model,
            embeddings=steps,
            scales=scales,
            object_ids=self.object_ids.astype(np.str_),
            class_names=self.class_names.astype(np.str_),
            modalities=self.modalities.astype(np.uint8),
            detections=self.detections.astype(np.int32),
            values=self.values.astype(np.int32),
            k=np.array(self.k, np.int32),
            calibration_distances=self.calibration_distances.astype(np.float32),
            calibration_modalities=self.calibration_modalities.astype(np.uint8),
            calibration_detections=self.calibration_detections.astype(np.int32),
            calibration_values=self.calibration_values.astype(np.int32),
        )

    @staticmethod
    def from_bytes(data: bytes, origin: str) -> ReferenceSet:
        """The inverse of ``to_bytes``; raises ConfigurationError, naming ``origin``, for anything else."""
        arrays = from_npz(data, None, f"{origin} is no reference set")
        if "calibration_distances" in arrays and "format" not in arrays:
            raise ConfigurationError(f"{origin} is a reference set of an earlier release; {_REMAKE}")
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise ConfigurationError(f"{origin} is no reference set: there is no {', '.join(missing)}")
        return _checked(arrays, origin)

    @staticmethod
    def load_npz(path: Path, sha256: str | None = None) -> ReferenceSet:
        """Read a set from a file; raises ConfigurationError where it cannot be, or is not the one of ``sha256``."""
        return ReferenceSet.from_bytes(read_checked(path, sha256), str(path))


def read_checked(path: Path, sha256: str | None) -> bytes:
    """A reference set's file; raises ConfigurationError where it cannot be read or its checksum is another one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"reference set {path}: {error}") from error
    actual = digest(data)
    if sha256 is not None and actual != sha256:
        raise ConfigurationError(
            f"{path} is not the reference set that the manifest beside it describes: its SHA-256 is {actual}, not "
            f"{sha256}; {_REMAKE}"
        )
    return data


def digest(data: bytes) -> str:
    """SHA-256 as hexadecimal digits, as in the manifest."""
    return hashlib.sha256(data).hexdigest()


def as_stored(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """``embeddings`` (n, d), unit vectors, as they come back from a file."""
    return _restore(*_quantise(embeddings))


def _quantise(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Steps (n, d) and the size of a step in each row (n,): errors of 0.01 in a distance at most."""
    scales = (np.abs(embeddings).max(axis=1) / _STEPS).astype(np.float32)
    return np.rint(embeddings / np.maximum(scales, 1e-12)[:, None]).astype(np.int8), scales


def _restore(steps: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    embeddings: NDArray[np.float32] = steps.astype(np.float32) * scales[:, None]
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings /= np.maximum(norm, 1e-12)
    return embeddings


def _checked(arrays: dict[str, NDArray[Any]], origin: str) -> ReferenceSet:
    """The set, from the arrays of its file; ConfigurationError that says which of them cannot be used."""

    def refuse(problem: str) -> ConfigurationError:
        return ConfigurationError(f"{origin} cannot be used as a reference set: {problem}; {_REMAKE}")

    if arrays["format"].shape or int(arrays["format"]) != FORMAT:
        raise refuse(f"format {arrays['format']}, this release reads {FORMAT}")
    steps, size, count = arrays["embeddings"], len(arrays["scales"]), len(arrays["calibration_distances"])
    if steps.ndim != 2 or steps.dtype != np.int8 or not steps.size:
        raise refuse(f"embeddings of shape {steps.shape} and type {steps.dtype}, expected (n, width) of int8")
    columns = dict.fromkeys(("scales", "object_ids", "class_names", "modalities", "detections", "values"), size)
    columns |= dict.fromkeys(
        ("calibration_distances", "calibration_modalities", "calibration_detections", "calibration_values"), count
    )
    for name, length in {**columns, "embeddings": size}.items():
        if arrays[name].ndim != (2 if name == "embeddings" else 1) or len(arrays[name]) != length:
            raise refuse(f"{name} has the shape {arrays[name].shape}, expected {length} rows")
    norms = np.linalg.norm(steps.astype(np.float32) * arrays["scales"][:, None], axis=1)
    # Not "above": NaN is no unit vector either.
    wrong = ~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)
    if wrong.any():
        raise refuse(f"{wrong.sum()} of {size} embeddings are no unit vectors (the first has length {norms[wrong][0]})")
    unknown = sorted(set(arrays["class_names"].astype(str).tolist()) - set(CLASS_NAMES))
    if unknown:
        raise refuse(f"unknown classes {', '.join(unknown)}")
    for prefix in ("", "calibration_"):
        codes, points, values = (arrays[f"{prefix}{name}"] for name in ("modalities", "detections", "values"))
        if any(column.dtype.kind not in "ui" for column in (codes, points, values)):
            raise refuse(f"{prefix}modalities, {prefix}detections and {prefix}values are no integers")
        if np.any((codes < 1) | (codes >= 1 << len(MODALITIES))):
            raise refuse(f"{prefix}modalities are no subsets of {', '.join(MODALITIES)}")
        if np.any(points < 0) or np.any((codes & LIGHT_CURVE_BIT > 0) != (points > 0)):
            raise refuse(f"{prefix}detections and {prefix}modalities disagree on which have a light curve")
        if np.any(values < 0) or np.any((codes & METADATA_BIT > 0) != (values > 0)):
            raise refuse(f"{prefix}values and {prefix}modalities disagree on which have metadata")
    distances = arrays["calibration_distances"]
    if not np.all((distances >= 0) & (distances <= 2 + 1e-3)):
        raise refuse("calibration distances that are no distances between unit vectors, 0 to 2")
    k = int(arrays["k"])
    if not 0 < k <= MIN_EMBEDDINGS:
        raise refuse(f"{k} neighbours, expected 1 to {MIN_EMBEDDINGS}")
    return ReferenceSet(
        str(arrays["version"]), str(arrays["model"]), _restore(steps, arrays["scales"]), arrays["object_ids"],
        arrays["class_names"], arrays["modalities"], arrays["detections"], arrays["values"], k,
        distances, arrays["calibration_modalities"], arrays["calibration_detections"], arrays["calibration_values"],
    )  # fmt: skip
