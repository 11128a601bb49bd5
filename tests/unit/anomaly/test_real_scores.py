"""Anomaly scores of real stars and real alerts, with catalogue values and spectra as they come.

Real are the light curves, the catalogue values of the ASAS stars, the spectra (of other stars of about the right type)
and the alerts; the alerts' catalogue values are those of real Gaia stars of other places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from broker.anomaly.calibration import with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.batch import IncomingMessage, Received
from broker.errors import DecodeError
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.publish.topics import OutputTopics
from broker.records import METADATA_FEATURES, SOURCE_FEATURES, Alert, Annotation, ObjectState, SourceMetadata, Spectrum
from broker.sources import iter_packets
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from tests.random_models import MODEL_REPO
from training.crops import shorten
from training.datasets.splits import split
from training.datasets.tables import TIME_SYSTEM, ObjectTable, load_objects
from training.simulate.metadata import Donors, load_donors
from training.stream.material import packet_colors

THRESHOLD, MOST = 0.99, 0.05
STARS = 220


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    engine = OnnxEngine(MODEL_REPO)
    path = MODEL_REPO / REFERENCE_SET_FILE
    reference = with_scores(ReferenceSet.load_npz(path, engine.manifest.reference_set_sha256), path)
    yield Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference)
    engine.close()


@pytest.fixture(scope="module")
def table(shared: Path) -> ObjectTable:
    return load_objects(shared / "data")


@pytest.fixture(scope="module")
def stars(table: ObjectTable) -> NDArray[np.intp]:
    """Held-out ASAS stars of which Gaia's G, BP and RP are known: neither in the set nor in its calibration."""
    _, _, test = split(table, 0)
    known = (table.survey[test] == "asas") & np.isfinite(table.measured["gaia_g"][test])
    labelled = np.array([label is not None for label in table.label[test]])
    rows: NDArray[np.intp] = test[known & labelled][:STARS]
    assert len(rows) == STARS
    return rows


def metadata_of(table: ObjectTable, row: int) -> SourceMetadata:
    """The star's own values: V, Gaia's G and BP - RP, Hipparcos's parallax where known."""
    values = np.full(len(METADATA_FEATURES), np.nan, np.float32)
    own = {
        "mean_vmag": table.mean_magnitude[row], "phot_g_mean_mag": table.measured["gaia_g"][row],
        "bp_rp": table.measured["gaia_bp"][row] - table.measured["gaia_rp"][row],
    }  # fmt: skip
    if table.measured["hip_e_plx"][row] > 0:
        own |= {"parallax": table.measured["hip_plx"][row], "parallax_error": table.measured["hip_e_plx"][row]}
    for name, value in own.items():
        values[METADATA_FEATURES.index(name)] = value
    return SourceMetadata(values)


def spectra_of(shared: Path) -> list[Spectrum]:
    with np.load(shared / "data" / "lamost_spectra.npz", allow_pickle=False) as file:
        wave, flux, variance, offsets = (file[name] for name in ("wave", "flux", "ivar", "offsets"))
    inverse = variance.astype(np.float64)
    error = np.where(inverse > 0, np.where(inverse > 0, inverse, 1.0) ** -0.5, np.nan).astype(np.float32)
    return [Spectrum(wave[a:b], flux[a:b], error[a:b]) for a, b in pairwise(offsets.tolist())]


def annotate(pipeline: Pipeline, states: Sequence[ObjectState]) -> list[Annotation]:
    alert = Alert("ztf", 1, 1, "o", 0.0, 0.0, 60000.0, "ztf:g", states[0].light_curve, "")
    received = [Received(replace(alert, object_id=s.object_id), IncomingMessage(b"", 60000.0)) for s in states]
    return pipeline.annotate_states(received, states)


def share(annotations: Sequence[Annotation], modalities: tuple[str, ...]) -> float:
    """Share at or above the threshold, by the distance or by all parts, whichever is larger; each has both scores."""
    assert {a.modalities for a in annotations} == {modalities}
    assert all(a.anomaly_reason is None for a in annotations)
    scores = np.array([(a.anomaly_score, a.combined_anomaly) for a in annotations], np.float64)
    assert np.isfinite(scores).all()
    return float((scores >= THRESHOLD).mean(axis=0).max())


@pytest.mark.parametrize(("points", "most"), [(None, MOST), (30, 0.08), (7, 0.1)])
def test_metadata_of_a_star_are_no_anomaly(
    pipeline: Pipeline, table: ObjectTable, stars: NDArray[np.intp], points: int | None, most: float
) -> None:
    """Few known values, as the star has them: all scores were 0.99 and more."""
    rng = np.random.default_rng(0)
    states = [
        ObjectState(str(r), table.ra[r], table.dec[r], table.light_curves[r], time_system=TIME_SYSTEM) for r in stars
    ]
    if points is not None:
        curves = [shorten(s.light_curve, min(points, len(s.light_curve)), rng) for s in states]
        states = [replace(s, light_curve=curve) for s, curve in zip(states, curves, strict=True)]
    assert share(annotate(pipeline, states), ("light_curve",)) < most
    known = [replace(s, metadata=metadata_of(table, r)) for s, r in zip(states, stars, strict=True)]
    assert share(annotate(pipeline, known), ("light_curve", "metadata")) < most


def test_a_real_spectrum_is_no_anomaly(
    pipeline: Pipeline, table: ObjectTable, stars: NDArray[np.intp], shared: Path
) -> None:
    """Spectra of other stars, of any type: that of a Mira may be a dwarf's, and a few such pairs are rare indeed."""
    spectra = spectra_of(shared)
    chosen = np.random.default_rng(1).integers(0, len(spectra), len(stars))
    states = [
        ObjectState(
            str(r), table.ra[r], table.dec[r], table.light_curves[r], spectrum=spectra[i], time_system=TIME_SYSTEM
        )
        for r, i in zip(stars, chosen, strict=True)
    ]
    assert share(annotate(pipeline, states), ("light_curve", "spectrum")) < MOST
    known = [replace(s, metadata=metadata_of(table, r)) for s, r in zip(states, stars, strict=True)]
    assert share(annotate(pipeline, known), ("light_curve", "spectrum", "metadata")) < MOST
    alone = [replace(s, light_curve=s.light_curve.empty()) for s in states]
    assert share(annotate(pipeline, alone), ("spectrum",)) < MOST


def test_real_alerts_with_catalogue_values_do_not_fill_the_anomaly_topic(pipeline: Pipeline, shared: Path) -> None:
    """As after `trifid catalog load gaia`: it filled with all of them."""
    donors: Donors = load_donors(shared / "data")
    rng = np.random.default_rng(2)
    payloads = [packet.payload for packet in iter_packets([shared / "alerts" / "ztf" / "native.tar"])]
    alerts: list[Alert] = []
    for records in Decoder().decode_batch(payloads):
        assert not isinstance(records, DecodeError)
        alerts += [record for record in records if isinstance(record, Alert)]
    states = MemoryStore().update(alerts)
    gaia = [METADATA_FEATURES.index(n) for n in ("phot_g_mean_mag", "bp_rp", "parallax", "parallax_error",
            "pmra", "pmra_error", "pmdec", "pmdec_error", "ruwe")]  # fmt: skip
    donor_color, _, _ = packet_colors(donors.values[:, METADATA_FEATURES.index("bp_rp")])
    catalogued = []
    for state in states:
        packet = np.full(len(SOURCE_FEATURES), np.nan, np.float32) if state.metadata is None else state.metadata.values
        values = np.array(packet)
        # Gaia's values of a star of the same colour, moved to where it is as bright as this one: what does not go
        # with the packet's own colours and magnitudes is unusual, and rightly so.
        color, magnitude = packet[SOURCE_FEATURES.index("ps1_g_r")], packet[SOURCE_FEATURES.index("ps1_r_mag")]
        near = np.argsort(np.abs(donor_color - color))[:20] if np.isfinite(color) else np.arange(len(donors.values))
        donor = donors.values[rng.choice(near)].copy()
        g = METADATA_FEATURES.index("phot_g_mean_mag")
        fainter = magnitude - donor[g] if np.isfinite(magnitude) else 0.0
        donor[g] += fainter
        for name in ("parallax", "pmra", "pmdec"):
            donor[METADATA_FEATURES.index(name)] *= 10 ** (-0.2 * fainter)
        values[gaia] = donor[gaia]
        catalogued.append(replace(state, metadata=SourceMetadata(np.where(np.isnan(values), packet, values))))
    topics = OutputTopics("trifid", THRESHOLD)
    labels = pq.read_table(shared / "data" / "multiband" / "ztf_alert_labels.parquet", columns=["name"])
    stars = set(labels["name"].to_pylist())
    variable = np.array([state.object_id in stars for state in states])
    assert variable.sum() > 100
    for group in (states, catalogued):
        scored = [
            (a, v) for a, v in zip(annotate(pipeline, group), variable, strict=True) if a.anomaly_score is not None
        ]
        assert len(scored) > 200
        strange = np.array(["trifid.ztf.anomaly" in topics.of(a) for a, _ in scored])
        known = np.array([v for _, v in scored])
        assert strange[known].mean() < 0.05
        # The others are supernovae, galaxies, asteroids and artefacts as well: some of these are to be unusual.
        assert strange.mean() < 0.2
