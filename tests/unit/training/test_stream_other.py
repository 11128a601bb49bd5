"""``Other``: what counts as outside, how it is learnt and calibrated, and the exported output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from broker.assemble.event import EVENT_FEATURES
from broker.assemble.lightcurve import assemble_light_curves
from broker.assemble.metadata import MODEL_FEATURES
from broker.bands import BAND_CODE
from broker.errors import ConfigurationError
from broker.records import SOURCE_FEATURES, Alert, LightCurve, ObjectState, SourceMetadata
from training.datasets.multiband import LabelledObjects
from training.datasets.outside import is_outside, outside_kind, outside_of_archive
from training.datasets.tables import ObjectTable
from training.encoders.trimodal import ConcatClassifier
from training.export import export_classifier, export_metadata_encoder
from training.live.other import markdown, others_of
from training.live.scores import Answers
from training.stream import other_head as other_module
from training.stream.head import Head, published_head
from training.stream.material import Inputs, packet_colors
from training.stream.other_head import (
    OtherCalibration,
    OtherMaterial,
    aurocs,
    balanced_weights,
    fit_platt,
    other_logits,
    other_probabilities,
    subset_code,
    train_other,
)
from training.stream.other_network import ClassifierWithOther, OtherHead, OtherHeads, mean_of
from training.stream.other_threshold import other_thresholds
from training.stream.outside_examples import in_several_bands
from training.stream.stored import stored_head, stored_other
from training.streams import CEPHEID, EXPONENT, Cadence


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
    """Objects outside lie elsewhere among the embeddings of light curves; metadata say nothing.

    A third are difference photometry, where the event's values tell, too.
    """
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
    event = np.zeros((size, len(EVENT_FEATURES)), np.float32)
    difference = rng.random(size) < 1 / 3
    event[difference, 0] = 1.0
    event[difference, 2] = np.where(outside[difference], 1.0, rng.uniform(0.0, 0.7, int(difference.sum())))
    return OtherMaterial(
        light_curve.astype(np.float16), inputs, np.ones(size, np.bool_), detections, event, outside, group,
        rng.integers(0, 3, size), star, np.where(outside, -1, 3),
    )  # fmt: skip


def test_other_is_learnt_calibrated_and_exported(
    material: OtherMaterial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(other_module, "DRAWN", 1000)
    monkeypatch.setattr(other_module, "DRAWN_OF_DIFFERENCES", 1000)
    monkeypatch.setattr(other_module, "EPOCHS", 8)
    monkeypatch.setattr(other_module, "BATCH", 64)
    monkeypatch.setattr(other_module, "MEMBERS", 2)
    monkeypatch.setattr(other_module, "HIDDEN", 256)  # 512 in all, as is read back from a file
    torch.manual_seed(0)
    head = Head(ConcatClassifier()).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    network = train_other(head, material, np.flatnonzero(material.fold != 0), 0, lambda _line: None)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    unseen = np.flatnonzero(material.fold == 0)
    parts = []
    alerts = unseen[material.is_difference[unseen]]
    for subset, own in [(s, unseen) for s in other_module.OTHER_SUBSETS] + [
        (s, alerts) for s in other_module.OTHER_SUBSETS if s[0]
    ]:
        logit, usable, ten = other_logits(head, network, material, own, subset, as_total=own is unseen)
        assert np.array_equal(usable, material.inputs.present[own] | (not subset[2]))
        own, difference = own[usable], own is alerts
        right = ten[usable].argmax(axis=1) == material.label[own]
        code, of_kind = np.full(len(own), subset_code(subset)), np.full(len(own), difference)
        parts.append((code, logit[usable], own, right, of_kind))
    calibration = OtherCalibration(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    slope, offset, thresholds = calibration.fit(material)
    network.slope.copy_(slope)
    network.offset.copy_(offset)
    probability = other_probabilities(head, network, material, unseen)
    area, outside, inside = aurocs(material, unseen, probability)["far"]
    assert area > 0.95
    reversed_sign = replace(
        material, event=material.event * np.where(np.arange(len(EVENT_FEATURES)) == 2, -1, 1).astype(np.float32)
    )
    other_way = other_probabilities(head, network, reversed_sign, unseen) != probability
    assert np.array_equal(other_way, material.is_difference[unseen])  # total fluxes have no event
    for of_kind in (material.is_difference[unseen], ~material.is_difference[unseen]):
        assert aurocs(material, unseen[of_kind], probability[of_kind])["far"][0] > 0.9
    assert (outside, inside) == (int(material.outside[unseen].sum()), int((~material.outside[unseen]).sum()))
    assert len(thresholds) == 2  # of total fluxes and of difference photometry
    for own_thresholds in thresholds:
        assert own_thresholds["spectrum"] == (1.0,) * 7  # never
        assert own_thresholds["light_curve+spectrum+metadata"] == own_thresholds["light_curve+metadata"]
        assert len(set(own_thresholds["light_curve"])) > 1  # 7 detections and 120 have their own
    table = np.array([[own["light_curve"], own["light_curve+metadata"]] for own in thresholds])
    cell = np.where(material.detections[unseen] < 50, 1, 5)
    kind = material.is_difference[unseen].astype(int)
    threshold = table[kind, material.inputs.present[unseen].astype(int), cell]
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
    stored_networks = stored_other(tmp_path)
    for found_network, expected_network in (
        (stored_networks.total, network.total), (stored_networks.difference, network.difference),
    ):  # fmt: skip
        assert found_network is not None
        own_parameters = dict(expected_network.named_parameters())
        assert all(torch.equal(v, own_parameters[n]) for n, v in found_network.named_parameters())
    assert stored_other(tmp_path, difference=False).difference is None
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
        "event": material.event[rows],
    }  # fmt: skip
    found, _, other = session.run(["probabilities", "embedding", "other"], feed)
    assert other.shape == (40, 1)
    assert np.isnan(other[0, 0])  # nothing is known of Other from a spectrum alone
    np.testing.assert_allclose(other[1:, 0], probability[:40][1:], atol=1e-4)
    with torch.no_grad():
        expected, _ = head.classifier(*(torch.from_numpy(feed[name]) for name in feed if name != "event"))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("with_event", [False, True])
@torch.no_grad()
def test_members_side_by_side_give_the_mean_of_their_logits(with_event: bool) -> None:
    torch.manual_seed(3)
    members = [OtherHead(hidden, with_event=with_event).eval() for hidden in (24, 40)]
    inputs = (
        torch.randn(5, 3, 512), torch.rand(5, 3) < 0.6, torch.tensor([[3.0], [9.0], [40.0], [300.0], [0.0]]),
        torch.randn(5, len(EVENT_FEATURES)), torch.randn(5, 10),
    )  # fmt: skip
    expected = (members[0].logit(*inputs) + members[1].logit(*inputs)) / 2
    assert not torch.allclose(members[0].logit(*inputs), expected, atol=1e-3)
    torch.testing.assert_close(mean_of(members).logit(*inputs), expected)


def test_gaia_s_cepheids_are_shown_in_several_bands_too() -> None:
    """A Cepheid of 5 d with an amplitude in I of 0.6 of that in V: (0.79 / 0.55) to the power of -1.3."""
    rng = np.random.default_rng(8)
    mjd = 57000 + np.sort(rng.uniform(0, 900, 300))
    flux = (1e5 * 10 ** (-0.4 * 0.4 * np.cos(2 * np.pi * mjd / 5.0))).astype(np.float32)
    curve = LightCurve(
        mjd, flux, flux * np.float32(0.005), np.zeros(300, np.float32), np.full(300, BAND_CODE["gaia:G"], np.uint8),
        np.zeros(300, np.uint8),
    )  # fmt: skip
    values = np.full(len(SOURCE_FEATURES), np.nan, np.float32)
    values[SOURCE_FEATURES.index("bp_rp")] = 1.0
    none = np.full(1, None, object)
    state = ObjectState("gaia:1", 10.0, 5.0, curve, metadata=SourceMetadata(values))
    codes = np.array([BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]], np.uint8)
    cadence = Cadence(59000 + np.sort(rng.uniform(0, 600, 400)), codes[rng.integers(0, 2, 400)])
    objects = LabelledObjects("gaia", [state], none, none, np.array(["CEP"], object))
    (seen,) = in_several_bands(objects, [cadence], seed=3).states
    assert set(seen.light_curve.band) == set(codes)
    assert assemble_light_curves([seen.light_curve]).period[0] == pytest.approx(5.0, rel=1e-3)
    magnitude = -2.5 * np.log10(seen.light_curve.flux)
    green, red = (magnitude[seen.light_curve.band == code] for code in codes)
    assert np.median(green) - np.median(red) == pytest.approx(packet_colors(np.array([1.0]))[0][0], abs=0.15)
    ratio = np.ptp(green) / np.ptp(red)
    assert 1.1 < ratio < 2.2  # (0.62 / 0.48) ** 1.3 = 1.4; of single stars 1.3 +- 0.3
    assert EXPONENT[CEPHEID][0] == pytest.approx(np.log(0.6) / np.log(0.55 / 0.79), abs=0.2)


def test_catalina_s_cepheids_and_rrd_stars_have_their_own_names(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"css_id": ["a", "b", "c", "d"], "css_class": ["RRd", "Cep-II", "ACEP", "RRab"]}),
        tmp_path / "css_v.parquet",
    )
    empty, number = np.full(4, None, object), np.arange(4.0)
    curve = LightCurve(*(np.zeros(0, t) for t in (np.float64, *[np.float32] * 3, np.uint8, np.uint8)))
    table = ObjectTable(
        np.array([f"css:{name}" for name in "abcd"], object), empty, np.full(4, "css", object), number, number,
        np.array([None, None, None, "RRAB"], object), empty, np.zeros(4, np.bool_), [curve] * 4, number, {},
    )  # fmt: skip
    found = outside_of_archive(table, tmp_path)
    assert found.original.tolist() == ["RRd", "cepheid", "cepheid"]


def test_without_light_curve_or_metadata_nothing_is_said() -> None:
    network = OtherHeads(OtherHead(), OtherHead(with_event=True)).eval()
    present = torch.tensor([[False, True, False], [True, False, False]])
    event = torch.zeros(2, len(EVENT_FEATURES))
    answer = network(torch.zeros(2, 3, 512), present, torch.ones(2, 1), event, torch.zeros(2, 10))
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
    """By hand: above the third of 999 right stars with 60 points are 0.003 of those to come, and above the second of
    150 with 7 points 0.013, where one in a hundred may be and, so that it is not the first that decides, two."""
    large, middle = np.arange(999) / 999 * 0.8, np.arange(150) / 150 * 0.8
    few = np.full(10, 0.99)  # a set that is not heard
    probability = np.concatenate([large, middle, few])
    group = np.repeat(["large", "middle", "few"], [999, 150, 10])
    detections = np.repeat([60, 7, 60], [999, 150, 10])
    found = other_thresholds(probability, np.ones(len(group), np.bool_), group, detections)
    # The third highest of the large set is 0.8 * 996 / 999 = 0.79760, the second of the middle one 0.8 * 148 / 150.
    assert found == (1.0, 0.7894, 1.0, 1.0, 0.7976, 1.0, 1.0)
    # Wrongly classified stars cost nothing, but for 2 % of all: above the third of 150.
    wrong = other_thresholds(middle, np.zeros(150, np.bool_), np.full(150, "middle"), np.full(150, 7))
    assert wrong[1] == pytest.approx(0.8 * 147 / 150, abs=1e-4)
    assert other_thresholds(few, np.ones(10, np.bool_), group[-10:], detections[-10:]) == (1.0,) * 7


def test_a_set_with_few_stars_is_helped_by_its_nearest_cells() -> None:
    """With 40 right stars at 60 points and 150 at 30 the highest would decide, with 300 at 120 points the second."""
    own, near = np.append(np.arange(39) / 100, 0.95), np.arange(450) / 2500
    detections = np.repeat([60, 30, 120], [40, 150, 300])
    right, group = np.ones(490, np.bool_), np.full(490, "archive")
    found = other_thresholds(np.concatenate([own, near]), right, group, detections)
    # The second highest right star has 0.38; but of all 40 in the cell itself, 2 % are none.
    assert found[4] == 0.9501
    assert found[3] == 0.3801
    assert found[2] == 1.0  # none has 10 to 19 points
    # Of 380 in all the second highest star is still one in 190: the highest decides.
    fewer = detections != 120
    fewer[-190:] = True
    found = other_thresholds(np.concatenate([own, near])[fewer], right[fewer], group[fewer], detections[fewer])
    assert found[3] == 0.9501


def test_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export_classifier(ConcatClassifier(), tmp_path)
    export_metadata_encoder(Head(ConcatClassifier()).metadata_encoder, tmp_path)
    with pytest.raises(ConfigurationError, match=r"no head of `python -m training stream`: no layers\.0\.weight"):
        stored_head(tmp_path)
