"""Export to the Triton model repository: four ONNX models, their manifest and the reference set."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from broker.assemble.event import EVENT_FEATURES
from broker.assemble.inputs import MODALITIES
from broker.assemble.lightcurve import FOLDED_CHANNELS, LIGHT_CURVE_FEATURES, PHASE_BINS, POINT_CHANNELS, POINTS
from broker.assemble.metadata import MODEL_FEATURES, SCALER_FILE, Scaler
from broker.assemble.spectrum import GRID
from broker.taxonomy import CLASS_NAMES
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import TensorBatch, Trimodal

CLASSIFIER_NAME = "trifid-astrom3"
OPSET = 20
"""The first that has GELU as one operation; ONNX Runtime 1.20 takes up to 21."""


def export_models(model: Trimodal, repository: Path) -> None:
    """Write ``<model>/1/model.onnx`` for the three encoders and the classifier under ``repository``."""
    model = model.eval()
    export_light_curve_encoder(model.light_curve_encoder, repository)
    export_spectrum_encoder(model.spectrum_encoder, repository)
    export_metadata_encoder(model.metadata_encoder, repository)
    export_classifier(model.classifier, repository)


def export_light_curve_encoder(encoder: nn.Module, repository: Path) -> None:
    """Write ``light_curve_encoder/1/model.onnx`` under ``repository``."""
    _export(
        encoder.eval(),
        {
            "points": torch.randn(2, POINTS, POINT_CHANNELS),
            "points_mask": torch.ones(2, POINTS, dtype=torch.bool),
            "folded": torch.randn(2, FOLDED_CHANNELS, PHASE_BINS),
            "features": torch.randn(2, len(LIGHT_CURVE_FEATURES)),
        },
        ["embedding"],
        repository / "light_curve_encoder",
    )


def export_spectrum_encoder(encoder: nn.Module, repository: Path) -> None:
    """Write ``spectrum_encoder/1/model.onnx`` under ``repository``."""
    spectra = torch.randn(2, 3, len(GRID))
    _export(encoder.eval(), {"spectra": spectra}, ["embedding"], repository / "spectrum_encoder")


def export_metadata_encoder(encoder: nn.Module, repository: Path) -> None:
    """Write ``metadata_encoder/1/model.onnx`` under ``repository``."""
    _export(
        encoder.eval(),
        {
            "values": torch.randn(2, len(MODEL_FEATURES)),
            "known": torch.ones(2, len(MODEL_FEATURES), dtype=torch.bool),
        },
        ["embedding"],
        repository / "metadata_encoder",
    )


def export_classifier(classifier: nn.Module, repository: Path, *, with_other: bool = False) -> None:
    """Write ``classifier/1/model.onnx`` under ``repository``.

    It is a ``Classifier``, or one with a sixth input, ``event``, and the third output ``other``.
    """
    embedding = torch.randn(2, EMBEDDING)
    _export(
        classifier.eval(),
        {
            "light_curve": embedding,
            "spectrum": embedding.clone(),
            "metadata": embedding.clone(),
            "present": torch.ones(2, len(MODALITIES), dtype=torch.bool),
            "detections": torch.tensor([[7.0], [300.0]]),
            **({"event": torch.rand(2, len(EVENT_FEATURES))} if with_other else {}),
        },
        ["probabilities", "embedding", *(["other"] if with_other else [])],
        repository / "classifier",
    )


def save_scaler(scaler: Scaler) -> None:
    """Write the scaler into the package: it belongs to the model that is published with this release."""
    columns = {
        name: [round(float(m), 6), round(float(s), 6)] if np.isfinite(s) else None
        for name, m, s in zip(MODEL_FEATURES, scaler.mean, scaler.std, strict=True)
    }
    SCALER_FILE.write_text(json.dumps(columns, indent=1) + "\n")


def _export(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notices
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave nothing for {folder.name}")
    program.save(path, external_data=False)


def write_manifest(
    repository: Path,
    version: str,
    thresholds: dict[str, tuple[float, ...]],
    training: dict[str, object],
    other_thresholds: dict[str, tuple[float, ...]] | None = None,
    other_thresholds_of_differences: dict[str, tuple[float, ...]] | None = None,
) -> None:
    """Write ``manifest.json``: versions, classes, thresholds and the hash of each model file."""
    manifest = {
        "classifier_name": CLASSIFIER_NAME,
        "model_version": version,
        "classes": list(CLASS_NAMES),
        "conformal_thresholds": thresholds,
        "other_thresholds": other_thresholds,
        "other_thresholds_of_differences": other_thresholds_of_differences,
        "sha256": _checksums(repository),
        "training": training,
    }
    (repository / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def rewrite_checksums(repository: Path) -> None:
    """Bring the checksums of the models in ``manifest.json`` up to date, where there is a manifest."""
    path = repository / "manifest.json"
    if path.exists():
        manifest = json.loads(path.read_text())
        manifest["sha256"] |= _checksums(repository)
        path.write_text(json.dumps(manifest, indent=1) + "\n")


def _checksums(repository: Path) -> dict[str, str]:
    files = sorted(repository.glob("*/*/model.onnx"))
    return {str(p.relative_to(repository)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check_export(model: Trimodal, repository: Path, batch: TensorBatch, tolerance: float) -> float:
    """Largest difference between torch and ONNX Runtime over the four models; raises if above ``tolerance``."""
    import onnxruntime

    with torch.no_grad():
        light_curve, spectrum, metadata = model.encode(batch).unbind(dim=1)
    feeds = {
        "light_curve_encoder": {
            "points": batch.points, "points_mask": batch.points_mask,
            "folded": batch.folded, "features": batch.features,
        },
        "spectrum_encoder": {"spectra": batch.spectra},
        "metadata_encoder": {"values": batch.values, "known": batch.known},
        "classifier": {
            "light_curve": light_curve, "spectrum": spectrum, "metadata": metadata, "present": batch.present,
            "detections": batch.detections,
        },
    }  # fmt: skip
    worst = 0.0
    for name, inputs in feeds.items():
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        got = session.run(None, {k: v.numpy() for k, v in inputs.items()})[0]
        with torch.no_grad():
            expected = getattr(model, name)(*inputs.values())
        expected = expected[0] if isinstance(expected, tuple) else expected
        worst = max(worst, float(np.abs(got - expected.numpy()).max()))
    if worst > tolerance:
        raise RuntimeError(f"exported models differ from torch by {worst:.2e}, more than {tolerance:.0e}")
    return worst
