"""The head for streams: what it is trained on, how it learns, how it is calibrated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from broker.assemble.event import EVENT_FEATURES
from broker.assemble.metadata import MODEL_FEATURES, Scaler
from broker.inference.manifest import CALIBRATION_BINS
from broker.records import METADATA_FEATURES, LightCurve
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.encoders.trimodal import LIGHT_CURVE_ONLY, SUBSETS
from training.stream import head as head_module
from training.stream import no_metadata_head as no_metadata_module
from training.stream.examples import Examples, first_n, random_n
from training.stream.head import published_head, train_head
from training.stream.material import Inputs, Material, as_in_packets, packet_colors
from training.stream.no_metadata_head import head_without_metadata
from training.stream.run import Calibration, calibration_group, fold_of_stars, head_logits

MODEL_REPO = Path(__file__).resolve().parents[3] / "model_repo"
COLUMN = {name: i for i, name in enumerate(MODEL_FEATURES)}


def test_colors_of_the_sun_and_of_a_red_giant() -> None:
    # The Sun has BP - RP 0.82 (Casagrande & VandenBerg 2018) and PS1 g - r 0.39, r - i 0.13 (Willmer 2018).
    g_r, r_i, r_minus_g = packet_colors(np.array([0.82, 3.0, 4.0]))
    assert g_r[0] == pytest.approx(0.39, abs=0.05)  # the polynomials scatter by 0.04
    assert r_i[0] == pytest.approx(0.13, abs=0.03)
    assert abs(r_minus_g[0]) < 0.15
    assert g_r[2] - g_r[1] == pytest.approx(0.75 * (1 - 0.139 + 0.007), abs=1e-9)


def test_a_packet_has_no_parallax_but_the_colors_of_the_donor() -> None:
    rng = np.random.default_rng(0)
    history = np.full((500, len(MODEL_FEATURES)), np.nan)
    history[:, COLUMN["blue_range"]] = 0.4
    catalogued = np.full((500, len(METADATA_FEATURES)), np.nan)
    for name, value in {"bp_rp": 0.82, "phot_g_mean_mag": 12.0, "parallax": 5.0}.items():
        catalogued[:, METADATA_FEATURES.index(name)] = value
    found = as_in_packets(history, catalogued, rng)
    assert np.isnan(found[:, COLUMN["parallax"]]).all()
    assert found[:, COLUMN["ps1_g_r"]].mean() == pytest.approx(0.39, abs=0.05)
    assert found[:, COLUMN["total_g_r"]].mean() == pytest.approx(found[:, COLUMN["ps1_g_r"]].mean(), abs=0.02)
    assert (found[:, COLUMN["blue_range"]] >= found[:, COLUMN["red_range"]]).all()
    assert np.isnan(found[:, COLUMN["latest_change"]]).all()  # ASAS has no reference image


def test_cuts_keep_the_order_and_the_bounds() -> None:
    size = 400
    curve = LightCurve(
        np.arange(size, dtype=np.float64), np.ones(size, np.float32), np.ones(size, np.float32),
        np.zeros(size, np.float32), np.zeros(size, np.uint8), np.zeros(size, np.uint8),
    )  # fmt: skip
    lengths = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        first, some = first_n(curve, rng), random_n(curve, rng)
        assert np.array_equal(first.mjd, np.arange(len(first)))
        assert 2 <= len(first) <= 300
        assert 4 <= len(some) <= 300
        assert np.all(np.diff(some.mjd) > 0)
        lengths.add(len(first) < 20)
    assert lengths == {True, False}
    assert curve.take(np.array([3, 5])).mjd.tolist() == [3.0, 5.0]


def examples(label: np.ndarray, kind: str, stars: np.ndarray, rng: np.random.Generator) -> Examples:
    size = len(label)
    return Examples(
        rng.normal(size=(size, 512)).astype(np.float16), np.full((size, len(MODEL_FEATURES)), np.nan),
        np.zeros(size), np.full(size, 40.0), np.ones(size, bool), np.full(size, 7, np.int32),
        np.zeros((size, len(EVENT_FEATURES)), np.float32), label.astype(np.int64),
        stars.astype(object), np.full(size, kind, object),
    )  # fmt: skip


@pytest.fixture(scope="module")
def material() -> Material:
    """Red SR and blue RRAB stars, told apart by colour alone: light curves are noise."""
    rng = np.random.default_rng(5)
    red, blue = CLASS_INDEX["SR"], CLASS_INDEX["RRAB"]
    scaler = Scaler(np.zeros(len(MODEL_FEATURES)), np.ones(len(MODEL_FEATURES)))

    def coloured(label: np.ndarray, own: Examples) -> Inputs:
        raw = np.array(own.values)
        raw[:, COLUMN["ps1_g_r"]] = np.where(label == red, 1.8, 0.2) + rng.normal(0, 0.15, len(label))
        return Inputs.of(own, raw, scaler)

    label = np.where(rng.random(2000) < 0.5, red, blue)
    archive = examples(label, "train/0", np.arange(2000).astype(str), rng)
    real_label = np.where(rng.random(300) < 0.5, red, blue)
    real = examples(real_label, "ztf_packets/0", np.repeat(np.arange(150), 2).astype(str), rng)
    real.kind[1::2] = "ztf_packets/1"
    inputs = coloured(label, archive)
    spectrum = rng.normal(size=(2000, 512)).astype(np.float16)
    return Material(
        MODEL_REPO, archive, inputs, inputs, spectrum, real, coloured(real_label, real), np.ones(300, bool), scaler
    )


def test_folds_are_made_of_stars(material: Material) -> None:
    fold = fold_of_stars(material, seed=0)
    assert np.array_equal(fold[::2], fold[1::2])
    assert np.bincount(fold[::2]).tolist() == [30] * 5


def test_a_head_learns_the_color_of_stars_it_has_not_seen(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "EPOCHS", 15)
    fold = fold_of_stars(material, seed=0)
    head = train_head(material, fold != 0, published_head(MODEL_REPO), seed=1, report=lambda _line: None)
    unseen = fold == 0
    own = material.real.take(unseen)
    logits, usable = head_logits(head, own, material.real_inputs.take(unseen), None, (False, False, True))
    assert usable.all()
    assert np.mean(logits.argmax(axis=1) == own.label) > 0.95
    # Without metadata the published head answers, which this training has not touched.
    logits, _ = head_logits(head, own, material.real_inputs.take(unseen), None, LIGHT_CURVE_ONLY)
    kept = published_head(MODEL_REPO).logits(
        torch.stack([torch.from_numpy(own.light_curve.astype(np.float32))] + [torch.zeros(len(own), 512)] * 2, dim=1),
        torch.tensor(LIGHT_CURVE_ONLY).expand(len(own), -1),
    )
    np.testing.assert_allclose(logits, kept.detach().numpy(), atol=1e-5)
    _, usable = head_logits(head, own, material.real_inputs.take(unseen), None, (True, True, False))
    assert not usable.any()


def test_a_head_that_does_not_fit_the_encoders_is_trained_anew(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The material's light curves are noise to the published head; here the first number of each tells its class."""
    monkeypatch.setattr(no_metadata_module, "BATCH", 64)
    monkeypatch.setattr(no_metadata_module, "EPOCHS", 5)
    monkeypatch.setattr(no_metadata_module, "LEARNING_RATE", 5e-3)
    kind = material.archive.kind.copy()
    kind[1600:] = "val/0"
    light_curve = material.archive.light_curve.copy()
    light_curve[:, 0] = np.where(material.archive.label == CLASS_INDEX["SR"], 8.0, -8.0)
    light_curve /= np.linalg.norm(light_curve.astype(np.float32), axis=1, keepdims=True)
    archive = replace(material.archive, kind=kind, light_curve=light_curve)
    lines: list[str] = []
    head = head_without_metadata(replace(material, archive=archive), 0, lines.append)
    assert lines[-1] == "head for objects without metadata: trained anew"
    own = archive.take(kind == "val/0")
    embeddings = torch.from_numpy(own.light_curve.astype(np.float32))
    logits = head.logits(
        torch.stack([embeddings] + [torch.zeros_like(embeddings)] * 2, dim=1),
        torch.tensor(LIGHT_CURVE_ONLY).expand(len(own), -1),
    )
    assert np.mean(logits.argmax(dim=1).numpy() == own.label) > 0.97
    # That one is kept from now on, and of other spectra no more than what it makes of them is learnt.
    monkeypatch.setattr(no_metadata_module, "published_head", lambda _repository: head)
    spectrum = np.full_like(material.spectrum, 0.04)
    spectrum[:, :40] *= np.where(archive.label == CLASS_INDEX["SR"], 1.0, -1.0)[:, None].astype(np.float16)
    other = head_without_metadata(replace(material, archive=archive, spectrum=spectrum), 0, lines.append)
    assert lines[-1] == "head for objects without metadata: kept for light curves, trained anew for spectra", lines
    embeddings = torch.stack([embeddings, torch.from_numpy(spectrum[kind == "val/0"].astype(np.float32))], dim=1)
    embeddings = torch.cat([embeddings, torch.zeros(len(own), 1, 512)], dim=1)
    alone = torch.tensor(LIGHT_CURVE_ONLY).expand(len(own), -1)
    assert torch.equal(other.logits(embeddings, alone), head.logits(embeddings, alone))
    by_spectrum = other.logits(embeddings, torch.tensor((False, True, False)).expand(len(own), -1))
    assert np.mean(by_spectrum.argmax(dim=1).numpy() == own.label) > 0.9
    assert head_without_metadata(replace(material, archive=archive), 0, lines.append) is head
    assert lines[-1] == "head for objects without metadata: kept"


def test_calibration_is_by_detections_and_leaves_a_fold_out() -> None:
    """At 7 detections logits claim 9 to 1 and are right nine times of ten; at 300 they always are."""
    rng = np.random.default_rng(0)
    size = 2000
    detections = np.where(np.arange(size) % 2, 7, 300).astype(np.int32)
    logits = np.full((size, len(CLASS_NAMES)), -20.0, np.float32)
    logits[:, :2] = [np.log(9.0), 0.0]
    label = np.where((detections == 7) & (rng.random(size) < 0.1), 1, 0)
    fold = rng.integers(0, 5, size)
    # Fold 3 is upside down, and must not count where it is left out.
    label[fold == 3] = 1 - label[fold == 3]
    subset = np.full(size, SUBSETS.index(LIGHT_CURVE_ONLY))
    group = np.full(size, "val")
    calibration = Calibration(subset, logits, label.astype(np.int64), detections, fold, group)
    temperatures, thresholds = calibration.fit(without=3)
    few, many = CALIBRATION_BINS.index(5), CALIBRATION_BINS.index(200)
    assert np.exp(temperatures[1, few]) == pytest.approx(1.0, abs=0.15)
    assert np.exp(temperatures[1, many]) < 0.5
    row = thresholds["light_curve"]
    assert row[few] == pytest.approx(0.1, abs=0.03) or row[few] == pytest.approx(0.9, abs=0.03)
    assert row[many] > 0.98
    with_all, _ = calibration.fit()
    assert with_all[1, many] > temperatures[1, many]
    assert torch.from_numpy(temperatures).isfinite().all()


def test_each_set_of_a_cell_is_covered_whatever_its_size() -> None:
    """Of a hundred stars of one set the model is unsure, of nine thousand of another sure, and as often wrong."""
    sizes = {"val": 9000, "ztf_dr": 100}
    group = np.repeat(list(sizes), list(sizes.values())).astype(np.str_)
    confidence = np.where(group == "val", 0.99, 0.6)
    logits = np.full((len(group), len(CLASS_NAMES)), -50.0, np.float32)
    logits[:, 0], logits[:, 1] = np.log(confidence), np.log(1 - confidence)
    # Of each set one in five is the second class: more than a set of one class may miss.
    label = (np.arange(len(group)) % 5 == 0).astype(np.int64)
    size = len(group)
    calibration = Calibration(
        np.full(size, SUBSETS.index(LIGHT_CURVE_ONLY)), logits, label, np.full(size, 300, np.int32),
        np.full(size, -1), group,
    )  # fmt: skip
    temperatures, thresholds = calibration.fit()
    cell = CALIBRATION_BINS.index(200)
    probability = torch.from_numpy(logits / np.exp(temperatures[1, cell])).softmax(dim=1).numpy()
    in_set = probability[np.arange(size), label] >= thresholds["light_curve"][cell]
    for name in sizes:
        assert in_set[group == name].mean() >= 0.9
    # Alone the large set would ask for a temperature at which its 0.99 is 0.8: log(99) / log(4); the small one for
    # log(1.5) / log(4). With equal weights the sum of both losses is least in between.
    grid = np.linspace(0.05, 5, 2000)
    losses = sum(
        0.8 * np.log1p(np.exp(-np.log(c / (1 - c)) / grid)) + 0.2 * np.log1p(np.exp(np.log(c / (1 - c)) / grid))
        for c in (0.99, 0.6)
    )
    assert np.exp(temperatures[1, cell]) == pytest.approx(grid[np.argmin(losses)], rel=0.05)


def test_an_archive_in_several_bands_is_a_set_of_its_own() -> None:
    kind = np.array(["val/0", "val/2", "val/3", "val/4", "ztf_dr/3", "train/5"], object)
    found = calibration_group(kind).tolist()
    assert found == ["val", "val", "val in several bands", "val in several bands", "ztf_dr", "train"]
