"""Stored cases: model inputs of every combination of modalities, and what the reference implementation says of them.

The reference implementation is that of ONNX itself (``onnx.reference``: each operator in numpy, as its specification
has it), one object at a time. It shares no code with ONNX Runtime, CUDA or TensorRT, and knows no batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble import assemble
from broker.assemble.inputs import MODALITIES, LightCurveInputs, MetadataInputs, ModelInputs, SpectrumInputs
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError, ModelCheckError
from broker.inference import Engine, Predictions
from broker.inference.encode import Signature, Tensors, TensorSpec, classify_by, embedding_width, predict_batch
from broker.inference.manifest import MODALITY_SUBSETS, MODELS, Manifest
from broker.npz import from_npz, to_npz
from broker.records import Alert, ObservedSpectrum, Spectrum
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.decoder import Decoded
from broker.surveys.simulator import simulate_alerts

PER_SUBSET: Final = 3
"""Cases of each combination of modalities."""
_ALERTS: Final = 12
_SEED: Final = 20
_GROUPS: Final = {"light_curve": LightCurveInputs, "spectrum": SpectrumInputs, "metadata": MetadataInputs}
_DATATYPES: Final = {1: "FP32", 9: "BOOL"}  # onnx.TensorProto.FLOAT and BOOL


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Inputs with the reference's answers."""

    inputs: ModelInputs
    expected: Predictions
    origin: str
    """What gave the answers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far an engine is from the reference, in the cases of one combination of modalities."""

    subset: str
    objects: int
    probability: float
    """Largest difference; infinite where one of them has no answer."""
    embedding: float
    other: float
    classes: int
    """Objects whose most probable class is another."""

    def within(self, tolerance: float) -> bool:
        """Whether it passes: no difference above the tolerance, and no class that changed but by such a difference."""
        return max(self.probability, self.embedding, self.other) <= tolerance


def make_inputs(per_subset: int = PER_SUBSET, seed: int = _SEED) -> ModelInputs:
    """Simulated stars through the service's own assembly: ``per_subset`` of each of MODALITY_SUBSETS, in that order."""
    count = per_subset * len(MODALITY_SUBSETS)
    packets = list(simulate_alerts(2 * count, _ALERTS, seed))
    decoded = Decoder().decode_batch([packet.payload for packet in packets])
    alerts = [
        record for found in decoded if isinstance(found, Decoded) for record in found if isinstance(record, Alert)
    ]
    store = MemoryStore()
    store.update(alerts)
    latest = {alert.object_id: alert for alert in alerts}
    store.put_observed([_spectrum(alert, number) for number, alert in enumerate(latest.values())])
    inputs = assemble(store.update(list(latest.values())))
    wanted = np.array([[name in subset.split("+") for name in MODALITIES] for subset in MODALITY_SUBSETS])
    wanted = np.repeat(wanted, per_subset, axis=0)
    complete = np.flatnonzero(inputs.present.all(axis=1))
    if len(complete) < count:
        raise RuntimeError(f"{len(complete)} simulated stars have all modalities, {count} are needed")
    inputs = inputs.rows(complete[:count])
    return ModelInputs(
        **{name: _masked(getattr(inputs, name), wanted[:, column]) for column, name in enumerate(MODALITIES)}
    )


def _masked(group: Any, rows: NDArray[np.bool_]) -> Any:
    """A group's arrays with the rows of other objects zero, as assembly leaves those of absent modalities."""

    def masked(array: NDArray[Any]) -> NDArray[Any]:
        absent = np.zeros_like(array) if array.dtype != np.float64 else np.full_like(array, np.nan)  # of period
        return np.where(rows.reshape(-1, *[1] * (array.ndim - 1)), array, absent)

    return type(group)(**{field.name: masked(getattr(group, field.name)) for field in fields(group)})


def _spectrum(alert: Alert, number: int) -> ObservedSpectrum:
    """A black body of 3,500 to 10,000 K with Balmer lines and noise, upon the object itself."""
    rng = np.random.default_rng([_SEED, number])
    wavelength = np.arange(3800.0, 9100.0, 2.0)
    x = 1.4388e8 / (wavelength * rng.uniform(3500.0, 10_000.0))
    flux = wavelength**-5 / np.expm1(x)
    flux /= np.median(flux)
    for line in (6562.8, 4861.3, 4340.5, 4101.7):
        flux *= 1.0 - rng.uniform(0.0, 0.6) * np.exp(-0.5 * ((wavelength - line) / 8.0) ** 2)
    error = np.full(len(wavelength), 0.02)
    return ObservedSpectrum(
        spectrum_id=f"case {number}",
        ra=alert.ra,
        dec=alert.dec,
        mjd=float("nan"),
        spectrum=Spectrum(wavelength, (flux + rng.normal(0.0, error)).astype(np.float32), error.astype(np.float32)),
        survey=alert.survey,
        object_id=alert.object_id,
    )


def reference_answers(folder: Path, manifest: Manifest, inputs: ModelInputs) -> Predictions:
    """What ``onnx.reference`` makes of inputs with the models of a version, one object at a time.

    Raises ConfigurationError where the package onnx is missing or a model cannot be read.
    """
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ConfigurationError(
            "the reference implementation needs the package onnx: pip install 'trifid[training]'"
        ) from error
    evaluators: dict[str, Any] = {}
    signatures: dict[str, Signature] = {}
    for model in MODELS:
        path = folder / manifest.path_of(model)
        try:
            loaded = onnx.load(path)
            evaluators[model] = ReferenceEvaluator(loaded)
        except Exception as error:  # protobuf's and onnx's exceptions have no common base of their own
            raise ConfigurationError(f"{path} cannot be read: {error}") from error
        signatures[model] = Signature(_specs(loaded.graph.input), _specs(loaded.graph.output))

    def run(feeds: Mapping[str, Tensors]) -> dict[str, Tensors]:
        outputs: dict[str, Tensors] = {}
        for model, feed in feeds.items():
            names = list(signatures[model].outputs)
            rows = [
                evaluators[model].run(names, {name: array[row : row + 1] for name, array in feed.items()})
                for row in range(len(next(iter(feed.values()))))
            ]
            outputs[model] = {
                name: np.concatenate(several) for name, several in zip(names, zip(*rows, strict=True), strict=True)
            }
        return outputs

    return predict_batch(inputs, signatures, classify_by(run, embedding_width(signatures)))


def _specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value or -1 for size in tensor.shape.dim)[1:]
        specs[value.name] = TensorSpec(_DATATYPES.get(tensor.elem_type, str(tensor.elem_type)), shape)
    return specs


def make_cases(folder: Path, manifest: Manifest) -> Cases:
    """Cases of a version, with the reference's answers; raises ConfigurationError as ``reference_answers``."""
    inputs = make_inputs()
    expected = reference_answers(folder, manifest, inputs)
    import onnx

    return Cases(inputs, expected, f"onnx.reference {onnx.__version__}")


def _models_digest(manifest: Manifest) -> str:
    """Of the models of a version, whatever their folders are."""
    sums = {path.split("/")[0]: sha256 for path, sha256 in manifest.sha256.items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def to_bytes(cases: Cases, manifest: Manifest) -> bytes:
    """Cases as one .npz file, which says of which models they are."""
    arrays = {
        f"{group}.{field.name}": getattr(getattr(cases.inputs, group), field.name)
        for group, kind in _GROUPS.items()
        for field in fields(kind)
    }
    arrays |= {f"expected.{field.name}": getattr(cases.expected, field.name) for field in fields(Predictions)}
    return to_npz(models=_models_digest(manifest), origin=cases.origin, **arrays)


def load(path: Path, manifest: Manifest) -> Cases:
    """Read cases; raises ConfigurationError where they cannot be, or are of other models than the manifest names."""
    refusal = f"{path} holds no cases of a model"
    try:
        found = from_npz(path.read_bytes(), None, refusal)
        models, origin = str(found["models"]), str(found["origin"])
        groups = {
            group: kind(**{field.name: found[f"{group}.{field.name}"] for field in fields(kind)})
            for group, kind in _GROUPS.items()
        }
        expected = Predictions(**{field.name: found[f"expected.{field.name}"] for field in fields(Predictions)})
    except (OSError, KeyError) as error:
        raise ConfigurationError(f"{refusal}: {error!r}") from error
    if models != _models_digest(manifest):
        raise ConfigurationError(f"{path} holds cases of other models than those of version {manifest.model_version}")
    return Cases(ModelInputs(**groups), expected, origin)


def compare(engine: Engine, cases: Cases) -> list[Comparison]:
    """How far an engine's answers are from those stored, by combination of modalities.

    Raises ModelCheckError where the engine does not answer.
    """
    try:
        got = engine.predict(cases.inputs)
    except (InferenceError, DependencyUnavailableError) as error:
        raise ModelCheckError(f"{engine.model_version} does not answer: {error}") from error
    if got.embeddings.shape != cases.expected.embeddings.shape:
        raise ModelCheckError(
            f"embeddings of shape {got.embeddings.shape}, the reference has {cases.expected.embeddings.shape}"
        )
    present = cases.inputs.present
    comparisons = []
    for subset in MODALITY_SUBSETS:
        rows = (present == [name in subset.split("+") for name in MODALITIES]).all(axis=1)
        best = got.probabilities[rows].argmax(axis=1)
        comparisons.append(
            Comparison(
                subset,
                int(rows.sum()),
                _largest(got.probabilities[rows], cases.expected.probabilities[rows]),
                _largest(got.embeddings[rows], cases.expected.embeddings[rows]),
                _largest(got.other[rows], cases.expected.other[rows]),
                int((best != cases.expected.probabilities[rows].argmax(axis=1)).sum()),
            )
        )
    return comparisons


def _largest(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference; NaN belongs to NaN."""
    difference = np.abs(got - expected)
    same = np.isnan(got) & np.isnan(expected)
    return float(np.nan_to_num(np.where(same, 0.0, difference), nan=np.inf).max(initial=0.0))
