"""What is counted of alerts, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.strata import strata_of
from broker.bands import BAND_CODE
from broker.drift.counts import AXES, CLASSES, EDGES, FEATURES, SCALE, SIZE, SLICES, Counts, Features, count
from broker.models.repository import REFERENCE_SET_FILE
from broker.records import Alert, Annotation, LightCurve, ObjectState, PhotometryKind
from tests.random_models import MODEL_REPO


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    return ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)


@pytest.fixture(scope="module")
def features(reference: ReferenceSet) -> Features:
    return Features.of(reference)


def curve(*points: tuple[float, float, str, PhotometryKind], error: float = 0.05) -> LightCurve:
    """From time, magnitude (of a zero point of its own), band and kind; errors are this share of the flux."""
    mjd, magnitude, band, kind = zip(*points, strict=True)
    flux = 1e6 * 10 ** (-0.4 * np.array(magnitude))
    return LightCurve(
        np.array(mjd, np.float64), (flux - 2e5).astype(np.float32), (error * flux).astype(np.float32),
        np.full(len(mjd), 2e5, np.float32), np.array([BAND_CODE[b] for b in band], np.uint8), np.array(kind, np.uint8),
    )  # fmt: skip


D, LIMIT = PhotometryKind.DETECTION, PhotometryKind.LIMIT
STAR = curve(
    (100.0, 0.0, "ztf:g", D), (101.0, 0.2, "ztf:g", D), (101.5, 5.0, "ztf:g", LIMIT), (102.0, -0.62, "ztf:r", D),
    (102.5, -3.0, "lsst:r", D), (103.0, 0.37, "ztf:g", D),
)  # fmt: skip


def annotation(best: str, combined: float | None, probability: float = 0.83) -> Annotation:
    names, probabilities = (
        ((best, "EW"), (probability, 1 - probability)) if best != "NotClassified" else ((best,), (1.0,))
    )
    return Annotation(
        "ztf", 1, 1, "a", 0.0, 0.0, 103.0, names, probabilities, ("light_curve",), 5, None, combined_anomaly=combined
    )


def alert(light_curve: LightCurve, band: str = "ztf:g", mjd: float = 103.0) -> Alert:
    return Alert("ztf", 1, 1, "a", 0.0, 0.0, mjd, band, light_curve, "1")


def counted(
    features: Features, reference: ReferenceSet, light_curve: LightCurve, band: str = "ztf:g", best: str = "RRAB",
    combined: float | None = 0.42, row: int | None = 0,
) -> Counts:  # fmt: skip
    embedding = np.zeros((1, 512), np.float32) if row is None else reference.embeddings[row : row + 1]
    strata = strata_of(reference.modalities[:1], reference.detections[:1], reference.values[:1])
    state = ObjectState("a", 0.0, 0.0, light_curve)
    return count(features, [alert(light_curve, band)], [state], [annotation(best, combined)], embedding, strata)


def only_bin(vector: np.ndarray, quantity: str) -> tuple[float, float]:
    """Between which edges the one alert was counted."""
    bins = vector[SLICES[quantity]]
    assert bins.sum() == 1
    edges = [-np.inf, *EDGES[quantity], np.inf]
    at = int(bins.argmax())
    return edges[at], edges[at + 1]


def test_one_alert_by_hand(features: Features, reference: ReferenceSet) -> None:
    ((group, vector),) = counted(features, reference, STAR).items()
    assert group == ("ztf", "ztf:g")
    assert vector.shape == (SIZE,)
    assert vector[0] == 1
    assert vector[SLICES["classes"]].tolist() == [int(name == "RRAB") for name in CLASSES]
    # 0.37 - (0.0 + 0.2) / 2 = 0.27 mag; the limit and LSST's point are no part of it.
    low, high = only_bin(vector, "brightness")
    assert low < 0.27 < high
    assert high - low == pytest.approx(0.05)
    # (0.0 + 0.2 + 0.37) / 3 + 0.62 = 0.81 mag redder in ztf:r.
    low, high = only_bin(vector, "colour")
    assert low < 0.81 < high
    low, high = only_bin(vector, "error")
    assert low < np.log10(0.05) < high
    assert only_bin(vector, "anomaly") == pytest.approx((0.40, 0.45))
    assert only_bin(vector, "probability") == pytest.approx((0.80, 0.85))


def test_what_is_not_known_is_not_counted(features: Features, reference: ReferenceSet) -> None:
    alone = curve((103.0, 0.0, "ztf:i", D))
    ((group, vector),) = counted(features, reference, alone, "ztf:i", "NotClassified", None, row=None).items()
    assert group == ("ztf", "ztf:i")
    assert vector[SLICES["classes"]].tolist() == [int(name == "NotClassified") for name in CLASSES]
    for quantity in ("brightness", "colour", "anomaly", "probability", "embedding"):
        assert not vector[SLICES[quantity]].any(), quantity
    assert vector[SLICES["error"]].sum() == 1
    # A difference alone, without a reference, is no brightness; neither is a total flux below zero.
    for reference_flux in (np.nan, -1e7):
        faint = replace(STAR, reference_flux=np.full(len(STAR), reference_flux, np.float32))
        (vector,) = counted(features, reference, faint).values()
        assert not any(vector[SLICES[quantity]].any() for quantity in ("brightness", "colour", "error"))
    (vector,) = counted(features, reference, LightCurve.empty()).values()
    assert vector[0] == 1


def test_a_batch_is_the_sum_of_its_alerts(features: Features, reference: ReferenceSet) -> None:
    later = curve((99.0, 1.0, "ztf:r", D), (103.0, 0.1, "ztf:r", D))
    parts = [(STAR, "ztf:g"), (later, "ztf:r"), (STAR, "ztf:g")]
    strata = strata_of(reference.modalities[:3], reference.detections[:3], reference.values[:3])
    together = count(
        features, [alert(*part) for part in parts], [ObjectState("a", 0.0, 0.0, part[0]) for part in parts],
        [annotation("RRAB", 0.1 * i) for i in range(3)], reference.embeddings[:3], strata,
    )  # fmt: skip
    assert sorted(together) == [("ztf", "ztf:g"), ("ztf", "ztf:r")]
    one = [
        count(
            features, [alert(*part)], [ObjectState("a", 0.0, 0.0, part[0])], [annotation("RRAB", 0.1 * i)],
            reference.embeddings[i : i + 1], strata[i : i + 1],
        )
        for i, part in enumerate(parts)
    ]  # fmt: skip
    np.testing.assert_array_equal(together["ztf", "ztf:g"], one[0]["ztf", "ztf:g"] + one[2]["ztf", "ztf:g"])
    np.testing.assert_array_equal(together["ztf", "ztf:r"], one[1]["ztf", "ztf:r"])


def test_features_of_the_reference_set_have_mean_zero_and_uncorrelated_axes(
    features: Features, reference: ReferenceSet
) -> None:
    strata = strata_of(reference.modalities, reference.detections, reference.values)
    found = features(reference.embeddings, strata)
    assert found.shape == (len(reference), FEATURES)
    for number in np.unique(strata):
        np.testing.assert_allclose(found[strata == number, AXES:].mean(axis=0), 0.0, atol=1e-4)
    # In units of the scatter within strata; clipping at six of them takes a little.
    scatter = np.cov(found[:, :AXES].T)
    np.testing.assert_allclose(np.diag(scatter), 1.0, atol=0.05)
    np.testing.assert_allclose(scatter - np.diag(np.diag(scatter)), 0.0, atol=0.05)


def test_sums_of_features_are_their_sums(features: Features, reference: ReferenceSet) -> None:
    strata = strata_of(reference.modalities[:40], reference.detections[:40], reference.values[:40])
    steps = np.rint(features(reference.embeddings[:40], strata) * SCALE).astype(np.int64)
    states = [ObjectState("a", 0.0, 0.0, STAR)] * 40
    (vector,) = count(
        features, [alert(STAR)] * 40, states, [annotation("RRAB", 0.5)] * 40, reference.embeddings[:40], strata
    ).values()
    own = vector[SLICES["embedding"]]
    assert own[0] == 40
    np.testing.assert_array_equal(own[1 : 1 + FEATURES], steps.sum(axis=0))
    expected = np.sum([np.outer(row, row) for row in steps], axis=0)
    np.testing.assert_array_equal(own[1 + FEATURES :], expected[np.triu_indices(FEATURES)])
