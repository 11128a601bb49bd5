"""What both engines share: the models' signatures, and the way of a batch through encoders and classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError, InferenceError
from broker.inference import Predictions
from broker.inference.manifest import (
    CLASSIFIER,
    LIGHT_CURVE_ENCODER,
    METADATA_ENCODER,
    SPECTRUM_ENCODER,
    Manifest,
)

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by tensor name; the first dimension of each is the batch."""
RunModels = Callable[[Mapping[str, Tensors]], Mapping[str, Tensors]]
"""Runs several models that do not depend on each other: feeds by model name to outputs by model name."""

# One encoder for each of MODALITIES, in their order, and the classifier's input that takes its embedding.
_ENCODERS: Final = (LIGHT_CURVE_ENCODER, SPECTRUM_ENCODER, METADATA_ENCODER)
_CLASSIFIER_INPUTS: Final = ("light_curve", "spectrum", "metadata")

_TENSORS: Final[dict[str, tuple[dict[str, str], dict[str, str]]]] = {
    LIGHT_CURVE_ENCODER: (
        {"points": "FP32", "points_mask": "BOOL", "folded": "FP32", "features": "FP32"},
        {"embedding": "FP32"},
    ),
    SPECTRUM_ENCODER: ({"spectra": "FP32"}, {"embedding": "FP32"}),
    METADATA_ENCODER: ({"values": "FP32", "known": "BOOL"}, {"embedding": "FP32"}),
    CLASSIFIER: (
        {**dict.fromkeys(_CLASSIFIER_INPUTS, "FP32"), "present": "BOOL", "detections": "FP32"},
        {"probabilities": "FP32", "embedding": "FP32"},
    ),
}
"""Names and Triton data types of the inputs and outputs of each model."""
BY_MODALITY: Final = "by_modality"
"""What ``Classify`` may give beside the classifier's outputs: (batch, 3, width), the encoders' embeddings."""
_OPTIONAL_OUTPUTS: Final[dict[str, dict[str, str]]] = {CLASSIFIER: {"other": "FP32"}}
"""Outputs that a model may have beside these."""
EVENT: Final = "event"
_OPTIONAL_INPUTS: Final[dict[str, dict[str, str]]] = {CLASSIFIER: {EVENT: "FP32"}}
"""Inputs likewise: classifiers before 2026.11.29 take no ``broker.assemble.event``."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one input or output."""

    datatype: str
    """Triton's name of the type: FP32 or BOOL."""
    shape: tuple[int, ...]
    """Sizes after the batch dimension; -1 where any size is taken."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of one model by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def check_signatures(signatures: Mapping[str, Signature], manifest: Manifest) -> None:
    """Raise ConfigurationError unless the four models are those that this release knows how to use."""
    for model, (inputs, outputs) in _TENSORS.items():
        signature = signatures[model]
        for kind, expected, found, more in (
            ("inputs", inputs, signature.inputs, _OPTIONAL_INPUTS.get(model, {})),
            ("outputs", outputs, signature.outputs, _OPTIONAL_OUTPUTS.get(model, {})),
        ):
            types = {name: spec.datatype for name, spec in found.items()}
            if not expected.items() <= types.items() <= (expected | more).items():
                raise ConfigurationError(f"{model} has the {kind} {types}, this release needs {expected}")
    classifier = signatures[CLASSIFIER]
    for encoder, name in zip(_ENCODERS, _CLASSIFIER_INPUTS, strict=True):
        embedding = signatures[encoder].outputs["embedding"].shape
        if embedding != classifier.inputs[name].shape:
            raise ConfigurationError(
                f"{encoder} gives embeddings of shape {embedding}, the classifier takes {classifier.inputs[name].shape}"
            )
    if "other" in classifier.outputs and classifier.outputs["other"].shape != (1,):
        raise ConfigurationError(f"the classifier gives other of shape {classifier.outputs['other'].shape}, not (1,)")
    if classifier.outputs["probabilities"].shape != (len(manifest.classes),):
        raise ConfigurationError(
            f"the classifier gives {classifier.outputs['probabilities'].shape} probabilities for "
            f"{len(manifest.classes)} classes"
        )


def embedding_width(signatures: Mapping[str, Signature]) -> int:
    """Values of the embedding that the classifier gives."""
    return signatures[CLASSIFIER].outputs["embedding"].shape[0]


def _check_shapes(model: str, signature: Signature, feed: Tensors) -> None:
    for name, spec in signature.inputs.items():
        shape = feed[name].shape[1:]
        if len(shape) != len(spec.shape) or any(
            expected not in (-1, size) for expected, size in zip(spec.shape, shape, strict=True)
        ):
            raise InferenceError(
                f"{model} takes {name} of shape {spec.shape}, the service assembles {shape}: "
                "the model repository and the service are of different releases"
            )


@dataclass(frozen=True, slots=True, eq=False)
class RequestBatch:
    """What goes to the models of one batch: the objects that have any modality, and no tensor without a row."""

    present: NDArray[np.bool_]
    """(objects, 3) which of MODALITIES each object has; at least one."""
    detections: NDArray[np.float32]
    """(objects, 1) number of photometric points."""
    feeds: Mapping[str, Tensors]
    """Inputs by encoder, of the encoders whose modality is there; the rows are those of the objects that have it."""
    event: NDArray[np.float32] | None = None
    """(objects, EVENT_FEATURES); None for a classifier that does not take it."""

    def __len__(self) -> int:
        return len(self.present)

    def part(self, start: int, stop: int) -> RequestBatch:
        """The objects from ``start`` to before ``stop``."""
        feeds: dict[str, Tensors] = {}
        for column, encoder in enumerate(_ENCODERS):
            if encoder in self.feeds:
                first = int(self.present[:start, column].sum())
                last = first + int(self.present[start:stop, column].sum())
                if last > first:
                    feeds[encoder] = {name: array[first:last] for name, array in self.feeds[encoder].items()}
        event = None if self.event is None else self.event[start:stop]
        return RequestBatch(self.present[start:stop], self.detections[start:stop], feeds, event)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All of it by tensor name, as the server's model GATEWAY takes it."""
        everything = self.to_classifier()
        for feed in self.feeds.values():
            everything |= feed
        return everything

    def to_classifier(self) -> dict[str, NDArray[Any]]:
        """What the classifier takes as it is, beside the embeddings."""
        taken: dict[str, NDArray[Any]] = {"present": self.present, "detections": self.detections}
        return taken if self.event is None else {**taken, EVENT: self.event}


Classify = Callable[[RequestBatch], Tensors]
"""Encodes and classifies a batch of at least one object: the classifier's outputs by name, perhaps BY_MODALITY."""


def classify_by(run_models: RunModels, width: int) -> Classify:
    """``Classify`` by two rounds of calls: of the encoders, and of the classifier with what these gave.

    ``width`` is the number of values of an embedding. Raises what ``run_models`` raises.
    """

    def classify(batch: RequestBatch) -> Tensors:
        encoded = run_models(batch.feeds)
        feed = batch.to_classifier()
        by_modality = np.zeros((len(batch), len(_ENCODERS), width), np.float32)
        for column, (encoder, name) in enumerate(zip(_ENCODERS, _CLASSIFIER_INPUTS, strict=True)):
            embeddings = np.zeros((len(batch), width), np.float32)
            if encoder in encoded:
                embeddings[batch.present[:, column]] = encoded[encoder]["embedding"]
            feed[name] = by_modality[:, column] = embeddings
        return {**run_models({CLASSIFIER: feed})[CLASSIFIER], BY_MODALITY: by_modality}

    return classify


def _rows(array: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[Any]:
    return array if rows.all() else array[rows]


def to_models(inputs: ModelInputs, signatures: Mapping[str, Signature]) -> RequestBatch | None:
    """What goes to the models of a batch; None where no object has any modality.

    Raises InferenceError where the inputs do not have the models' shapes.
    """
    present = inputs.present
    if not present.any():
        return None
    light_curve = inputs.light_curve
    arrays: Sequence[Tensors] = (
        {
            "points": light_curve.points,
            "points_mask": light_curve.points_mask,
            "folded": light_curve.folded,
            "features": light_curve.features,
        },
        {"spectra": inputs.spectrum.spectra},
        {"values": inputs.metadata.values, "known": inputs.metadata.known},
    )
    feeds: dict[str, Tensors] = {}
    for encoder, rows, tensors in zip(_ENCODERS, present.T, arrays, strict=True):
        if rows.any():
            feeds[encoder] = {name: _rows(array, rows) for name, array in tensors.items()}
            _check_shapes(encoder, signatures[encoder], feeds[encoder])
    any_present = present.any(axis=1)
    detections = light_curve.detections[any_present, None].astype(np.float32)
    classifier = signatures[CLASSIFIER]
    if EVENT not in classifier.inputs:
        return RequestBatch(present[any_present], detections, feeds)
    batch = RequestBatch(present[any_present], detections, feeds, light_curve.event[any_present])
    own = {name: spec for name, spec in classifier.inputs.items() if name in batch.to_classifier()}
    _check_shapes(CLASSIFIER, Signature(own, classifier.outputs), batch.to_classifier())
    return batch


def predict_batch(inputs: ModelInputs, signatures: Mapping[str, Signature], classify: Classify) -> Predictions:
    """Encode each modality of the objects that have it, then classify the objects that have any.

    Gives what ``predictions_of`` gives, and raises what it, ``to_models`` and ``classify`` raise.
    """
    batch = to_models(inputs, signatures)
    return predictions_of(inputs, signatures, {} if batch is None else classify(batch))


def predictions_of(inputs: ModelInputs, signatures: Mapping[str, Signature], outputs: Tensors) -> Predictions:
    """Predictions of a batch from what ``Classify`` gave for ``to_models`` of it; nothing where that is None.

    Rows without any modality come back as zeros in both arrays, and so do rows for which the model gives a
    value that is not finite: neither is a classification. ``other`` is NaN there, and in all rows of a model that
    has no such output.
    """
    any_present = inputs.present.any(axis=1)
    classes = signatures[CLASSIFIER].outputs["probabilities"].shape[0]
    predictions = Predictions(
        probabilities=np.zeros((len(inputs), classes), np.float32),
        embeddings=np.zeros((len(inputs), embedding_width(signatures)), np.float32),
        other=np.full(len(inputs), np.nan, np.float32),
    )
    if not outputs:
        return predictions
    if BY_MODALITY in outputs:
        predictions = replace(
            predictions, by_modality=np.zeros((len(inputs), *outputs[BY_MODALITY].shape[1:]), np.float32)
        )

    finite = np.isfinite(outputs["probabilities"]).all(axis=1) & np.isfinite(outputs["embedding"]).all(axis=1)
    rows = np.flatnonzero(any_present)[finite]
    predictions.probabilities[rows] = outputs["probabilities"][finite]
    predictions.embeddings[rows] = outputs["embedding"][finite]
    if "other" in outputs:
        predictions.other[rows] = outputs["other"][finite, 0]
    if predictions.by_modality is not None:
        predictions.by_modality[rows] = outputs[BY_MODALITY][finite]
    return predictions
