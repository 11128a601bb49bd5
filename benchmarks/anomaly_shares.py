"""Shares of real stars and real alerts with an anomaly score of 0.99 and more, as docs/anomaly.md has them.

``python -m benchmarks.anomaly_shares [SHARED]``: held-out ASAS stars with Gaia values of their own, by modalities and
number of points, with spectra of other stars of any type; and ZTF's public sample of alerts, by what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from broker.anomaly.reference_set import ReferenceSet
from broker.errors import DecodeError
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import Alert, ObjectState
from broker.sources import iter_packets
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from tests.random_models import MODEL_REPO
from tests.unit.anomaly.test_real_scores import THRESHOLD, annotate, metadata_of, spectra_of
from training.crops import shorten
from training.datasets.outside import GALAXY_SCORE
from training.datasets.splits import split
from training.datasets.tables import TIME_SYSTEM, load_objects


def strange(pipeline: Pipeline, states: Sequence[ObjectState]) -> list[bool | None]:
    """Of each whether its score reaches THRESHOLD; None where it has none."""
    scores = [annotation.anomaly_score for annotation in annotate(pipeline, states)]
    return [None if score is None else score >= THRESHOLD for score in scores]


def stars(pipeline: Pipeline, shared: Path) -> None:
    """Print the table of held-out stars."""
    table, spectra = load_objects(shared / "data"), spectra_of(shared)
    test = split(table, 0)[2]
    known = (table.survey[test] == "asas") & np.isfinite(table.measured["gaia_g"][test])
    rows = test[known & np.array([label is not None for label in table.label[test]])]
    other = np.random.default_rng(1).integers(0, len(spectra), len(rows))
    print(f"{len(rows)} stars")
    for points in (None, 30, 7):
        rng = np.random.default_rng(0)
        curves = [table.light_curves[row] for row in rows]
        if points is not None:
            curves = [shorten(curve, min(points, len(curve)), rng) for curve in curves]
        alone = [
            ObjectState(str(row), table.ra[row], table.dec[row], curve, time_system=TIME_SYSTEM)
            for row, curve in zip(rows, curves, strict=True)
        ]
        known_values = [replace(s, metadata=metadata_of(table, row)) for s, row in zip(alone, rows, strict=True)]
        all_three = [replace(s, spectrum=spectra[i]) for s, i in zip(known_values, other, strict=True)]
        shares = [np.mean([bool(s) for s in strange(pipeline, own)]) for own in (alone, known_values, all_three)]
        print(f"{points or 'all'} points: " + ", ".join(f"{share:.3f}" for share in shares))


def alerts(pipeline: Pipeline, shared: Path) -> None:
    """Print the counts of ZTF's sample."""
    payloads = [packet.payload for packet in iter_packets([shared / "alerts" / "ztf" / "native.tar"])]
    found = [a for records in Decoder().decode_batch(payloads) if not isinstance(records, DecodeError) for a in records]
    decoded = [alert for alert in found if isinstance(alert, Alert)]
    states = MemoryStore().update(decoded)
    labels = pq.read_table(shared / "data" / "multiband" / "ztf_alert_labels.parquet", columns=["name"])
    labelled, latest = set(labels["name"].to_pylist()), {alert.object_id: alert for alert in decoded}
    counts: dict[str, list[bool]] = {}
    for state, score in zip(states, strange(pipeline, states), strict=True):
        alert = latest[state.object_id]
        galaxy = alert.star_score is not None and alert.star_score < GALAXY_SCORE
        kind = "moving" if alert.solar_system else "beside a galaxy" if galaxy else "none of these"
        if score is not None:
            counts.setdefault("variable star" if state.object_id in labelled else kind, []).append(score)
    for kind, scores in counts.items():
        print(f"{kind}: {sum(scores)} of {len(scores)}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "shared"
    engine = OnnxEngine(MODEL_REPO)
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE, engine.manifest.reference_set_sha256)
    line = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference)
    stars(line, folder)
    alerts(line, folder)
    engine.close()
