from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.anomaly.reference_set import MIN_CALIBRATION, MIN_EMBEDDINGS
from broker.anomaly.scores import nearest, score
from broker.anomaly.strata import DETECTION_BINS, every_stratum, strata_of, stratum_name
from broker.assemble.inputs import subset_codes
from tests.unit.anomaly.sets import LIGHT_CURVE, METADATA, reference_set, unit

ALONE, WITH_METADATA = [True, False, False], [True, False, True]


def strata(present: object, detections: int | NDArray[np.int_], values: int = 5) -> NDArray[np.intp]:
    codes = subset_codes(np.array(present, np.bool_))
    return strata_of(codes, np.broadcast_to(detections, codes.shape), np.full(len(codes), values))


@pytest.mark.parametrize("size", [7, 200, 512, 1000])
def test_nearest_are_those_of_a_plain_search(size: int) -> None:
    stored, queries = unit(size), unit(20, seed=1)
    distance, index = nearest(stored, queries, 7)
    plain = np.linalg.norm(stored[None] - queries[:, None], axis=2)
    np.testing.assert_array_equal(index, np.argsort(plain, axis=1)[:, :7])
    np.testing.assert_allclose(distance, np.sort(plain, axis=1)[:, :7], atol=1e-5)


def test_a_subset_of_the_modalities_and_a_range_of_lengths_are_a_stratum() -> None:
    present = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 1]])
    detections, values = np.array([5, 9, 10, 0, 7, 1000, 1000, 0]), np.array([0, 9, 0, 0, 9, 8, 9, 9])
    found = strata_of(subset_codes(present.astype(np.bool_)), detections, values).tolist()
    assert [stratum_name(s) for s in found] == [
        "light_curve, 5 to 9 points", "light_curve, 5 to 9 points",  # values count for nothing without metadata
        "light_curve, 10 to 19 points", "spectrum", "spectrum",  # nor points without a light curve
        "light_curve+metadata, 200 points or more, fewer than 9 known values",
        "light_curve+metadata, 200 points or more, 9 known values or more", "metadata, 9 known values or more",
    ]  # fmt: skip
    assert len(set(found)) == 6
    assert strata([[False] * 3], 30).tolist() == [-1]
    assert len(every_stratum()) == 6 * len(DETECTION_BINS) + 5


def test_a_stored_object_finds_itself_and_is_no_anomaly() -> None:
    stored = reference_set(unit(300))
    scores = score(stored, np.concatenate([stored.embeddings[:10], unit(1, seed=9)]), strata([ALONE] * 11, 30))
    assert [row[0].object_id for row in scores.neighbours[:10]] == [f"star {i}" for i in range(10)]
    assert all(row[0].distance == pytest.approx(0, abs=1e-3) for row in scores.neighbours[:10])
    assert scores.distance[10] > scores.distance[:10].max()
    assert scores.reasons == [None] * 11


def test_an_object_is_compared_with_what_was_made_of_the_same() -> None:
    """Two clouds: embeddings of light curves alone at one end of the sphere, those with metadata at the other."""
    cloud = unit(600)
    cloud[:, 0] = np.abs(cloud[:, 0]) + np.where(np.arange(600) < 300, 20.0, -20.0)
    cloud /= np.linalg.norm(cloud, axis=1, keepdims=True)
    codes = np.where(np.arange(600) < 300, LIGHT_CURVE, LIGHT_CURVE + METADATA).astype(np.uint8)
    stored = reference_set(cloud, codes, distances=np.linspace(0.0, 0.2, 200, dtype=np.float32))
    rows = np.array([0, 300, 1, 301])
    present = np.array([ALONE, WITH_METADATA] * 2)
    scores = score(stored, cloud[rows], strata(present, 30))
    assert [n[0].object_id for n in scores.neighbours] == ["star 0", "star 300", "star 1", "star 301"]
    assert (scores.percentile < 0.99).all()
    # The same embeddings against the other stratum: as far as can be.
    crossed = score(stored, cloud[rows], strata(present[::-1], 30))
    assert (crossed.percentile == 1.0).all()


def test_each_row_of_a_batch_is_scored_as_if_alone() -> None:
    codes = np.repeat([1, 3, 5, 7], 120).astype(np.uint8)
    points = np.tile(np.repeat([7, 30], 60), 4).astype(np.int32)
    stored = reference_set(unit(480), codes, points)
    queries = unit(40, seed=3)
    present = np.array([[True, bool(i & 1), bool(i & 2)] for i in range(40)])
    detections = np.where(np.arange(40) % 3, 8, 25)
    together = score(stored, queries, strata(present, detections))
    for row in range(40):
        alone = score(stored, queries[row : row + 1], strata(present[row : row + 1], detections[row : row + 1]))
        assert alone.distance[0] == pytest.approx(together.distance[row], abs=1e-6)
        assert alone.percentile[0] == together.percentile[row]
        assert [n.object_id for n in alone.neighbours[0]] == [n.object_id for n in together.neighbours[row]]


def test_percentiles_are_those_of_the_stratums_calibration() -> None:
    distances, _ = nearest(unit(2000), unit(1000, seed=4), 5)
    stored = reference_set(unit(2000), distances=distances.mean(axis=1))
    percentile = score(stored, unit(500, seed=5), strata([ALONE] * 500, 30)).percentile
    assert np.mean(percentile < 0.5) == pytest.approx(0.5, abs=0.1)
    assert np.mean(percentile > 0.9) == pytest.approx(0.1, abs=0.06)


def test_no_score_and_the_reason_where_a_stratum_has_too_little() -> None:
    codes = np.repeat([1, 2, 4, 5], [100, MIN_EMBEDDINGS - 1, 100, 100]).astype(np.uint8)
    points = np.where(codes & 1, 30, 0).astype(np.int32)
    stored = reference_set(unit(len(codes)), codes, points)
    fewer = np.flatnonzero(stored.calibration_modalities == 4)[MIN_CALIBRATION - 1 :]
    kept = np.setdiff1d(np.arange(len(stored.calibration_distances)), fewer)
    stored = type(stored)(
        stored.version, stored.model, stored.embeddings, stored.object_ids, stored.class_names, stored.modalities,
        stored.detections, stored.values, stored.k, stored.calibration_distances[kept],
        stored.calibration_modalities[kept], stored.calibration_detections[kept], stored.calibration_values[kept],
    )  # fmt: skip
    present = np.array([ALONE, [0, 1, 0], [0, 0, 1], [0, 1, 1], ALONE, [0, 0, 0]], np.bool_)
    scores = score(stored, unit(6, seed=6), strata(present, np.array([30, 0, 0, 0, 300, 0])))
    version = "the reference set 1.0+abcdef01 has"
    assert scores.reasons == [
        None,
        f"{version} 49 embeddings of spectrum, 50 are needed",
        f"{version} 99 calibration distances of metadata, fewer than 9 known values, 100 are needed",
        f"{version} nothing of spectrum+metadata, fewer than 9 known values",
        f"{version} nothing of light_curve, 200 points or more",
        "no modality is present",
    ]
    assert np.isnan(scores.percentile).tolist() == [False, True, True, True, True, True]
    assert np.isnan(scores.distance[1:]).all()
    assert scores.neighbours[1:] == [()] * 5
