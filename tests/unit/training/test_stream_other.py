"""``Other``: what counts as outside, how it is learnt and calibrated, and the exported output."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch

from broker.assemble.metadata import MODEL_FEATURES
from broker.errors import ConfigurationError
from broker.records import Alert
from training.datasets.outside import is_outside, outside_kind
from training.encoders.trimodal import ConcatClassifier
from training.export import export_classifier, export_metadata_encoder
from training.live.other import markdown, others_of
from training.live.scores import Answers
from training.stream import other_head as other_module
from training.stream.head import Head, published_head
from training.stream.material import Inputs
from training.stream.other_head import (
    ClassifierWithOther,
    OtherCalibration,
    OtherHead,
    OtherMaterial,
    aurocs,
    balanced_weights,
    fit_platt,
    other_logits,
    other_probabilities,
    subset_code,
    train_other,
)
from training.stream.other_threshold import other_thresholds
from training.stream.stored import stored_head, stored_other


@pytest.mark.parametrize(
    ("vsx_type", "outside"),
    [
        ("CWA", True), ("DCEPS", True), ("ELL", True), ("R", True),
        ("RRAB", False), ("RS", False), ("ROT", False), ("CEP:", False), ("CEP|RRAB", False), ("EA", False),
    ],
)  # fmt: skip
def test_vsx_types_that_are_none_of_the_ten(vsx_type: str, outside: bool) -> None:
    assert is_outside(vsx_type) is outside


def alert(solar_system: bool, real_bogus: float | None, star_score: float | None) -> Alert:
    return cast(Alert, SimpleNamespace(solar_system=solar_system, real_bogus=real_bogus, star_score=star_score))


@pytest.mark.parametrize(
    ("alerts", "kind"),
    [
        ([alert(True, 0.9, 0.99)], "moving"),
        ([alert(False, 0.2, 0.9), alert(False, 0.1, 0.9)], "bogus"),
        ([alert(False, 0.2, 0.9), alert(False, 0.8, 0.9)], None),
        ([alert(False, 0.8, 0.05)], "galaxy"),
        ([alert(False, None, None)], None),
    ],
)
def test_what_packets_say_of_objects_without_a_label(alerts: list[Alert], kind: str | None) -> None:
    assert outside_kind(alerts) == kind


def test_weights_are_equal_by_side_and_set() -> None:
    weight = balanced_weights(np.array([False] * 4 + [True] * 2), np.array(list("aaabcd"), object))
    np.testing.assert_allclose(weight, [1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 4])


def test_platt_finds_the_odds() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 40_000)
    outside = rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * logit + 1.0)))
    slope, offset = fit_platt(logit.astype(np.float32), outside, np.full(40_000, 1 / 40_000))
    assert (slope, offset) == pytest.approx((0.5, 1.0), abs=0.05)


@pytest.fixture
def material() -> OtherMaterial:
    """Objects outside lie elsewhere among the embeddings of light curves; metadata say nothing."""
    rng = np.random.default_rng(3)
    size = 1500
    outside = np.arange(size) % 3 == 0
    light_curve = rng.normal(0, 1, (size, 512)) + 0.4 * outside[:, None] * np.sign(np.arange(512) % 2 - 0.5)
    light_curve /= np.linalg.norm(light_curve, axis=1, keepdims=True)
    known = np.zeros((size, len(MODEL_FEATURES)), np.bool_)
    known[:, MODEL_FEATURES.index("ps1_g_r")] = rng.random(size) < 0.5
    inputs = Inputs(rng.normal(size=known.shape).astype(np.float32) * known, known, known.any(axis=1))
    group = np.where(outside, "far", np.where(rng.random(size) < 0.5, "archive", "near")).astype(object)
    detections = np.where(rng.random(size) < 0.5, 7, 120).astype(np.int32)
    star = np.arange(size).astype(str).astype(object)
    return OtherMaterial(
        light_curve.astype(np.float16), inputs, np.ones(size, np.bool_), detections, outside, group,
        rng.integers(0, 3, size), star, np.where(outside, -1, 3),
    )  # fmt: skip


def test_other_is_learnt_calibrated_and_exported(
    material: OtherMaterial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(other_module, "DRAWN", 1000)
    monkeypatch.setattr(other_module, "EPOCHS", 8)
    monkeypatch.setattr(other_module, "BATCH", 64)
    torch.manual_seed(0)
    head = Head(ConcatClassifier()).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    network = train_other(head, material, np.flatnonzero(material.fold != 0), 0, lambda _line: None)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    unseen = np.flatnonzero(material.fold == 0)
    parts = []
    for subset in other_module.OTHER_SUBSETS:
        logit, usable, ten = other_logits(head, network, material, unseen, subset)
        assert np.array_equal(usable, material.inputs.present[unseen] | (not subset[2]))
        right = ten[usable].argmax(axis=1) == material.label[unseen[usable]]
        parts.append((np.full(int(usable.sum()), subset_code(subset)), logit[usable], unseen[usable], right))
    calibration = OtherCalibration(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    slope, offset, thresholds = calibration.fit(material)
    network.slope.copy_(slope)
    network.offset.copy_(offset)
    probability = other_probabilities(head, network, material, unseen)
    area, outside, inside = aurocs(material, unseen, probability)["far"]
    assert area > 0.95
    assert (outside, inside) == (int(material.outside[unseen].sum()), int((~material.outside[unseen]).sum()))
    assert thresholds["spectrum"] == (1.0,) * 7  # never
    assert thresholds["light_curve+spectrum+metadata"] == thresholds["light_curve+metadata"]
    assert len(set(thresholds["light_curve"])) > 1  # 7 detections and 120 have their own
    table = np.array([thresholds["light_curve"], thresholds["light_curve+metadata"]])
    cell = np.where(material.detections[unseen] < 50, 1, 5)
    threshold = table[material.inputs.present[unseen].astype(int), cell]
    for name in ("archive", "near"):  # in each set of stars, not only on average
        own = ~material.outside[unseen] & (material.group[unseen] == name)
        assert np.mean(probability[own] >= threshold[own]) <= 0.03
    assert np.mean((probability > threshold)[material.outside[unseen]]) > 0.5

    export_classifier(ClassifierWithOther(head.classifier, network), tmp_path, with_other=True)
    session = onnxruntime.InferenceSession(tmp_path / "classifier" / "1" / "model.onnx")
    # The next training finds the head for objects without metadata in this file.
    kept = published_head(tmp_path)
    # And who only calibrates anew finds all networks.
    export_metadata_encoder(head.metadata_encoder, tmp_path)
    stored = stored_head(tmp_path).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in head.state_dict().items())
    assert all(torch.equal(v, network.get_parameter(n)) for n, v in stored_other(tmp_path).named_parameters())
    for name, value in kept.state_dict().items():
        if name.startswith("layers"):
            assert torch.equal(value, head.classifier.without_metadata.state_dict()[name])
    rows = unseen[:40]
    inputs = material.inputs.take(rows)
    with torch.no_grad():
        metadata = head.metadata_encoder(torch.from_numpy(inputs.values), torch.from_numpy(inputs.known)).numpy()
    present = np.stack([np.ones(40, bool), np.zeros(40, bool), inputs.present], axis=1)
    present[0] = False, True, False
    feed: dict[str, Any] = {
        "light_curve": material.light_curve[rows].astype(np.float32), "spectrum": np.zeros((40, 512), np.float32),
        "metadata": metadata, "present": present, "detections": material.detections[rows, None].astype(np.float32),
    }  # fmt: skip
    found, _, other = session.run(["probabilities", "embedding", "other"], feed)
    assert other.shape == (40, 1)
    assert np.isnan(other[0, 0])  # nothing is known of Other from a spectrum alone
    np.testing.assert_allclose(other[1:, 0], probability[:40][1:], atol=1e-4)
    with torch.no_grad():
        expected, _ = head.classifier(*(torch.from_numpy(feed[name]) for name in feed))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_without_light_curve_or_metadata_nothing_is_said() -> None:
    network = OtherHead().eval()
    present = torch.tensor([[False, True, False], [True, False, False]])
    answer = network(torch.zeros(2, 3, 512), present, torch.ones(2, 1), torch.zeros(2, 10))
    assert answer.isnan()[:, 0].tolist() == [True, False]


def test_scores_of_other_by_hand() -> None:
    """Four objects outside, one of which the model says nothing of; of two stars one is called Other."""
    probabilities = np.full((6, 10), 0.0)
    probabilities[:, 0] = [0.5, 0.5, 0.5, 0.5, 1.0, 0.9]
    probabilities[:, 1] = 1 - probabilities[:, 0]
    other = np.array([0.9, 0.8, 0.1, np.nan, 0.2, 0.85])
    published, in_set = np.full((6, 10), np.nan), np.zeros((6, 10), np.bool_)  # what these scores are not of
    is_other = np.nan_to_num(other) >= 0.85
    answers = Answers(published, in_set, np.full(6, 7, np.int32), np.full(6, np.nan), other, is_other, probabilities)
    score = others_of("row", answers, np.arange(6) < 4)
    assert score is not None
    assert (score.outside, score.inside) == (3, 2)
    assert score.auroc == pytest.approx(3 / 6)  # pairs in order: 0.9 over both, 0.8 over 0.2
    assert (score.leading, score.entropy) == (1.0, 1.0)
    assert (score.called_other, score.false_alarms) == pytest.approx((1 / 3, 1 / 2))
    assert "| row | 3 | 2 | 0.500 | 1.000 | 1.000 | 0.33 | 0.500 |" in markdown([score])
    assert others_of("none", answers, np.zeros(6, np.bool_)) is None
    assert "no output" in markdown([])


def test_thresholds_take_few_of_each_set() -> None:
    """By hand: of 999 right stars with 60 points 3 may be called Other, of 150 with 7 one."""
    large, middle = np.arange(999) / 999 * 0.8, np.arange(150) / 150 * 0.8
    few = np.full(10, 0.99)  # a set that is not heard
    probability = np.concatenate([large, middle, few])
    group = np.repeat(["large", "middle", "few"], [999, 150, 10])
    detections = np.repeat([60, 7, 60], [999, 150, 10])
    found = other_thresholds(probability, np.ones(len(group), np.bool_), group, detections)
    # The fourth highest of the large set is 0.8 * 995 / 999 = 0.79680, the second of the middle one 0.8 * 148 / 150.
    assert found == (1.0, 0.7894, 1.0, 1.0, 0.7968, 1.0, 1.0)
    # Wrongly classified stars cost nothing, but for 2 % of all: of 150 three.
    wrong = other_thresholds(middle, np.zeros(150, np.bool_), np.full(150, "middle"), np.full(150, 7))
    assert wrong[1] == pytest.approx(0.8 * 146 / 150, abs=1e-4)
    assert other_thresholds(few, np.ones(10, np.bool_), group[-10:], detections[-10:]) == (1.0,) * 7


def test_a_set_with_few_stars_is_helped_by_its_nearest_cells() -> None:
    """Of 40 right stars with 60 points none may be taken, of these and 300 with 30 or 120 points one of all."""
    own, near = np.append(np.arange(39) / 100, 0.95), np.arange(300) / 1000
    detections = np.repeat([60, 30, 120], [40, 150, 150])
    right, group = np.ones(340, np.bool_), np.full(340, "archive")
    found = other_thresholds(np.concatenate([own, near]), right, group, detections)
    # The second highest right star has 0.38; but of all 40 in the cell itself, 2 % are none.
    assert found[4] == 0.9501
    assert found[3] == 0.3801
    assert found[2] == 1.0  # none has 10 to 19 points


def test_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export_classifier(ConcatClassifier(), tmp_path)
    export_metadata_encoder(Head(ConcatClassifier()).metadata_encoder, tmp_path)
    with pytest.raises(ConfigurationError, match=r"no head of `python -m training stream`: no layers\.0\.weight"):
        stored_head(tmp_path)
