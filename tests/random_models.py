"""A model repository of random weights with the inputs and outputs of the trained one, and random inputs."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from broker.anomaly.reference_set import ReferenceSet, digest
from broker.anomaly.strata import DETECTION_BINS, LIGHT_CURVE_BIT, MANY_VALUES, METADATA_BIT
from broker.assemble.event import EVENT_FEATURES
from broker.assemble.inputs import LightCurveInputs, MetadataInputs, ModelInputs, SpectrumInputs
from broker.assemble.lightcurve import (
    FOLDED_CHANNELS,
    LIGHT_CURVE_FEATURES,
    PHASE_BINS,
    POINT_CHANNELS,
    POINTS,
)
from broker.assemble.metadata import MODEL_FEATURES
from broker.inference.manifest import CALIBRATION_BINS, MODALITY_SUBSETS
from broker.models.repository import REFERENCE_SET_FILE
from broker.taxonomy import CLASS_NAMES

MODEL_REPO = Path(__file__).resolve().parents[1] / "model_repo"
EMBEDDING = 512
SPECTRUM = (3, 2575)


class _Graph:
    """A graph that is built node by node; each method returns the name of what it computes."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def dense(self, x: str, size: int, out: int) -> str:
        weight = self.random.normal(0, size**-0.5, (size, out)).astype(np.float32)
        return self.op("MatMul", x, self.constant(weight))

    def normalised(self, x: str, output: str) -> None:
        norm = self.op("ReduceL2", x, self.constant(np.array([1], np.int64)), keepdims=1)
        floor = self.op("Max", norm, self.constant(np.float32(1e-12)))
        self.nodes.append(helper.make_node("Div", [x, floor], [output]))

    def save(self, path: Path, inputs: dict[str, tuple[int, ...]], outputs: dict[str, int]) -> None:
        masks = {"points_mask", "known", "present"}
        graph = helper.make_graph(
            self.nodes,
            path.parents[1].name,
            [
                helper.make_tensor_value_info(
                    name, TensorProto.BOOL if name in masks else TensorProto.FLOAT, ["batch", *shape]
                )
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)


def _light_curve_encoder(path: Path, seed: int) -> None:
    g = _Graph(seed)
    mask = g.op("Unsqueeze", g.op("Cast", "points_mask", to=TensorProto.FLOAT), g.constant(np.array([2])))
    points = g.op("ReduceMean", g.op("Mul", "points", mask), g.constant(np.array([1])), keepdims=0)
    folded = g.op("Flatten", "folded", axis=1)
    parts = [
        g.dense(points, POINT_CHANNELS, EMBEDDING),
        g.dense(folded, FOLDED_CHANNELS * PHASE_BINS, EMBEDDING),
        g.dense("features", len(LIGHT_CURVE_FEATURES), EMBEDDING),
    ]
    g.normalised(g.op("Tanh", g.op("Sum", *parts)), "embedding")
    inputs = {
        "points": (POINTS, POINT_CHANNELS),
        "points_mask": (POINTS,),
        "folded": (FOLDED_CHANNELS, PHASE_BINS),
        "features": (len(LIGHT_CURVE_FEATURES),),
    }
    g.save(path, inputs, {"embedding": EMBEDDING})


def _spectrum_encoder(path: Path, seed: int) -> None:
    g = _Graph(seed)
    flat = g.op("Flatten", "spectra", axis=1)
    g.normalised(g.op("Tanh", g.dense(flat, SPECTRUM[0] * SPECTRUM[1], EMBEDDING)), "embedding")
    g.save(path, {"spectra": SPECTRUM}, {"embedding": EMBEDDING})


def _metadata_encoder(path: Path, seed: int) -> None:
    g = _Graph(seed)
    size = len(MODEL_FEATURES)
    known = g.op("Cast", "known", to=TensorProto.FLOAT)
    both = g.op("Concat", g.op("Mul", "values", known), known, axis=1)
    g.normalised(g.op("Tanh", g.dense(both, 2 * size, EMBEDDING)), "embedding")
    g.save(path, {"values": (size,), "known": (size,)}, {"embedding": EMBEDDING})


def _without_event(config: Path) -> None:
    """Take the input that an earlier model has not out of the warm-up's."""
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if 'key: "event"' not in line))


def _classifier(path: Path, seed: int, other: bool, event: bool) -> None:
    g = _Graph(seed)
    names = ("light_curve", "spectrum", "metadata")
    # (batch, 3, 512) of embeddings, their mean over the modalities that are present, and a linear head.
    stacked = g.op("Concat", *(g.op("Unsqueeze", n, g.constant(np.array([1]))) for n in names), axis=1)
    weight = g.op("Unsqueeze", g.op("Cast", "present", to=TensorProto.FLOAT), g.constant(np.array([2], np.int64)))
    total = g.op("ReduceSum", g.op("Mul", stacked, weight), g.constant(np.array([1])), keepdims=0)
    mean = g.op("Div", total, g.op("ReduceSum", weight, g.constant(np.array([1])), keepdims=0))
    logits = g.op("Mul", g.dense(mean, EMBEDDING, len(CLASS_NAMES)), g.constant(np.float32(40)))
    # Of no consequence for the answer, but an input that no node uses would be dropped.
    logits = g.op("Add", logits, g.op("Mul", "detections", g.constant(np.float32(0))))
    g.nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    g.normalised(mean, "embedding")
    inputs: dict[str, tuple[int, ...]] = {**dict.fromkeys(names, (EMBEDDING,)), "present": (3,), "detections": (1,)}
    outputs = {"probabilities": len(CLASS_NAMES), "embedding": EMBEDDING}
    if other:
        logit = g.op("Mul", g.dense(mean, EMBEDDING, 1), g.constant(np.float32(40)))
        if event:
            inputs["event"] = (len(EVENT_FEATURES),)
            logit = g.op("Add", logit, g.dense("event", len(EVENT_FEATURES), 1))
        g.nodes.append(helper.make_node("Sigmoid", [logit], ["other"]))
        outputs["other"] = 1
    g.save(path, inputs, outputs)


def _reference_set(folder: Path, version: str) -> str:
    """Random embeddings in every stratum; returns the checksum of the file."""
    rng = np.random.default_rng(1)
    every = np.meshgrid(np.arange(1, 8), np.array(DETECTION_BINS), np.array([5, MANY_VALUES]), np.arange(60))
    codes, points, values = (column.ravel() for column in every[:3])
    points, values = np.where(codes & LIGHT_CURVE_BIT, points, 0), np.where(codes & METADATA_BIT, values, 0)
    embeddings = rng.normal(size=(len(codes), EMBEDDING)).astype(np.float32)
    reference = ReferenceSet(
        version, f"trifid-random {version}", embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
        np.array([f"star {i}" for i in range(len(codes))]), np.resize(np.array(CLASS_NAMES), len(codes)),
        codes.astype(np.uint8), points.astype(np.int32), values.astype(np.int32), 5,
        np.repeat(rng.uniform(0, 2, len(codes)), 2).astype(np.float32), np.repeat(codes, 2).astype(np.uint8),
        np.repeat(points, 2).astype(np.int32), np.repeat(values, 2).astype(np.int32),
    )  # fmt: skip
    data = reference.to_bytes()
    (folder / REFERENCE_SET_FILE).write_bytes(data)
    return digest(data)


def build_random_repository(
    folder: Path, seed: int = 0, *, other_threshold: float | None = None, event: bool = True
) -> Path:
    """Write a complete model repository into ``folder``, with the configurations of the real one.

    With ``other_threshold``, which is that of all cells, the classifier has the output ``other``, and for that the
    input ``event``, which classifiers of before 2026.11.29 have not.
    """
    builders = {
        "light_curve_encoder": _light_curve_encoder,
        "spectrum_encoder": _spectrum_encoder,
        "metadata_encoder": _metadata_encoder,
        "classifier": partial(_classifier, other=other_threshold is not None, event=event),
    }
    checksums = {}
    for offset, (name, build) in enumerate(builders.items()):
        path = folder / name / "1" / "model.onnx"
        build(path, seed + offset)
        shutil.copy(MODEL_REPO / name / "config.pbtxt", folder / name)
        if name == "classifier" and (other_threshold is None or not event):
            _without_event(folder / name / "config.pbtxt")
        checksums[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copytree(MODEL_REPO / "trifid", folder / "trifid", dirs_exist_ok=True)
    manifest = {
        "classifier_name": "trifid-random",
        "model_version": f"0.0.{seed}",
        "classes": CLASS_NAMES,
        "conformal_thresholds": {
            subset: [round(0.05 * (1 + i), 2)] * len(CALIBRATION_BINS) for i, subset in enumerate(MODALITY_SUBSETS)
        },
        "sha256": checksums,
        "other_thresholds": None
        if other_threshold is None
        else dict.fromkeys(MODALITY_SUBSETS, [other_threshold] * len(CALIBRATION_BINS)),
        "reference_set_sha256": _reference_set(folder, f"0.0.{seed}"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


def random_inputs(present: NDArray[np.bool_], seed: int = 0) -> ModelInputs:
    """Inputs of plausible size for objects that have the modalities of ``present`` (batch, 3)."""
    rng = np.random.default_rng(seed)
    batch = len(present)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    points_mask = np.arange(POINTS) < rng.integers(10, POINTS + 1, (batch, 1))
    known = rng.random((batch, len(MODEL_FEATURES))) < 0.8
    light_curve, spectrum, metadata = (
        present[:, column].reshape(batch, *([1] * 2)).astype(np.float32) for column in range(3)
    )
    return ModelInputs(
        light_curve=LightCurveInputs(
            points=normal(POINTS, POINT_CHANNELS) * points_mask[..., None] * light_curve,
            points_mask=points_mask & present[:, :1],
            folded=normal(FOLDED_CHANNELS, PHASE_BINS) * light_curve,
            features=normal(len(LIGHT_CURVE_FEATURES)) * light_curve[:, 0],
            present=present[:, 0],
            period=np.where(present[:, 0], rng.uniform(0.1, 100, batch), np.nan),
            detections=points_mask.sum(axis=1, dtype=np.int32),
            event=np.random.default_rng([seed, 1]).random((batch, len(EVENT_FEATURES)), np.float32),
        ),
        spectrum=SpectrumInputs(spectra=normal(*SPECTRUM) * spectrum, present=present[:, 1]),
        metadata=MetadataInputs(
            values=normal(len(MODEL_FEATURES)) * known * metadata[:, 0],
            known=known & present[:, 2:],
            present=present[:, 2],
        ),
    )


def mixed_presence(batch: int, seed: int = 0) -> NDArray[np.bool_]:
    """(batch, 3) of every combination of modalities, none included; the first object has all three."""
    present = np.random.default_rng(seed).random((batch, 3)) < 0.5
    present[0] = True
    return present
