"""Scores, strata and what a file may hold: values worked out by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from broker.anomaly.reference_set import ReferenceSet, _quantise, as_stored
from broker.anomaly.scores import nearest, score
from broker.anomaly.strata import known_values, strata_of, stratum_name
from broker.assemble.inputs import MetadataInputs, subset_codes
from broker.assemble.metadata import MODEL_FEATURES
from broker.errors import ConfigurationError
from broker.records import SOURCE_FEATURES
from tests.unit.anomaly.sets import LIGHT_CURVE, reference_set, turned, unit


def chord(degrees: float) -> float:
    return float(2 * np.sin(np.radians(degrees) / 2))


def test_the_distance_is_the_mean_of_the_k_nearest_and_the_score_its_rank() -> None:
    # k = 5: those at 1, 2, 3, 4 and 5 degrees; the other 55 are behind.
    angles = [1.0, 2.0, 3.0, 4.0, 5.0, *np.linspace(120, 240, 55)]
    mean = float(np.mean([chord(a) for a in range(1, 6)]))
    own = np.array([0.01] * 30 + [0.04] * 40 + [0.1] * 30, np.float32)
    scores = score(reference_set(turned(*angles), distances=own), turned(0.0), strata_of(*row(1, 30, 0)))
    assert scores.distance[0] == pytest.approx(mean, rel=1e-5)
    assert 0.04 < mean < 0.1
    assert scores.percentile[0] == pytest.approx(0.7)
    assert [n.object_id for n in scores.neighbours[0]] == [f"star {i}" for i in range(5)]
    assert [n.distance for n in scores.neighbours[0]] == pytest.approx([chord(a) for a in range(1, 6)], rel=1e-4)
    assert {n.class_name for n in scores.neighbours[0]} == {"EW"}
    assert (scores.version, scores.reasons) == ("1.0+abcdef01", [None])


def row(code: int, detections: int, values: int) -> tuple[Any, Any, Any]:
    return np.array([code]), np.array([detections]), np.array([values])


def test_distances_that_are_as_large_count_as_no_larger() -> None:
    own = np.array([0.0] * 25 + [1.0] * 75, np.float32)
    scores = score(reference_set(turned(*[10.0] * 60), distances=own), turned(10.0), strata_of(*row(1, 30, 0)))
    assert (scores.distance[0], scores.percentile[0]) == (0.0, 0.25)


def test_an_object_of_several_embeddings_is_named_once_at_its_nearest() -> None:
    stored = reference_set(turned(1.0, 2.0, 3.0, 4.0, 5.0, *np.linspace(120, 240, 55)))
    stored.object_ids[[0, 2]] = "twice"
    (found,) = score(stored, turned(0.0), strata_of(*row(1, 30, 0))).neighbours
    assert [n.object_id for n in found] == ["twice", "star 1", "star 3", "star 4"]
    assert found[0].distance == pytest.approx(chord(1.0), rel=1e-4)


def test_rows_of_the_second_stratum_are_named_by_their_own_place_in_the_set() -> None:
    codes = np.repeat([1, 3], 60).astype(np.uint8)
    stored = reference_set(np.concatenate([turned(*np.linspace(0, 59, 60))] * 2), codes)
    scores = score(stored, turned(0.0, 0.0), strata_of(np.array([3, 1]), np.array([30, 30]), np.array([0, 0])))
    assert [found[0].object_id for found in scores.neighbours] == ["star 60", "star 0"]


def test_close_vectors_keep_their_digits() -> None:
    base = unit(1, d=512)[0].astype(np.float64)
    other = base + 1e-4 * np.eye(512)[0]
    other /= np.linalg.norm(other)
    distance, index = nearest(np.stack([base]).astype(np.float32), np.stack([other]).astype(np.float32), 1)
    assert index.tolist() == [[0]]
    assert distance[0, 0] == pytest.approx(np.linalg.norm(other - base), rel=0.02)


@pytest.mark.parametrize(
    ("code", "detections", "values", "number"),
    [
        (1, 5, 0, 12), (1, 9, 99, 12), (1, 10, 0, 14), (1, 19, 0, 14), (1, 20, 0, 16), (1, 200, 0, 22), (1, 0, 0, 12),
        (2, 300, 99, 24), (4, 300, 8, 48), (4, 300, 9, 49), (5, 50, 9, 67), (7, 100, 8, 92), (0, 300, 99, -1),
    ],
)  # fmt: skip
def test_the_number_of_a_stratum(code: int, detections: int, values: int, number: int) -> None:
    """Twelve for each code: six lengths, each with fewer than nine catalogue values and with more."""
    assert strata_of(*row(code, detections, values)).tolist() == [number]


def test_names_of_strata() -> None:
    assert stratum_name(16) == "light_curve, 20 to 49 points"
    assert stratum_name(24) == "spectrum"
    assert stratum_name(93) == "light_curve+spectrum+metadata, 100 to 199 points, 9 known values or more"
    assert subset_codes(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.bool_)).tolist() == [1, 2, 4, 7]


def test_values_of_the_light_curve_itself_are_not_counted_as_known() -> None:
    known = np.zeros((2, len(MODEL_FEATURES)), np.bool_)
    known[0, [0, 5, len(SOURCE_FEATURES) - 1]] = True
    known[1, len(SOURCE_FEATURES) :] = True
    inputs = MetadataInputs(known.astype(np.float32), known, np.ones(2, np.bool_))
    assert known_values(inputs).tolist() == [3, 0]


def test_eight_bits_a_value() -> None:
    vectors = np.array([[0.6, -0.8, 0.0], [1.0, 0.0, 0.0]], np.float32)
    steps, scales = _quantise(vectors)
    # 127 steps to the largest: 0.6 is 95.25 of them.
    assert steps.tolist() == [[95, -127, 0], [127, 0, 0]]
    assert scales.tolist() == pytest.approx([0.8 / 127, 1.0 / 127])
    length = np.hypot(95, 127)
    np.testing.assert_allclose(as_stored(vectors), [[95 / length, -127 / length, 0], [1, 0, 0]], rtol=1e-6)
    assert np.abs(as_stored(unit(50, d=512)) - unit(50, d=512)).max() < 0.002


def changed(**arrays: Any) -> bytes:
    stored = reference_set(unit(60), np.repeat([1, 5], 30).astype(np.uint8))
    with np.load(io.BytesIO(stored.to_bytes())) as file:
        columns = {name: file[name] for name in file.files}
    columns |= {name: value(columns[name]) for name, value in arrays.items()}
    out = io.BytesIO()
    np.savez(out, **columns)
    return out.getvalue()


def at(number: int, value: Any) -> Any:
    def change(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        column = column.copy()
        column[number] = value
        return column

    return change


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"modalities": at(0, 0)}, "modalities are no subsets of light_curve, spectrum, metadata"),
        ({"modalities": at(0, 8)}, "modalities are no subsets"),
        ({"detections": at(0, -1)}, "detections and modalities disagree on which have a light curve"),
        ({"detections": at(0, 0)}, "detections and modalities disagree"),
        ({"values": at(59, -1)}, "values and modalities disagree on which have metadata"),
        ({"values": at(59, 0)}, "values and modalities disagree"),
        ({"values": at(0, 3)}, "values and modalities disagree"),
        ({"calibration_values": at(0, 3)}, "calibration_values and calibration_modalities disagree"),
        ({"calibration_distances": at(0, -0.001)}, "no distances between unit vectors, 0 to 2"),
        ({"calibration_distances": at(0, 2.01)}, "no distances between unit vectors"),
        ({"calibration_distances": at(0, np.nan)}, "no distances between unit vectors"),
        ({"scales": at(0, np.nan)}, "1 of 60 embeddings are no unit vectors"),
        ({"scales": lambda s: s * 1.03}, "60 of 60 embeddings are no unit vectors"),
        ({"class_names": at(0, "XX")}, "unknown classes XX"),
        ({"k": lambda k: np.array(0)}, "0 neighbours, expected 1 to 50"),
        ({"k": lambda k: np.array(51)}, "51 neighbours, expected 1 to 50"),
        ({"format": lambda f: np.array(3)}, "format 3, this release reads 2"),
        ({"detections": lambda d: d.astype(np.float32)}, "are no integers"),
        ({"object_ids": lambda o: o[:-1]}, r"object_ids has the shape \(59,\), expected 60 rows"),
        ({"embeddings": lambda e: e.astype(np.int16)}, "type int16, expected"),
    ],
)
def test_what_cannot_be_a_reference_set_is_told(arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the file cannot be used as a reference set: .*{told}"):
        ReferenceSet.from_bytes(changed(**arrays), "the file")


def test_what_can_be_one_is_read_as_it_was() -> None:
    data = changed(calibration_distances=at(0, 2.0), k=lambda k: np.array(50), scales=lambda s: s * 1.01)
    again = ReferenceSet.from_bytes(data, "the file")
    assert (len(again), again.k, again.version, again.model) == (60, 50, "1.0+abcdef01", "trifid-test 1.0")
    assert again.modalities.tolist() == [LIGHT_CURVE] * 30 + [5] * 30
    np.testing.assert_allclose(np.linalg.norm(again.embeddings, axis=1), 1.0, rtol=1e-6)
    assert again.object_ids[3] == "star 3"
