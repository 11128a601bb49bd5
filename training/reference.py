"""The reference set of a model: embeddings of labelled stars, by modalities and length, and what calibrates them.

Made with the exported models by the service's own code, so that it is of the model that serves, whatever trained it.
How, and what is real in it: docs/anomaly.md.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibrating import calibration_of, distances_of
from broker.anomaly.calibration import calibration_path
from broker.anomaly.reference_set import ReferenceSet, as_stored, digest
from broker.anomaly.shape import Shapes, shapes_of
from broker.anomaly.statistics import Objects
from broker.anomaly.strata import DETECTION_BINS, LIGHT_CURVE_BIT, known_values, strata_of
from broker.assemble.history import history_features
from broker.assemble.inputs import LightCurveInputs, MetadataInputs, ModelInputs, SpectrumInputs, subset_codes
from broker.assemble.lightcurve import assemble_light_curves
from broker.assemble.usable import usable_points
from broker.child_process import end_with_parent
from broker.errors import ConfigurationError
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.records import LightCurve
from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.tables import ObjectTable
from training.reference_stars import QUOTAS, ReferenceStars, chunks

NEIGHBOURS: Final = 5

Report = Callable[[str], None]
Inputs = TypeVar("Inputs", LightCurveInputs, SpectrumInputs, MetadataInputs)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Stars of which embeddings are made, a row each; ``is_reference`` (n,) tells those in the set."""

    rows: NDArray[np.intp]
    is_reference: NDArray[np.bool_]
    light_curve: LightCurveInputs
    spectrum: SpectrumInputs


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embeddings (n, d) of rows of the table (n,), and what they were made of."""

    rows: NDArray[np.intp]
    is_reference: NDArray[np.bool_]
    embeddings: NDArray[np.float32]
    modalities: NDArray[np.uint8]
    detections: NDArray[np.int32]
    values: NDArray[np.int32]
    by_modality: NDArray[np.float16]
    """(n, 3, d); zero where absent."""
    probabilities: NDArray[np.float32]
    """(n, 10)."""
    shapes: NDArray[np.float32]
    """(n, SHAPE) as ``shapes_of``."""


def build_reference_set(engine: OnnxEngine, data: Path, seed: int, report: Report, processes: int = 2) -> ReferenceSet:
    """The set for the models of ``engine``, from the folder ``data``; ``seed`` is that of the model's split.

    The calibration is of validation stars, which the model was not trained on: training stars lie closer to each
    other than new stars do to them, and would make every new star unusual.
    """
    stars = ReferenceStars(data, seed)
    parts: list[Embedded] = []
    with multiprocessing.get_context("spawn").Pool(processes, end_with_parent) as pool:
        for number, least in enumerate(DETECTION_BINS):
            report(f"embedding light curves of {least} points and more")
            parts += _embed_all(engine, stars, number, pool.imap)
    parts += _embed_all(engine, stars, None, map)
    joined = Embedded(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Embedded)))
    own, other = _take(joined, joined.is_reference), _take(joined, ~joined.is_reference)
    names = (engine.model_version, engine.manifest.model_version)
    return reference_of(own, other, stars.table, stars.labels, *names, report)


def reference_of(
    own: Embedded, other: Embedded, table: ObjectTable, labels: Labels, model: str, version: str, report: Report
) -> ReferenceSet:
    """The set of the embedded stars ``own`` with its calibration by ``other``, which the model has not seen."""
    embeddings = as_stored(own.embeddings)
    reference = ReferenceSet(
        version=f"{version}+{digest(embeddings.tobytes())[:8]}",
        model=model,
        embeddings=embeddings,
        object_ids=table.object_id[own.rows].astype(str),
        class_names=table.label[own.rows].astype(str),
        modalities=own.modalities,
        detections=own.detections,
        values=own.values,
        k=NEIGHBOURS,
        calibration_distances=np.zeros(len(other.rows), np.float32),
        calibration_modalities=other.modalities,
        calibration_detections=other.detections,
        calibration_values=other.values,
    )
    strata = strata_of(other.modalities, other.detections, other.values)
    reference = replace(reference, calibration_distances=distances_of(reference, other.embeddings, strata))
    report(f"calibrating scores on {len(other.rows)} embeddings")
    # A label stands for what a catalogue would say: so often the model doubts a class that is right.
    alone = own.modalities == LIGHT_CURVE_BIT
    shapes = Shapes.of(strata_of(own.modalities, own.detections, own.values)[alone], own.shapes[alone])
    return replace(reference, scores=calibration_of(reference, objects_of(other, labels.index[other.rows]), shapes))


def objects_of(stars: Embedded, label: NDArray[np.int64]) -> Objects:
    """Embedded stars as the service scores them, as if a catalogue named each one's ``label`` (m,)."""
    return Objects(
        stars.embeddings,
        stars.by_modality.astype(np.float32),
        stars.probabilities,
        (stars.modalities[:, None] >> np.arange(3) & 1).astype(np.bool_),
        stars.detections,
        stars.values,
        1.0 - stars.probabilities[np.arange(len(label)), label].astype(np.float64),
        stars.shapes,
    )


def write_reference_set(repository: Path, data: Path, report: Report) -> ReferenceSet:
    """Make the set for the models in ``repository``, write it beside them and enter it in the manifest.

    Raises ConfigurationError where the models are not those of the manifest.
    """
    engine = OnnxEngine(repository)
    try:
        seed = engine.manifest.training.get("seed")
        if not isinstance(seed, int):
            raise ConfigurationError(
                f"{repository}/manifest.json does not say with which seed the model was trained (training.seed): "
                f"which stars it has not seen follows from it"
            )
        reference = build_reference_set(engine, data, seed, report)
    finally:
        engine.close()
    contents = reference.to_bytes()
    (repository / REFERENCE_SET_FILE).write_bytes(contents)
    if reference.scores is not None:
        calibration_path(repository / REFERENCE_SET_FILE).write_bytes(reference.scores.to_bytes())
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["reference_set_sha256"] = digest(contents)
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    report(f"{repository / REFERENCE_SET_FILE}: {len(reference)} embeddings, {len(contents) / 1e6:.1f} MB")
    return reference


def _embed_all(
    engine: OnnxEngine, stars: ReferenceStars, bin_number: int | None, over: Callable[..., Any]
) -> list[Embedded]:
    """Embeddings of one bin of lengths, in every subset with a light curve; None: in those without."""
    rng = np.random.default_rng([stars.seed, 4, len(DETECTION_BINS) if bin_number is None else bin_number])
    least = DETECTION_BINS[0 if bin_number is None else bin_number]
    reference, calibration = stars.reference(least, rng), stars.calibration(least, rng)
    rows = np.concatenate([reference, calibration])
    is_reference = np.arange(len(rows)) < len(reference)
    if bin_number is None:
        curves = [LightCurve.empty()] * len(rows)
        light_curve = assemble_light_curves(curves)
    else:
        curves = [stars.history(row, bin_number, rng) for row in rows]
        light_curve = _joined(list(over(assemble_light_curves, list(chunks(curves)))))
    history = np.concatenate([history_features(usable_points(part)) for part in chunks(curves)])
    metadata = tuple(stars.metadata(rows, is_reference, history, many, rng) for many in (False, True))
    sample = _Sample(rows, is_reference, light_curve, stars.spectra(rows, is_reference, rng))
    label = stars.labels.index[rows]
    return [
        _embed(engine, sample, np.array(subset), values, stars.quotas(total, least), label)
        for subset, total in QUOTAS.items()
        if subset[0] == (bin_number is not None)
        for values in (metadata if subset[2] else metadata[:1])
    ]


def _embed(
    engine: OnnxEngine,
    sample: _Sample,
    subset: NDArray[np.bool_],
    metadata: MetadataInputs,
    quota: NDArray[np.intp],
    label: NDArray[np.int64],
) -> Embedded:
    """Embeddings from the modalities of ``subset`` alone, of stars that have them: ``quota`` (10,) by class."""
    has = np.stack([sample.light_curve.present, sample.spectrum.present, metadata.present], axis=1)
    usable = (has | ~subset).all(axis=1)
    own = usable & sample.is_reference
    own_class = [np.flatnonzero(own & (label == number))[: quota[number]] for number in range(len(CLASS_NAMES))]
    rows = np.concatenate([np.flatnonzero(usable & ~sample.is_reference), *own_class])
    made, by_modality, probabilities = [], [], []
    for part in chunks(rows):
        inputs = ModelInputs(
            _rows_of(sample.light_curve, part, subset[0]),
            _rows_of(sample.spectrum, part, subset[1]),
            _rows_of(metadata, part, subset[2]),
        )
        predictions = engine.predict(inputs)
        made.append(predictions.embeddings)
        each = predictions.by_modality
        assert each is not None  # ONNX Runtime in this process always gives it
        by_modality.append(each.astype(np.float16))
        probabilities.append(predictions.probabilities)
    embeddings = np.concatenate(made)
    good = embeddings.any(axis=1)  # the engine gives zeros where the model gives no finite values
    rows = rows[good]
    return Embedded(
        sample.rows[rows],
        sample.is_reference[rows],
        embeddings[good],
        np.full(len(rows), subset_codes(subset[None])[0], np.uint8),
        np.where(subset[0], sample.light_curve.detections[rows], 0).astype(np.int32),
        np.where(subset[2], known_values(metadata)[rows], 0).astype(np.int32),
        np.concatenate(by_modality)[good],
        np.concatenate(probabilities)[good],
        shapes_of(sample.light_curve.features[rows], np.where(subset[0], sample.light_curve.detections[rows], 0)),
    )


def _take(stars: Embedded, chosen: NDArray[np.bool_]) -> Embedded:
    return Embedded(*(getattr(stars, field.name)[chosen] for field in fields(stars)))


def _rows_of(inputs: Inputs, rows: NDArray[np.intp], present: bool) -> Inputs:
    """Some rows of one modality's inputs; marked absent unless ``present``."""
    taken = {field.name: getattr(inputs, field.name)[rows] for field in fields(inputs)}
    return replace(inputs, **{**taken, "present": taken["present"] & present})


def _joined(parts: Sequence[LightCurveInputs]) -> LightCurveInputs:
    return LightCurveInputs(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(LightCurveInputs)}
    )
