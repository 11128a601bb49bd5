"""Distances to the stars of the classes an object is taken for, by their spacing: values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.anomaly.class_stars import ClassStars

# On a line: class 0 is crowded (a star each 1), class 1 sparse (each 10), class 2 is one star.
PLACES = np.array([100, 2, 0, 500, 110, 1, 3, 120], np.float32)[:, None]
CLASSES = np.array([1, 0, 0, 2, 1, 0, 0, 1])


def spacings(place: float, probabilities: dict[int, float], k: int = 1) -> float:
    stars = ClassStars.of(PLACES, CLASSES, k)
    vectors = np.array([[place]], np.float32)
    weights = np.zeros((1, 10), np.float32)
    for number, probability in probabilities.items():
        weights[0, number] = probability
    return float(stars.spacings(vectors, vectors @ stars.vectors.T, weights)[0])


def test_a_distance_counts_by_the_spacing_of_its_class() -> None:
    assert spacings(7.0, {0: 1.0}) == pytest.approx(4.0)  # from 3, each 1
    assert spacings(60.0, {1: 1.0}) == pytest.approx(4.0)  # from 100, each 10
    assert spacings(7.0, {0: 0.75, 1: 0.25}) == pytest.approx(0.75 * 4.0 + 0.25 * 9.3)


def test_the_nearest_k_are_meant_of_a_class_that_has_more() -> None:
    # Of class 0 the two nearest of each are at a mean distance of 1 or 1.5, the median 1.25; class 1 has too few for 3.
    assert spacings(7.0, {0: 1.0}, k=2) == pytest.approx(4.5 / 1.25)
    assert spacings(7.0, {0: 0.2, 1: 0.8}, k=3) == pytest.approx(5.0 / (5.0 / 3.0))


def test_classes_of_too_few_stars_count_for_nothing() -> None:
    assert spacings(7.0, {0: 0.4, 2: 0.6}) == pytest.approx(4.0)
    assert np.isnan(spacings(7.0, {2: 1.0}))
    assert np.isnan(spacings(7.0, {}))


def test_stars_in_the_order_of_their_classes_are_not_copied() -> None:
    ordered: NDArray[np.float32] = PLACES[np.argsort(CLASSES, kind="stable")]
    stars = ClassStars.of(ordered, np.sort(CLASSES), 1)
    assert stars.vectors is ordered
    np.testing.assert_array_equal(stars.vectors, ClassStars.of(PLACES, CLASSES, 1).vectors)


def test_equal_stars_have_a_spacing_that_divides() -> None:
    stars = ClassStars.of(np.zeros((3, 2), np.float32), np.zeros(3, np.intp), 1)
    new = np.array([[0.0, 1.0]], np.float32)
    assert np.isfinite(stars.spacings(new, new @ stars.vectors.T, np.full((1, 10), 0.1)))
