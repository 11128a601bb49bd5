"""From the embeddings of one modality to those of another, by classes: worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.errors import ConfigurationError
from broker.similar.translate import Translator
from broker.taxonomy import CLASS_NAMES
from tests.unit.anomaly.sets import reference_set

LIGHT_CURVE, SPECTRUM, BOTH = 1, 2, 3
STARS = 10


def stars() -> ReferenceSet:
    """Ten of each class: light curves of class c at axis c, spectra at axis c + 10; of both together, elsewhere."""
    axes = np.eye(30, dtype=np.float32)
    number = np.repeat(np.arange(10), STARS)
    embeddings = np.concatenate([axes[number], axes[number + 10], axes[number + 20]])
    codes = np.repeat(np.array([LIGHT_CURVE, SPECTRUM, BOTH], np.uint8), 10 * STARS)
    names = np.array(CLASS_NAMES)[np.tile(number, 3)]
    points = np.where(codes & LIGHT_CURVE, 30, 0).astype(np.int32)
    # The set puts its columns in order when it is made, and the names with them.
    made = reference_set(embeddings, codes, points)
    order = np.array([int(name.split()[1]) for name in made.object_ids.tolist()])
    return replace(made, class_names=names[order])


def at(*axes: int) -> NDArray[np.float32]:
    vector = np.zeros(30, np.float32)
    vector[list(axes)] = 1.0
    return vector / np.float32(np.sqrt(len(axes)))


def test_a_class_goes_to_the_same_class() -> None:
    translator = Translator(stars())
    for number in range(10):
        (there,) = translator.translate(at(10 + number)[None], "spectrum", "light_curve")
        np.testing.assert_allclose(there, at(number), atol=1e-6)
        (back,) = translator.translate(there[None], "light_curve", "spectrum")
        np.testing.assert_allclose(back, at(10 + number), atol=1e-6)


def test_between_two_classes_is_between_them() -> None:
    """Nine of the ten nearest of class 3 are left, and the tenth is of class 4: shares of 0.9 and 0.1."""
    whole = stars()
    left_out = np.flatnonzero((whole.modalities == SPECTRUM) & (whole.class_names == CLASS_NAMES[3]))[0]
    embeddings = whole.embeddings.copy()
    embeddings[left_out] = at(25)
    query = at(13) + 0.5 * at(14)
    translator = Translator(replace(whole, embeddings=embeddings))
    (there,) = translator.translate((query / np.linalg.norm(query))[None], "spectrum", "light_curve")
    np.testing.assert_allclose(there[3] / there[4], 9.0, rtol=1e-5)
    assert np.linalg.norm(there) == pytest.approx(1.0)


def test_a_modality_that_the_set_does_not_have_alone_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no stars of all classes with metadata alone"):
        Translator(stars()).translate(at(10)[None], "spectrum", "metadata")
