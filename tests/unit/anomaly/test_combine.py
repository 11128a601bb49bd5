from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest

from broker.anomaly.calibrating import calibration_of
from broker.anomaly.calibration import Calibration, Scorer, calibration_path, with_scores
from broker.anomaly.combine import REMARKABLE, combine
from broker.anomaly.shape import LEAST_POINTS, SHAPE, Shapes, shapes_of
from broker.anomaly.statistics import DENSITY_TEMPERATURE, Objects, class_centres, statistics_of, whitening_of
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.errors import ConfigurationError
from broker.npz import to_npz
from broker.taxonomy import CLASS_NAMES
from tests.unit.anomaly.sets import MODEL, reference_set

LENGTHS = (7, 300)
WIDTH = 24
AXES = np.eye(WIDTH, dtype=np.float32)[:10]


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def shapes(labels: NDArray[np.intp], detections: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """As ``shapes_of``: each class is about a place of its own."""
    found = np.zeros((len(labels), len(LIGHT_CURVE_FEATURES)))
    found[:, [LIGHT_CURVE_FEATURES.index(name) for name in SHAPE]] = rng.normal(size=(len(labels), len(SHAPE)))
    found[:, LIGHT_CURVE_FEATURES.index("log10_period")] += 6.0 * labels
    return shapes_of(found, np.full(len(labels), detections))


def known_shapes(known: Objects) -> Shapes:
    alone = (known.present == [True, False, False]).all(axis=1)
    return Shapes.of(known.strata()[alone], known.shapes[alone])


def stars(
    labels: NDArray[np.intp], present: tuple[bool, bool, bool], detections: int, rng: np.random.Generator
) -> Objects:
    """Objects whose modalities lie about the axis of their class, the wider the shorter they are."""
    n = len(labels)
    spread = 0.15 if detections > 100 else 0.4
    each = unit(AXES[labels][:, None] + spread * rng.normal(size=(n, 3, WIDTH)) / np.sqrt(WIDTH / 10))
    each *= np.array(present)[:, None]
    probabilities = rng.dirichlet(np.full(10, 0.1), n)
    probabilities[np.arange(n), labels] += 2.0
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    doubt = 1.0 - probabilities[np.arange(n), labels].astype(np.float64)
    return Objects(
        unit(each.sum(axis=1)), each, probabilities, np.tile(present, (n, 1)), np.full(n, detections),
        np.full(n, 5 * present[2]), doubt, shapes(labels, detections if present[0] else 0, rng),
    )  # fmt: skip


def joined(parts: list[Objects]) -> Objects:
    return Objects(*(np.concatenate([getattr(p, name) for p in parts]) for name in Objects.__slots__))


KINDS = [((True, False, False), n) for n in LENGTHS] + [((True, False, True), n) for n in LENGTHS]
ALL = [*KINDS, ((False, False, True), 0)]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    rng = np.random.default_rng(1)
    known = joined([stars(np.repeat(np.arange(10), 30), *kind, rng) for kind in ALL])
    codes = (known.present @ np.array([1, 2, 4])).astype(np.uint8)
    reference = reference_set(known.embeddings, codes, known.detections.astype(np.int32))
    names = np.tile(np.repeat(np.array(CLASS_NAMES), 30), len(ALL))
    reference = replace(
        reference, class_names=names, embeddings=known.embeddings, modalities=codes,
        detections=known.detections.astype(np.int32), values=np.where(codes & 4, 5, 0).astype(np.int32),
    )  # fmt: skip
    new = joined([stars(rng.integers(0, 10, 1500), *kind, rng) for kind in ALL])
    return Scorer(reference, calibration_of(reference, new, known_shapes(known)))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("present", "detections"), KINDS)
def test_scores_of_known_classes_are_uniform_in_each_stratum(
    scorer: Scorer, present: tuple[bool, bool, bool], detections: int, known: bool
) -> None:
    """Short ones scatter more than twice as far, and are no stranger for it."""
    new = stars(np.arange(1500) % 10, present, detections, np.random.default_rng(2))
    if not known:
        new = replace(new, doubt=np.full(1500, np.nan))
    found = combine(scorer, new)
    assert kstest(found.score, "uniform").statistic < 0.06
    parts = np.array([p["all.mahalanobis"] for p in found.parts])
    assert kstest(parts, "uniform").statistic < 0.06
    assert ("catalogue" in found.parts[0], "disagreement" in found.parts[0]) == (known, present[2])
    assert ("shape" in found.parts[0]) == (detections >= LEAST_POINTS)


@pytest.mark.parametrize("detections", LENGTHS)
def test_what_is_of_no_class_is_strange_at_any_length(scorer: Scorer, detections: int) -> None:
    new = stars(np.arange(40) % 10, (True, False, False), detections, np.random.default_rng(3))
    elsewhere = unit(np.random.default_rng(4).normal(size=(40, WIDTH)) * (np.arange(WIDTH) >= 10))
    found = combine(scorer, replace(new, embeddings=elsewhere, doubt=np.full(40, np.nan)))
    assert (found.score > 0.9).all()
    said = [reason for reason, score in zip(found.reasons, found.score, strict=True) if score >= REMARKABLE]
    assert len(said) > 36
    said_so = ("by light curve, far", "unlike the known stars of the classes that", "where there are few known stars")
    assert all(reason and reason.startswith(said_so) for reason in said)
    # Of some hundred stars none can say what one in a million is.
    assert any("(fewer than 1 in 1,000 known stars" in str(reason) for reason in said)
    assert all(float(n.replace(",", "")) <= 1000 for n in re.findall(r"1 in ([\d,]+)", " ".join(map(str, said))))


def test_a_shape_that_no_known_star_has_is_strange_whatever_the_network_sees(scorer: Scorer) -> None:
    """As a class that it was not trained on, which it puts where the nearest one is."""
    for present in ((True, False, False), (True, False, True)):
        new = stars(np.arange(40) % 10, present, 300, np.random.default_rng(9))
        new = replace(new, doubt=np.full(40, np.nan))
        beyond = new.shapes.copy()
        beyond[:, 2:8] += 30.0
        ordinary, found = combine(scorer, new), combine(scorer, replace(new, shapes=beyond))
        assert np.median(found.score) > 0.95 > np.median(ordinary.score)
        assert (found.score >= ordinary.score).all()
        said = [reason for reason in found.reasons if reason and reason.startswith("period, amplitude and shape")]
        assert len(said) > 20
        without = replace(new, shapes=np.full_like(new.shapes, np.nan))
        assert all("shape" not in parts for parts in combine(scorer, without).parts)


def test_what_the_network_doubts_is_strange_wherever_it_lies(scorer: Scorer) -> None:
    """Near known stars of all measures, but of no class more than of another."""
    new = replace(
        stars(np.arange(40) % 10, (True, False, False), 300, np.random.default_rng(11)), doubt=np.full(40, np.nan)
    )
    doubted = combine(scorer, replace(new, probabilities=np.full((40, 10), 0.1, np.float32)))
    assert np.median(doubted.score) > 0.95 > np.median(combine(scorer, new).score)
    assert any(str(reason).startswith("no class fits clearly") for reason in doubted.reasons)


def test_stars_taken_for_a_class_are_compared_with_its_own(scorer: Scorer) -> None:
    """Between the stars of one class, and taken for another."""
    new = replace(
        stars(np.arange(40) % 10, (True, False, False), 300, np.random.default_rng(12)), doubt=np.full(40, np.nan)
    )
    elsewhere = np.roll(new.probabilities, 1, axis=1)
    right, wrong = combine(scorer, new), combine(scorer, replace(new, probabilities=elsewhere))
    assert all(parts["class_neighbours"] > 0.99 for parts in wrong.parts)
    assert np.median([parts["class_neighbours"] for parts in right.parts]) < 0.9
    said = [reason for reason in wrong.reasons if reason and "the classes that it is taken for" in reason]
    assert len(said) > 30


def test_the_density_is_the_sum_over_the_stars_of_all_classes(scorer: Scorer) -> None:
    new = stars(np.arange(6), (True, False, False), 300, np.random.default_rng(13))
    statistics, _ = statistics_of(
        new, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes
    )
    known = scorer.reference.strata[int(new.strata()[0])].embeddings.astype(np.float64)
    expected = -np.log(np.exp(new.embeddings.astype(np.float64) @ known.T / DENSITY_TEMPERATURE).sum(axis=1))
    np.testing.assert_allclose(statistics["density"], expected, rtol=1e-4)


def test_modalities_that_point_to_two_classes_disagree_and_the_reason_names_them(scorer: Scorer) -> None:
    rng = np.random.default_rng(5)
    a, b = (stars(np.full(60, label), (True, False, True), 300, rng) for label in (3, 8))
    assert a.by_modality is not None
    assert b.by_modality is not None
    by_modality = a.by_modality.copy()
    by_modality[:, 2] = b.by_modality[:, 2]
    crossed = replace(a, by_modality=by_modality, embeddings=unit(by_modality.sum(axis=1)), doubt=np.full(60, np.nan))
    found = combine(scorer, crossed)
    assert (found.score > 0.99).all()
    assert all(parts["disagreement"] > 0.99 for parts in found.parts)
    only = replace(crossed, embeddings=a.embeddings)  # all together like an ordinary star of the class
    _, leading = statistics_of(
        only, scorer.reference, scorer.centres, scorer.calibration.whitening, scorer.calibration.shapes
    )
    assert (leading == [3, -1, 8]).all()
    reasons = [reason for reason in combine(scorer, only).reasons if reason and "different classes" in reason]
    assert f"light curve {CLASS_NAMES[3]}, catalogue values {CLASS_NAMES[8]}" in reasons[0]


def test_a_catalogue_that_names_an_unlikely_class_counts(scorer: Scorer) -> None:
    new = stars(np.arange(40) % 10, (True, False, False), 300, np.random.default_rng(6))
    right, wrong = (
        combine(scorer, replace(new, doubt=np.full(40, d)), names=["VSX says EA"] * 40) for d in (0.05, 1.0)
    )
    assert (wrong.score > right.score).all()
    said = [reason for reason in wrong.reasons if reason and reason.startswith("VSX says EA")]
    assert said


def test_each_row_is_scored_as_if_alone(scorer: Scorer) -> None:
    new = joined([stars(np.arange(6), *kind, np.random.default_rng(7)) for kind in ALL])
    together = combine(scorer, new)
    for row in range(len(new.embeddings)):
        alone = combine(scorer, Objects(*(getattr(new, name)[row : row + 1] for name in Objects.__slots__)))
        assert alone.score[0] == pytest.approx(together.score[row], abs=1e-5)
        assert alone.parts[0] == pytest.approx(together.parts[row], abs=1e-5)


def test_without_embeddings_by_modality_several_have_no_score_and_one_has(scorer: Scorer) -> None:
    new = joined([stars(np.arange(6), *kind, np.random.default_rng(7)) for kind in (KINDS[0], KINDS[2])])
    found = combine(scorer, replace(new, by_modality=None))
    assert np.isfinite(found.score).tolist() == [True] * 6 + [False] * 6
    assert found.parts[6:] == [{}] * 6


def test_scores_never_mix_two_spaces(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "reference_set.npz"
    calibration_path(path).write_bytes(scorer.calibration.to_bytes())
    assert with_scores(scorer.reference, path).scores is not None
    for other in (
        replace(scorer.reference, version="1.0+another1", scores=None),
        replace(scorer.reference, model=f"{MODEL}.1", scores=None),
    ):
        with pytest.raises(ConfigurationError, match=r"is that of reference set 1\.0\+abcdef01 of trifid-test 1\.0"):
            with_scores(other, path)
        with pytest.raises(ConfigurationError, match="scores of two spaces have nothing in common"):
            Scorer(other, scorer.calibration)


def test_a_calibration_comes_back_from_its_file_and_a_damaged_one_is_refused(scorer: Scorer) -> None:
    data = scorer.calibration.to_bytes()
    again = Calibration.from_bytes(data, "here")
    np.testing.assert_array_equal(again.values, scorer.calibration.values)
    np.testing.assert_allclose(again.whitening, scorer.calibration.whitening, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(again.shapes.values, scorer.calibration.shapes.values)
    np.testing.assert_array_equal(again.shapes.strata, scorer.calibration.shapes.strata)
    with np.load(io.BytesIO(data)) as arrays:
        earlier = to_npz(**{name: arrays[name] for name in arrays.files if not name.startswith("shape")})
    with pytest.raises(ConfigurationError, match="here is a calibration of anomaly scores of an earlier release; make"):
        Calibration.from_bytes(earlier, "here")
    with np.load(io.BytesIO(data)) as arrays:
        before = to_npz(**{**arrays, "format": np.array(2, np.int32)})
    with pytest.raises(ConfigurationError, match=r"here cannot be used .*: format 2, this release reads 3; make both"):
        Calibration.from_bytes(before, "here")
    for wrong in (data[: len(data) // 2], b"", b"no zip"):
        with pytest.raises(ConfigurationError, match="here is no calibration of anomaly scores"):
            Calibration.from_bytes(wrong, "here")


def test_the_mahalanobis_distance_is_that_of_the_inverse_covariance() -> None:
    """Against numpy's inverse of the scatter within classes, shrunk, in 24 dimensions."""
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(10), 30)
    known = stars(labels, (True, False, False), 300, rng)
    reference = reference_set(known.embeddings, detections=300)
    reference = replace(reference, class_names=np.array(CLASS_NAMES)[labels])
    whitening = whitening_of(reference, WIDTH, shrinkage=0.1)
    new = stars(np.arange(10), (True, False, False), 300, rng)
    statistics, _ = statistics_of(new, reference, class_centres(reference, whitening), whitening, Shapes.none())
    means = np.stack([known.embeddings[labels == c].mean(axis=0) for c in range(10)]).astype(np.float64)
    residual = known.embeddings - means[labels]
    scatter = residual.T @ residual / len(residual)
    shrunk = 0.9 * scatter + 0.1 * np.trace(scatter) / WIDTH * np.eye(WIDTH)
    difference = new.embeddings[:, None] - means[None]
    expected = np.einsum("ncd,de,nce->nc", difference, np.linalg.inv(shrunk), difference).min(axis=1)
    np.testing.assert_allclose(statistics["all.mahalanobis"], expected, rtol=1e-3)
    cosine = new.embeddings @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(statistics["all.centroid"], 1 - cosine.max(axis=1), atol=1e-6)
