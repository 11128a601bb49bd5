"""Engines that run the model: ONNX Runtime in this process, or Triton over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import ModelInputs


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What the model says of one batch. Rows with no modality present are zero in both arrays, and
    NaN in ``other``."""

    probabilities: NDArray[np.float32]
    """(batch, 10) calibrated class probabilities in the order of ``taxonomy.CLASSES``."""
    embeddings: NDArray[np.float32]
    """(batch, 512) L2-normalised mean of the embeddings of the modalities present."""
    other: NDArray[np.float32]
    """(batch,) probability that the object is none of the ten classes, to which ``probabilities`` then do not apply;
    NaN where the model does not say."""
    by_modality: NDArray[np.float32] | None = None
    """(batch, 3, 512) of MODALITIES, the embeddings that ``embeddings`` are the mean of, L2-normalised; zero where
    absent. None where the engine was not asked for them, or the server cannot give them."""


class Engine(Protocol):
    """Encodes and classifies batches."""

    @property
    def model_version(self) -> str:
        """The model's name and version, as published with each annotation."""

    def predict(self, inputs: ModelInputs) -> Predictions:
        """Run encoders and classifier; raises DependencyUnavailableError when the server is unavailable."""

    def embedding_width(self) -> int:
        """Values of an embedding; raises DependencyUnavailableError when the server is unavailable."""

    def placement(self) -> Mapping[str, str]:
        """What each model runs on, by the engine's own words, such as ``KIND_CPU``.

        Raises DependencyUnavailableError when the server is unavailable.
        """

    def device(self) -> str | None:
        """Where the models run: ``gpu`` if all of them do, ``cpu``, or None where it cannot be known.

        Raises DependencyUnavailableError when the server is unavailable.
        """

    def check(self) -> None:
        """Raise DependencyUnavailableError that says why the engine cannot serve now."""

    def close(self) -> None:
        """Release the engine's connections and memory."""
