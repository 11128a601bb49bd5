"""The manifest of a model repository: which model it holds, its thresholds and its files' checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.assemble.inputs import MODALITIES, subset_codes
from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_NAMES

LIGHT_CURVE_ENCODER: Final = "light_curve_encoder"
SPECTRUM_ENCODER: Final = "spectrum_encoder"
METADATA_ENCODER: Final = "metadata_encoder"
CLASSIFIER: Final = "classifier"
MODELS: Final[tuple[str, ...]] = (LIGHT_CURVE_ENCODER, SPECTRUM_ENCODER, METADATA_ENCODER, CLASSIFIER)

MODALITY_SUBSETS: Final[tuple[str, ...]] = tuple(
    "+".join(subset) for size in (1, 2, 3) for subset in combinations(MODALITIES, size)
)
"""Names of the seven non-empty subsets of MODALITIES, such as ``light_curve+metadata``."""

CALIBRATION_BINS: Final[tuple[int, ...]] = (0, 5, 10, 20, 50, 100, 200)
"""First numbers of detections of the bins in which temperatures and thresholds are calibrated."""

MAJORITY: Final = 0.5
ENOUGH: Final = 0.8
"""Shares of the probability, by which a prediction set grows where no class reaches its threshold."""

# The number that ``subset_codes`` gives each named subset.
_SUBSET_CODE: Final[dict[str, int]] = {
    name: sum(1 << MODALITIES.index(modality) for modality in name.split("+")) for name in MODALITY_SUBSETS
}


class Provenance(BaseModel):
    """Where the files of a version come from; written by ``trifid models build``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    built_at: str
    """ISO 8601, UTC."""
    source: str
    """Folder that training had written, as it was named."""
    code: str
    """Release of Trifid that built it, and the commit of its checkout where it was one."""
    data_sha256: dict[str, str] = Field(default_factory=dict)
    """Checksums of the files that it was trained on, by their names."""


class Promotion(BaseModel):
    """When a version became the served one, and which were served before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str
    """ISO 8601, UTC."""
    before: tuple[str, ...]
    """Versions that were served before and not rolled back, the latest last."""


class Manifest(BaseModel):
    """What ``model_repo/manifest.json`` says; written by ``training.export``."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    classifier_name: str
    """Published as ``classifierName``, such as ``trifid-astrom3``."""
    model_version: str
    classes: tuple[str, ...]
    """The classes in the order of the model's probabilities."""
    conformal_thresholds: dict[str, tuple[Annotated[float, Field(ge=0, le=1)], ...]]
    """For each of MODALITY_SUBSETS, and each of CALIBRATION_BINS, the probability from which a class belongs to the
    prediction set (split conformal prediction, Sadinle, Lei & Wasserman 2019, JASA 114, 223; conditional on both, Vovk
    2012, arXiv 1209.2673)."""
    sha256: dict[str, str]
    """Checksums of the models, by their path in the repository (``<model>/<version>/model.onnx``)."""
    other_thresholds: dict[str, tuple[Annotated[float, Field(gt=0, le=1)], ...]] | None = None
    """For each of MODALITY_SUBSETS, and each of CALIBRATION_BINS, the probability of being none of the classes from
    which an object is published as ``Other``, 1 for never (``inference.other_threshold`` wins); None where the model
    was not made to tell. How far the probability of something else rises above that of stars depends on both: one
    threshold for all would be that of the worst."""
    other_thresholds_of_differences: dict[str, tuple[Annotated[float, Field(gt=0, le=1)], ...]] | None = None
    """The same for objects whose fluxes are difference photometry; None where they have those of ``other_thresholds``.
    """
    reference_set_sha256: str | None = None
    """Checksum of the repository's ``reference_set.npz``; None where there is none for this model yet."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How the model was trained and what it scored, for people to read."""
    variant: str = "auto"
    """Of ``broker.models.variants``: for which hardware the repository's ``config.pbtxt`` are."""
    provenance: Provenance | None = None
    promotion: Promotion | None = None
    """In ``manifest.json`` alone."""

    @model_validator(mode="after")
    def _fits_this_release(self) -> Self:
        if self.classes != CLASS_NAMES:
            raise ValueError(f"classes are {self.classes}, this release of Trifid knows {CLASS_NAMES}")
        if set(self.conformal_thresholds) != set(MODALITY_SUBSETS):
            raise ValueError(f"conformal_thresholds must have exactly the keys {MODALITY_SUBSETS}")
        if any(len(row) != len(CALIBRATION_BINS) for row in self.conformal_thresholds.values()):
            raise ValueError(f"conformal_thresholds must have one value for each of the detections {CALIBRATION_BINS}")
        for name in ("other_thresholds", "other_thresholds_of_differences"):
            others = getattr(self, name)
            if others is not None and set(others) != set(MODALITY_SUBSETS):
                raise ValueError(f"{name} must have exactly the keys {MODALITY_SUBSETS}")
            if others is not None and any(len(row) != len(CALIBRATION_BINS) for row in others.values()):
                raise ValueError(f"{name} must have one value for each of the detections {CALIBRATION_BINS}")
        models = sorted(path.split("/")[0] for path in self.sha256)
        if models != sorted(MODELS) or any(len(path.split("/")) != 3 for path in self.sha256):
            raise ValueError(f"sha256 must name <model>/<version>/model.onnx once for each of {MODELS}")
        return self

    def version_of(self, model: str) -> str:
        """Version (the folder's name in the repository) of one of MODELS."""
        return self.path_of(model).split("/")[1]

    def path_of(self, model: str) -> str:
        """Path of one of MODELS in the repository."""
        return next(path for path in self.sha256 if path.startswith(f"{model}/"))

    @property
    def identity(self) -> str:
        """Name and version of the whole, such as ``trifid-astrom3 2026.11.1``."""
        return f"{self.classifier_name} {self.model_version}"

    def called_other(
        self,
        p_other: NDArray[np.floating],
        present: NDArray[np.bool_],
        detections: NDArray[np.integer],
        difference: NDArray[np.bool_],
        setting: float | None = None,
    ) -> NDArray[np.bool_]:
        """(batch,) which objects are published as ``Other`` for their probability ``p_other`` (batch,), NaN for none.

        ``present`` (batch, 3) and ``detections`` (batch,) as in ``prediction_sets``; ``difference`` (batch,) whether
        fluxes are difference photometry (``LightCurveInputs.is_difference``). ``setting`` is a threshold that
        wins over the model's own; 1 is never, and so is a model without any.
        """
        if setting is not None:
            threshold: NDArray[np.float64] = np.full(p_other.shape, setting)
        elif self.other_thresholds is not None:
            threshold = _of_cells(self.other_thresholds, present, detections, absent=1.0)
            if self.other_thresholds_of_differences is not None:
                own = _of_cells(self.other_thresholds_of_differences, present, detections, absent=1.0)
                threshold = np.where(difference, own, threshold)
        else:
            return np.zeros(p_other.shape, np.bool_)
        called: NDArray[np.bool_] = np.logical_and(p_other >= threshold, threshold < 1.0)
        return called

    def prediction_sets(
        self, probabilities: NDArray[np.float32], present: NDArray[np.bool_], detections: NDArray[np.integer]
    ) -> list[tuple[str, ...]]:
        """Classes that each object may belong to, the most probable first.

        ``probabilities`` is (batch, 10) as in ``Predictions``; ``present`` is (batch, 3), which of MODALITIES
        each object has; ``detections`` (batch,). A set holds every class whose probability reaches the threshold of
        the object's modalities and detections, and the most probable class always. Where none reaches it, the object
        is unlike those of the calibration: unless one class has the MAJORITY, the set holds as many as have ENOUGH
        together. An object without probabilities (all zero) has an empty set.
        """
        thresholds = _of_cells(self.conformal_thresholds, present, detections, absent=np.inf)
        order, members = set_members(probabilities, thresholds)
        return [
            tuple(self.classes[column] for column in columns if row[column])
            for columns, row in zip(order, members, strict=True)
        ]


def set_members(
    probabilities: NDArray[np.floating], thresholds: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Classes from the most probable on, and which are in each object's prediction set, both (batch, classes).

    The rule is that of ``Manifest.prediction_sets``; ``probabilities`` is (batch, classes), ``thresholds`` (batch,).
    """
    member: NDArray[np.bool_] = np.greater_equal(probabilities, thresholds[:, None])
    unlike = ~member.any(axis=1)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sorted_ = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
    total = sorted_.sum(axis=1)
    member[np.arange(len(member)), order[:, 0]] = True
    unsure = np.flatnonzero(unlike & (sorted_[:, 0] < MAJORITY * total))
    before = sorted_[unsure].cumsum(axis=1) - sorted_[unsure]
    enough = np.zeros((len(unsure), member.shape[1]), np.bool_)
    np.put_along_axis(enough, order[unsure], before < ENOUGH * total[unsure, None], axis=1)
    member[unsure] = enough
    member &= probabilities.any(axis=1, keepdims=True)
    return order, member


def _of_cells(
    table: Mapping[str, Sequence[float]], present: NDArray[np.bool_], detections: NDArray[np.integer], absent: float
) -> NDArray[np.float64]:
    """(batch,) the value of each object's modalities and detections; ``absent`` for an object without modalities."""
    cells = np.full((1 << len(MODALITIES), len(CALIBRATION_BINS)), absent)
    for name, row in table.items():
        cells[_SUBSET_CODE[name]] = row
    number = np.searchsorted(CALIBRATION_BINS[1:], detections, side="right")
    values: NDArray[np.float64] = cells[subset_codes(present), number]
    return values


def manifest_name(version: str) -> str:
    """Name of the file that describes one of several versions in a repository; ``manifest.json`` is the served one."""
    return f"manifest-{version}.json"


def load_manifest(model_repository: Path, version: str | None = None, *, verify_models: bool = True) -> Manifest:
    """Read the manifest of a version in a model repository and, unless told otherwise, check the models against it.

    The served version, ``manifest.json``, where None is named. ``verify_models=False`` is for a service whose models
    are served elsewhere. Raises ConfigurationError where the manifest or a model is missing, unreadable, of another
    release, or not the exported file.
    """
    path = model_repository / "manifest.json"
    if version is not None and (model_repository / manifest_name(version)).exists():
        path = model_repository / manifest_name(version)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"no model manifest: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if version is not None and manifest.model_version != version:
        raise ConfigurationError(f"{model_repository} has no version {version}: {path} is of {manifest.model_version}")
    if verify_models:
        for name, expected in manifest.sha256.items():
            model = model_repository / name
            try:
                with model.open("rb") as file:
                    actual = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ConfigurationError(f"{path} names a model that cannot be read: {error}") from error
            if actual != expected:
                raise ConfigurationError(
                    f"{model} is not the model that {path} describes: its SHA-256 is {actual}, not {expected}"
                )
    return manifest
