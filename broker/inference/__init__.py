"""Engines that run the model: ONNX Runtime in this process, or Triton over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
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

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """Those of the parts of a batch, at least one, as those of the batch."""
        if len(parts) == 1:
            return parts[0]
        # None, too, of a part without any modality.
        shapes = [part.by_modality.shape[1:] for part in parts if part.by_modality is not None]
        by_modality = None
        if shapes:
            by_modality = np.concatenate(
                [
                    np.zeros((len(part.other), *shapes[0]), np.float32)
                    if part.by_modality is None
                    else part.by_modality
                    for part in parts
                ]
            )
        return Predictions(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.other for part in parts]),
            by_modality,
        )


def equal_parts(objects: int, most: int, least: int) -> list[slice]:
    """A batch in up to ``most`` parts of nearly equal size; where it is cut, each is of at least ``least`` objects."""
    parts = max(1, min(most, objects // least))
    edges = [objects * number // parts for number in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


class Begun(AbstractContextManager["Begun"], Protocol):
    """A batch that was given to an engine; at the end of the context whatever is still under way is abandoned."""

    def result(self) -> Predictions:
        """Wait for the answer; raises as ``Engine.predict``."""


@dataclass(frozen=True, slots=True, eq=False)
class Later(AbstractContextManager["Later"]):
    """``Begun`` of which nothing is under way before it is waited for."""

    predict: Callable[[], Predictions]

    def result(self) -> Predictions:
        """The answer."""
        return self.predict()

    def __exit__(self, *exception: object) -> None:
        """Nothing is under way."""


class Engine(Protocol):
    """Encodes and classifies batches."""

    @property
    def model_version(self) -> str:
        """The model's name and version, as published with each annotation."""

    def predict(self, inputs: ModelInputs) -> Predictions:
        """Run encoders and classifier; raises DependencyUnavailableError when the server is unavailable."""

    def parts(self, objects: int) -> Sequence[slice]:
        """The parts of a batch that ``begin`` is best given: several where the next can be prepared meanwhile.

        Raises as ``predict``.
        """

    def begin(self, inputs: ModelInputs) -> Begun:
        """As ``predict``, without waiting where the engine is a server; raises as ``predict``."""

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
