"""A reference set from the stream, on made-up embeddings: those of a new survey lie elsewhere than training stars'."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.anomaly.calibrating import calibration_of, distances_of
from broker.anomaly.calibration import Calibration
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import score
from broker.anomaly.shape import Shapes, shapes_of
from broker.anomaly.statistics import Objects
from broker.anomaly.strata import stratum_name
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.errors import ConfigurationError
from broker.reference.check import check, combined_scores
from broker.reference.rebuild import Seen, rebuilt
from broker.taxonomy import CLASS_NAMES
from tests.unit.anomaly.sets import MODEL, reference_set

WIDTH = 24
SHORT, LONG = 30, 300
AXES = np.eye(WIDTH, dtype=np.float32)[:10]
NEW_SURVEY = 0.5 * np.eye(WIDTH, dtype=np.float32)[20]
"""By which all embeddings of the new survey are displaced."""


def stars(
    labels: NDArray[np.intp], detections: int, rng: np.random.Generator, shift: NDArray[np.float32] | float = 0.0
) -> Objects:
    """Light curves about the axis of their class."""
    n = len(labels)
    vectors = AXES[labels] + shift + 0.08 * rng.normal(size=(n, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    by_modality = np.zeros((n, 3, WIDTH), np.float32)
    by_modality[:, 0] = vectors
    probabilities = rng.dirichlet(np.full(10, 0.1), n)
    probabilities[np.arange(n), labels] += 2.0
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    return Objects(
        vectors, by_modality, probabilities, np.tile([True, False, False], (n, 1)), np.full(n, detections),
        np.zeros(n, np.intp), 1.0 - probabilities[np.arange(n), labels].astype(np.float64),
        shapes_of(rng.normal(size=(n, len(LIGHT_CURVE_FEATURES))), np.full(n, detections)),
    )  # fmt: skip


def seen(count: int, detections: int, rng: np.random.Generator, survey: str = "new", first: int = 0) -> Seen:
    """``count`` stars of the new survey, of which the model is sure."""
    labels = rng.integers(0, 10, count)
    return Seen(
        np.array([f"{survey}:{first + i}" for i in range(count)]), np.array(CLASS_NAMES)[labels],
        np.ones(count, np.bool_), replace(stars(labels, detections, rng, NEW_SURVEY), doubt=np.full(count, np.nan)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def base() -> ReferenceSet:
    """A model's own set of two lengths, calibrated by stars like those in it."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 30)
    known = Objects.joined([stars(labels, length, rng) for length in (SHORT, LONG)])
    new = Objects.joined([stars(rng.integers(0, 10, 800), length, rng) for length in (SHORT, LONG)])
    made = reference_set(known.embeddings, 1, known.detections.astype(np.int32))
    made = replace(
        made, class_names=np.tile(np.array(CLASS_NAMES)[labels], 2), embeddings=known.embeddings,
        modalities=np.ones(len(known.detections), np.uint8), detections=known.detections.astype(np.int32),
        calibration_modalities=np.ones(1600, np.uint8), calibration_detections=new.detections.astype(np.int32),
        calibration_values=np.zeros(1600, np.int32), calibration_distances=np.zeros(1600, np.float32),
    )  # fmt: skip
    made = replace(made, calibration_distances=distances_of(made, new.embeddings, new.strata()))
    return replace(made, scores=calibration_of(made, new, Shapes.of(known.strata(), known.shapes)))


def test_a_new_surveys_stars_are_ordinary_after_it(base: ReferenceSet) -> None:
    rng = np.random.default_rng(5)
    made = rebuilt(base, seen(1000, LONG, rng))
    later = seen(400, LONG, rng, first=10_000)
    strange = stars(rng.integers(0, 10, 200), LONG, rng, -NEW_SURVEY)
    before, after = (combined_scores(reference, later.objects) for reference in (base, made))
    assert np.mean(before >= 0.9) > 0.8  # by embeddings alone: their shapes are ordinary
    assert 0.04 < np.mean(after >= 0.9) < 0.18
    assert np.mean(combined_scores(made, strange) >= 0.9) > 0.9
    percentile = score(made, later.objects.embeddings, later.objects.strata()).percentile
    assert 0.04 < np.mean(percentile >= 0.9) < 0.18


def test_what_the_stream_has_too_little_of_is_scored_as_before(base: ReferenceSet) -> None:
    rng = np.random.default_rng(6)
    made = rebuilt(base, seen(600, LONG, rng))
    short, both = stars(rng.integers(0, 10, 50), SHORT, rng), seen(50, LONG, rng, first=900).objects
    np.testing.assert_array_equal(combined_scores(made, short), combined_scores(base, short))
    # In one batch, too, in which the strata alternate.
    mixed = Objects.joined([short, both]).take(np.arange(100).reshape(2, 50).T.ravel())
    scores = combined_scores(made, mixed)
    np.testing.assert_allclose(scores[::2], combined_scores(base, short), atol=1e-6)
    np.testing.assert_allclose(scores[1::2], combined_scores(made, both), atol=1e-6)
    np.testing.assert_array_equal(
        score(made, short.embeddings, short.strata()).percentile,
        score(base, short.embeddings, short.strata()).percentile,
    )


def test_no_object_is_both_in_the_set_and_in_its_calibration(base: ReferenceSet) -> None:
    given = seen(600, LONG, np.random.default_rng(7))
    made = rebuilt(base, given)
    joined = set(made.object_ids.tolist()) - set(base.object_ids.tolist())
    assert joined
    assert all(zlib.crc32(name.encode()) & 1 for name in joined)
    (stratum,) = (s for s in made.strata.values() if "200 points or more" in s.name)
    others = sum(not zlib.crc32(name.encode()) & 1 for name in given.names.tolist())
    assert len(stratum.calibration) == others
    assert made.base is base
    assert made.model == MODEL
    assert made.version.startswith(f"{base.version}.stream-")
    assert rebuilt(base, given).version == made.version
    assert rebuilt(base, seen(600, LONG, np.random.default_rng(8))).version != made.version


def test_only_sure_ones_join_and_no_survey_or_class_is_more_than_its_share(base: ReferenceSet) -> None:
    rng = np.random.default_rng(9)
    one, two = seen(900, LONG, rng), seen(120, LONG, rng, "rare")
    both = Seen(
        np.concatenate([one.names, two.names]), np.concatenate([one.class_names, two.class_names]),
        np.concatenate([np.arange(900) % 2 == 0, two.sure]), Objects.joined([one.objects, two.objects]),
    )  # fmt: skip
    made = rebuilt(base, both, each=7, most=200)
    joined = [name for name in made.object_ids.tolist() if ":" in name]
    assert {name for name in joined if name.startswith("new")} <= set(both.names[both.sure].tolist())
    sizes = np.unique(made.class_names[[":" in name for name in made.object_ids.tolist()]], return_counts=True)[1]
    assert sizes.max() <= 14
    (stratum,) = (s for s in made.strata.values() if "200 points or more" in s.name)
    assert len(stratum.calibration) == 200 + sum(not zlib.crc32(name.encode()) & 1 for name in two.names.tolist())


def test_an_object_has_one_history_in_a_stratum(base: ReferenceSet) -> None:
    one = seen(600, LONG, np.random.default_rng(10))
    rows = np.concatenate([np.arange(600), np.arange(600)])
    assert len(rebuilt(base, one.take(rows))) == len(rebuilt(base, one))


def test_too_little_is_refused_with_how_much_there_is(base: ReferenceSet) -> None:
    with pytest.raises(ConfigurationError, match=r"too little for a reference set: \d\d stars to calibrate"):
        rebuilt(base, seen(120, LONG, np.random.default_rng(11)))


def test_it_comes_back_from_its_files_with_the_same_scores(base: ReferenceSet) -> None:
    rng = np.random.default_rng(12)
    made = rebuilt(base, seen(600, LONG, rng))
    assert made.scores is not None
    again = ReferenceSet.from_bytes(made.to_bytes(), "x")
    again = replace(again, scores=Calibration.from_bytes(made.scores.to_bytes(), "y"), base=base)
    later = Objects.joined([seen(80, LONG, rng, first=5000).objects, stars(rng.integers(0, 10, 20), SHORT, rng)])
    np.testing.assert_allclose(combined_scores(again, later), combined_scores(made, later), atol=0.02)


def test_what_a_catalogue_says_counts_where_enough_stars_are_in_one(base: ReferenceSet) -> None:
    """The stream's stars of this test are in no catalogue: a new one that is has a score without that part."""
    rng = np.random.default_rng(13)
    made = rebuilt(base, seen(600, LONG, rng))
    later = seen(50, LONG, rng, first=5000).objects
    named = replace(later, doubt=np.full(50, 0.5))
    np.testing.assert_array_equal(combined_scores(made, named), combined_scores(made, later))


def test_the_check_is_of_objects_that_are_in_neither(base: ReferenceSet) -> None:
    before, after, objects = check(base, seen(1500, LONG, np.random.default_rng(14)))
    assert before > 0.8
    assert 0.03 < after < 0.2
    assert 200 < objects < 400


def test_strata_by_name(base: ReferenceSet) -> None:
    made = rebuilt(base, seen(600, LONG, np.random.default_rng(15)))
    assert made.scores is not None
    assert [stratum_name(number) for number in made.scores.tails] == ["light_curve, 200 points or more"]
