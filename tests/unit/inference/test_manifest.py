from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import ConfigurationError
from broker.inference.manifest import MODALITY_SUBSETS, load_manifest
from broker.taxonomy import CLASS_NAMES
from tests.random_models import build_random_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return build_random_repository(tmp_path)


def _edit(repository: Path, **changes: Any) -> None:
    path = repository / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_was_exported(repository: Path) -> None:
    manifest = load_manifest(repository)
    assert manifest.identity == "trifid-random 0.0.0"
    assert manifest.classes == CLASS_NAMES
    assert manifest.version_of("classifier") == "1"
    assert manifest.path_of("spectrum_encoder") == "spectrum_encoder/1/model.onnx"


def test_subsets_are_named_in_the_order_of_the_modalities() -> None:
    assert MODALITY_SUBSETS == (
        "light_curve",
        "spectrum",
        "metadata",
        "light_curve+spectrum",
        "light_curve+metadata",
        "spectrum+metadata",
        "light_curve+spectrum+metadata",
    )


def test_refuses_another_model_file(repository: Path) -> None:
    with (repository / "classifier/1/model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigurationError, match=r"classifier/1/model\.onnx is not the model"):
        load_manifest(repository)
    assert load_manifest(repository, verify_models=False).model_version == "0.0.0"


def test_refuses_a_missing_model_file(repository: Path) -> None:
    (repository / "metadata_encoder/1/model.onnx").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_manifest(repository)


def test_refuses_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model manifest"):
        load_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": CLASS_NAMES[::-1]}, "classes are"),
        ({"conformal_thresholds": {"light_curve": [0.1] * 7}}, "must have exactly the keys"),
        ({"conformal_thresholds": dict.fromkeys(MODALITY_SUBSETS, [1.5] * 7)}, "less than or equal to 1"),
        ({"conformal_thresholds": dict.fromkeys(MODALITY_SUBSETS, [0.5] * 6)}, "one value for each of the detections"),
        ({"sha256": {"classifier/1/model.onnx": "00"}}, "once for each of"),
        ({"sha256": {"classifier/model.onnx": "00"}}, "once for each of"),
        ({"surprise": 1}, "surprise"),
        ({"other_thresholds": dict.fromkeys(MODALITY_SUBSETS, [0.0] * 7)}, "greater than 0"),
        ({"other_thresholds": {"light_curve": [0.5] * 7}}, "must have exactly the keys"),
        ({"other_thresholds_of_differences": {"light_curve": [0.5] * 7}}, "of_differences must have exactly the keys"),
        ({"other_thresholds": {name: [0.5] for name in MODALITY_SUBSETS}}, "one value for each of the detections"),
    ],
)
def test_refuses_a_manifest_of_another_release(repository: Path, changes: dict[str, Any], message: str) -> None:
    _edit(repository, **changes)
    with pytest.raises(ConfigurationError, match=message):
        load_manifest(repository)


def test_prediction_sets(repository: Path) -> None:
    # 0.3125 is the same number in single and in double precision, so that 0.3125 reaches it, and nothing below does.
    thresholds = dict.fromkeys(MODALITY_SUBSETS, [0.3125] * 7) | {
        "light_curve+metadata": [0.15] * 7,
        "spectrum": [0.9] * 7,
    }
    _edit(repository, conformal_thresholds=thresholds)
    manifest = load_manifest(repository)
    row = np.zeros(10, np.float32)
    row[[0, 1, 4]] = 0.1875, 0.5, 0.3125
    below = row.copy()
    below[4] = np.nextafter(np.float32(0.3125), np.float32(0))
    probabilities = np.stack([row, below, row, row, np.zeros(10, np.float32)])
    present = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    assert manifest.prediction_sets(probabilities, present, np.full(5, 60)) == [
        ("SR", "EB"),  # the threshold itself belongs to the set
        ("SR",),
        ("SR", "EB", "EW"),
        ("SR",),  # none reaches 0.9: the most probable alone
        (),
    ]


def test_prediction_sets_of_an_empty_batch(repository: Path) -> None:
    manifest = load_manifest(repository)
    assert manifest.prediction_sets(np.empty((0, 10), np.float32), np.empty((0, 3), bool), np.empty(0, int)) == []


def test_prediction_sets_depend_on_the_number_of_detections(repository: Path) -> None:
    thresholds = {name: [0.05, 0.1, 0.15, 0.25, 0.35, 0.4, 0.45] for name in MODALITY_SUBSETS}
    _edit(repository, conformal_thresholds=thresholds)
    row = np.zeros(10, np.float32)
    row[[0, 1, 4]] = 0.2, 0.5, 0.3
    detections = np.array([4, 5, 19, 20, 49, 50, 1000])
    sets = load_manifest(repository).prediction_sets(
        np.tile(row, (7, 1)), np.tile(np.array([[True, False, False]]), (7, 1)), detections
    )
    assert [len(own) for own in sets] == [3, 3, 3, 2, 2, 1, 1]


def test_what_is_called_other_depends_on_modalities_and_detections(repository: Path) -> None:
    thresholds = dict.fromkeys(MODALITY_SUBSETS, [0.5] * 7) | {
        "light_curve": [0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.875],
        "spectrum": [1.0] * 7,
    }
    _edit(repository, other_thresholds=thresholds)
    manifest = load_manifest(repository)
    light_curve, metadata, spectrum, nothing = ([1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0])
    present = np.array([light_curve, light_curve, light_curve, metadata, metadata, spectrum, nothing], bool)
    detections = np.array([199, 199, 200, 200, 3, 60, 60])
    p_other = np.array([0.75, 0.625, 0.75, 0.5, np.nan, 1.0, 1.0], np.float32)
    total = np.zeros(7, bool)
    called = manifest.called_other(p_other, present, detections, total)
    assert called.tolist() == [True, False, False, True, False, False, False]
    # A setting is for all; 1 is never.
    assert manifest.called_other(p_other, present, detections, total, 0.7).tolist() == [
        True,
        False,
        True,
        False,
        False,
        True,
        True,
    ]
    assert not manifest.called_other(p_other, present, detections, total, 1.0).any()
    # Difference photometry has the same thresholds but where the model has some of its own.
    assert manifest.called_other(p_other, present, detections, ~total).tolist() == called.tolist()
    _edit(repository, other_thresholds_of_differences=dict.fromkeys(MODALITY_SUBSETS, [0.625] * 7))
    difference = np.array([False, True, True, True, True, False, True])
    assert load_manifest(repository).called_other(p_other, present, detections, difference).tolist() == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    _edit(repository, other_thresholds=None)
    assert not load_manifest(repository).called_other(p_other, present, detections, total).any()


def test_a_set_grows_where_no_class_reaches_its_threshold(repository: Path) -> None:
    """No class of 0.4, 0.3, 0.15, 0.1, 0.05 reaches 0.9: three have 0.8 together; 0.5 is an answer by itself."""
    _edit(repository, conformal_thresholds={name: [0.9] * 7 for name in MODALITY_SUBSETS})
    unsure = np.zeros(10, np.float32)
    unsure[[3, 2, 0, 7, 9]] = 0.4, 0.3, 0.15, 0.1, 0.05
    majority = np.zeros(10, np.float32)
    majority[[8, 1]] = 0.5
    # Classes that physics ruled out are zero, and the rest need not sum to 1.
    probabilities = np.stack([unsure, majority, 0.5 * unsure, np.zeros(10, np.float32)])
    present = np.tile(np.array([[True, False, False]]), (4, 1))
    sets = load_manifest(repository).prediction_sets(probabilities, present, np.full(4, 300))
    assert sets == [("RRAB", "EA", "EW"), ("SR",), ("RRAB", "EA", "EW"), ()]
