"""Losses, weights and calibration against values worked out by hand or by scipy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from broker.inference.manifest import CALIBRATION_BINS
from broker.taxonomy import CLASS_INDEX
from training.calibrate import (
    LEAST_IN_CELL,
    Encoded,
    cell_rows,
    conformal_threshold,
    conformal_thresholds,
    expected_calibration_error,
    fit_temperatures,
    logits,
    probabilities,
)
from training.data import WEAK_LABEL_WEIGHT, Labels, TrainingSet
from training.encoders.trimodal import SUBSETS, MeanClassifier
from training.losses import label_cross_entropy, trimodal_contrastive
from training.prepare import PreparedLightCurves

EW, SR, EA, EB, M = (CLASS_INDEX[name] for name in ("EW", "SR", "EA", "EB", "M"))


def unit_vectors(size: int) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.nn.functional.normalize(torch.randn(size, 3, 4, dtype=torch.float64), dim=2)


def clip_loss(first: torch.Tensor, second: torch.Tensor, scale: float) -> float:
    """CLIP's symmetric cross-entropy of two modalities (Radford et al. 2021, figure 3), by scipy."""
    similarity = scale * first.numpy() @ second.numpy().T
    rows, columns = (-np.mean(np.diag(log_softmax(similarity, axis=axis))) for axis in (1, 0))
    return float((rows + columns) / 2)


def test_the_contrastive_loss_is_clips_in_both_directions_over_three_pairs() -> None:
    vectors, scale = unit_vectors(6), 7.0
    present = torch.ones(6, 3, dtype=torch.bool)
    expected = sum(clip_loss(vectors[:, i], vectors[:, j], scale) for i, j in ((0, 1), (0, 2), (1, 2)))
    found = trimodal_contrastive(vectors, present, torch.tensor(scale, dtype=torch.float64).log())
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_pair_has_those_objects_that_have_both_modalities_if_there_are_two() -> None:
    vectors = unit_vectors(5)
    # Light curve and spectrum: objects 0, 1, 2. Light curve and metadata: 0 and 3. Spectrum and metadata: 0 alone.
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    expected = clip_loss(vectors[:3, 0], vectors[:3, 1], 3.0) + clip_loss(vectors[[0, 3], 0], vectors[[0, 3], 2], 3.0)
    found = trimodal_contrastive(vectors, present, torch.tensor(3.0, dtype=torch.float64).log())
    assert found.item() == pytest.approx(expected, rel=1e-9)
    nobody = trimodal_contrastive(vectors, torch.zeros(5, 3, dtype=torch.bool), torch.tensor(1.0))
    assert nobody.item() == 0.0


@pytest.mark.parametrize(("scale", "used"), [(99.0, 99.0), (1000.0, 100.0)])
def test_the_scale_is_at_most_a_hundred(scale: float, used: float) -> None:
    vectors = unit_vectors(4)
    present = torch.tensor([[True, True, False]]).expand(4, 3)
    found = trimodal_contrastive(vectors, present, torch.tensor(scale, dtype=torch.float64).log())
    assert found.item() == pytest.approx(clip_loss(vectors[:, 0], vectors[:, 1], used), rel=1e-4)


def test_a_label_that_cannot_be_costs_a_finite_amount_and_no_weight_nothing() -> None:
    certain = torch.tensor([[200.0, 0.0]])
    wrong = torch.tensor([[0.0, 1.0]])
    plain = torch.eye(2)[None]
    assert label_cross_entropy(certain, wrong, plain, torch.ones(1), 0.0).item() == pytest.approx(-math.log(1e-7))
    assert label_cross_entropy(certain, wrong, plain, torch.zeros(1), 0.0).item() == 0.0
    # A weight alone does not change a mean.
    logit = torch.tensor([[1.0, 0.0]])
    once, thrice = (label_cross_entropy(logit, wrong, plain, torch.tensor([w]), 0.1).item() for w in (1.0, 3.0))
    assert once == pytest.approx(thrice)
    log_p = log_softmax([1.0, 0.0])
    assert once == pytest.approx(-0.9 * log_p[1] - 0.1 * log_p.mean())


def labels(*names: str | None, quality: tuple[str | None, ...] = (), coarse: tuple[int, ...] = ()) -> Labels:
    flags = np.zeros(len(names), np.bool_)
    flags[list(coarse)] = True
    kinds = np.array(quality or ("gold",) * len(names), object)
    return Labels.from_columns(np.array(names, object), kinds, flags)


def test_what_counts_by_the_quality_of_a_label() -> None:
    of = labels(
        "EW", "EW", "EW", "EW", "EW", None, "XYZ", "EW",
        quality=("gold", "std", "weak", "conflict", "disputed", None, "gold", "gold"), coarse=(7,),
    )  # fmt: skip
    assert of.index.tolist() == [0, 0, 0, 0, 0, -1, -1, 0]
    assert of.weight.tolist() == [1.0, 1.0, 0.5, 0.0, 0.5, 0.0, 0.0, 1.0]
    assert WEAK_LABEL_WEIGHT == 0.5
    assert of.scored.tolist() == [True, True, False, False, False, False, False, False]
    assert of.named.tolist() == [True, True, False, False, True, False, False, False]
    assert of.naming.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert of.target.sum(axis=1).tolist() == [1, 1, 1, 1, 1, 0, 0, 1]
    assert of.target[:5, EW].tolist() == [1] * 5
    assert of.confusions.shape == (2, 10, 10)
    np.testing.assert_array_equal(of.confusions[0], np.eye(10))
    # A star that is EB is called EW by the catalogue that lumps the two.
    expected = np.eye(10)
    expected[EB, EB], expected[EB, EW] = 0.0, 1.0
    np.testing.assert_array_equal(of.confusions[1], expected)


def test_rare_classes_weigh_more_and_frequent_ones_less() -> None:
    of = labels("EW", "EW", "EW", "EW", "SR", "M", "EA", quality=("gold",) * 5 + ("weak", "conflict"))
    rows = np.arange(7)
    # Counts are 4, 1 and 1, and 1 for each class without any (EA's only star does not count): 1.3 on average.
    np.testing.assert_allclose(of.class_balanced(rows, 1.0), [0.325] * 4 + [1.3, 0.65, 0.0], rtol=1e-6)
    root = math.sqrt(1.3)
    np.testing.assert_allclose(of.class_balanced(rows, 0.5), [root / 2] * 4 + [root, root / 2, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(of.class_balanced(rows, 0.0), of.weight)
    # Counted over some rows alone: EW 2, all others 1, 1.1 on average; but all are weighted.
    np.testing.assert_allclose(of.class_balanced(np.array([0, 1, 4]), 1.0), [0.55] * 4 + [1.1, 0.55, 0.0], rtol=1e-6)
    assert of.class_balanced(rows, 1.0).dtype == np.float32


def test_a_catalogues_way_of_naming_is_added_for_its_stars() -> None:
    of = labels("EW", "SR", "EA")
    confusion = np.full((10, 10), 0.1, np.float32)
    named = of.with_confusion(np.array([False, True, False]), confusion)
    assert named.naming.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(named.confusions[2], confusion)
    np.testing.assert_array_equal(named.confusions[:2], of.confusions)
    assert of.only(np.array([1])).weight.tolist() == [0.0, 1.0, 0.0]
    opinion = np.zeros((2, 10), np.float32)
    opinion[:, M] = 1.0
    taught = of.only(np.array([0])).with_teacher(np.array([0, 1]), opinion, 0.25)
    assert taught.target[0, [EW, M]].tolist() == [0.75, 0.25]
    assert taught.target[1, [SR, M]].tolist() == [0.0, 1.0]
    assert taught.target[2, EA] == 1.0
    assert taught.weight.tolist() == [1.0, 0.25, 0.0]


def test_a_batch_has_the_rows_in_the_versions_that_are_asked_for() -> None:
    versions, size = 3, 4
    number = 10 * np.arange(versions)[:, None] + np.arange(size)

    def filled(*shape: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return np.broadcast_to(number.reshape(versions, size, *([1] * len(shape))), (versions, size, *shape)).astype(
            np.float16
        )

    mask = np.zeros((versions, size, 2), np.bool_)
    mask[1, 2] = True
    curves = PreparedLightCurves(
        filled(2, 5), mask, filled(4, 3), filled(6), np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.bool_),
        np.zeros((versions, size)), (100 + number).astype(np.int32),
    )  # fmt: skip
    data = TrainingSet(
        labels("EW", "SR", "EA", "M"), curves, filled(3, 7)[:2], np.array([True, False, True, True]),
        np.arange(8, dtype=np.float32).reshape(4, 2), np.eye(4, 2, dtype=np.bool_),
        np.array([False, True, True, False]),
    )  # fmt: skip
    assert (len(data), data.versions) == (4, 3)
    batch = data.batch(np.array([2, 1, 3]), np.array([1, 0, 2]))
    for tensor in (batch.points, batch.folded, batch.features):
        assert tensor.dtype == torch.float32
        assert tensor.flatten(1)[:, 0].tolist() == [12.0, 1.0, 23.0]
    assert batch.spectra.flatten(1)[:, 0].tolist() == [12.0, 1.0, 3.0]  # of two versions, one after the other
    assert batch.points_mask.any(dim=1).tolist() == [True, False, False]
    assert batch.values.tolist() == [[4.0, 5.0], [2.0, 3.0], [6.0, 7.0]]
    assert batch.known.tolist() == [[False, False], [False, True], [False, False]]
    assert batch.detections.tolist() == [[112.0], [101.0], [123.0]]
    assert batch.present.tolist() == [[True, True, True], [True, False, True], [False, True, False]]
    assert data.batch(np.array([0, 1])).features.flatten(1)[:, 0].tolist() == [0.0, 1.0]


def head() -> MeanClassifier:
    """A head whose logits are 4 for the first class, 0 for the second and nothing for all others."""
    classifier = MeanClassifier()
    with torch.no_grad():
        classifier.linear.weight.zero_()
        classifier.linear.weight[0, 0] = 4.0
        classifier.linear.bias.copy_(torch.tensor([0.0, 0.0] + [-1000.0] * 8))
    return classifier.eval()


def stars(detections: list[int], present: list[list[int]] | None = None) -> Encoded:
    embeddings = torch.zeros(len(detections), 3, 512)
    embeddings[:, :, 0] = 1.0
    mask = torch.tensor(present or [[1, 1, 1]] * len(detections), dtype=torch.bool)
    return Encoded(np.arange(len(detections)), embeddings, mask, np.array(detections, np.int32))


def test_logits_are_divided_by_the_temperature_of_their_own_cell() -> None:
    classifier = head()
    code, last = 5, len(CALIBRATION_BINS) - 1  # light curve and metadata
    with torch.no_grad():
        classifier.log_temperature[code, last] = math.log(2.0)
        classifier.log_temperature[code, 0] = math.log(8.0)
    found = probabilities(classifier, stars([300, 200, 199, 0, 4]), (True, False, True))
    for row, temperature in enumerate((2.0, 2.0, 1.0, 8.0, 8.0)):
        np.testing.assert_allclose(found[row, :2], softmax(np.array([4.0, 0.0]) / temperature), rtol=1e-6)
    np.testing.assert_allclose(probabilities(classifier, stars([300]), (True, True, True))[0, 0], 1 / (1 + np.exp(-4)))
    assert logits(classifier, stars([300]), (True, False, True))[0, :2].tolist() == [4.0, 0.0]


def test_each_cell_gets_the_temperature_that_its_own_stars_ask_for() -> None:
    """Right three times of four: odds of 3 to 1, ln 3 = 4 / T. Half right: no temperature is high enough."""
    classifier = head()
    detections = [300] * 40 + [7] * 40
    label = np.array([0, 0, 0, 1] * 10 + [0, 1] * 20)
    found = fit_temperatures(cast(Any, SimpleNamespace(classifier=classifier)), stars(detections), label)
    sure, unsure = math.exp(1.3), math.exp(1.5)  # the steps of the search nearest to ln(4 / ln 3) = 1.292, and its end
    assert LEAST_IN_CELL == 40
    assert set(found) == {"+".join(n for n, has in zip(("light_curve", "spectrum", "metadata"), s, strict=True) if has)
                          for s in SUBSETS}  # fmt: skip
    for row in found.values():
        # Where there is nothing of its own the nearest lends, and of two as near the one of fewer detections.
        np.testing.assert_allclose(row, [unsure, unsure, unsure, unsure, sure, sure, sure], rtol=1e-5)
    np.testing.assert_allclose(classifier.log_temperature[7].exp(), row, rtol=1e-6)


def test_a_subset_is_calibrated_with_stars_that_have_it() -> None:
    classifier = head()
    encoded = stars([300] * 8, [[1, 0, 0]] * 4 + [[0, 1, 0]] * 4)
    label = np.array([0, 0, 0, 1, 1, 0, 1, 0])
    found = fit_temperatures(cast(Any, SimpleNamespace(classifier=classifier)), encoded, label)
    np.testing.assert_allclose(found["light_curve"], math.exp(1.3), rtol=1e-5)
    np.testing.assert_allclose(found["spectrum"], math.exp(1.5), rtol=1e-5)
    np.testing.assert_allclose(found["metadata"], 1.0)  # of which there is nothing: as it was


def test_thresholds_by_subset_and_cell() -> None:
    """Of 99 probabilities at 0.9 the tenth smallest; 90 of 99 calibration stars reach it, and one more is promised."""
    classifier = head()
    encoded = stars([300] * 99)
    encoded.embeddings[:, :, 0] = torch.linspace(0.0, 1.0, 99)[:, None]
    found = conformal_thresholds(
        cast(Any, SimpleNamespace(classifier=classifier)), encoded, np.zeros(99, np.int64), 0.9
    )
    expected = 1 / (1 + math.exp(-4 * 9 / 98))
    for row in found.values():
        np.testing.assert_allclose(row, [expected] * 7, rtol=1e-5)
    own = np.arange(1.0, 3001.0)
    assert conformal_threshold(np.random.default_rng(0).permutation(own), 0.9) == 300.0  # floor(3001 x 0.1)
    assert conformal_threshold(np.arange(9.0, 0.0, -1), 0.9) == 1.0  # floor(10 x 0.1): the smallest
    assert conformal_threshold(np.empty(0), 0.9) == 0.0


def test_cells_and_what_they_borrow() -> None:
    detections = np.array([4, 5, 9, 10, 19, 20, 49, 50, 99, 100, 199, 200])
    alone = [rows.tolist() for rows in cell_rows(detections, least=1)]
    assert alone == [[0], [1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11]]
    several = [rows.tolist() for rows in cell_rows(detections, least=3)]
    # Its own first, then the cell with fewer detections, then the one with more.
    assert several == [[0, 1, 2], [1, 2, 0], [3, 4, 1, 2], [5, 6, 3, 4], [7, 8, 5, 6], [9, 10, 7, 8], [11, 9, 10]]
    assert [rows.tolist() for rows in cell_rows(np.array([1000]), least=9)] == [[0]] * 7


def test_the_calibration_error_is_a_mean_over_bins_of_equal_width() -> None:
    def error(*of: tuple[float, bool]) -> float:
        predicted = np.zeros((len(of), 3))
        predicted[:, 2] = [confidence for confidence, _ in of]
        return expected_calibration_error(predicted, np.array([2 if right else 0 for _, right in of]))

    # Three bins of their own; then two stars of one bin, whose errors cancel; then the end of the last bin.
    assert error((0.55, True), (0.65, False), (0.95, True)) == pytest.approx((0.45 + 0.65 + 0.05) / 3)
    assert error((0.55, True), (0.58, False)) == pytest.approx(0.13 / 2)
    assert error((1.0, True), (1.0, False)) == pytest.approx(0.5)
    assert error((0.59, True), (0.61, False)) == pytest.approx((0.41 + 0.61) / 2)  # 0.6 is where a bin ends
