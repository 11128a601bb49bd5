"""What answers do to anomaly scores, against worked values and scikit-learn's Gaussian processes."""

from __future__ import annotations

from math import exp, log, log1p

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from broker.errors import ConfigurationError
from broker.feedback import learner
from broker.feedback.learner import Correction, changed, compressed, kernel, learn, surprise, vectors_of

WIDTH = 8
TYPICAL_SCORE = 1.0 - exp(-learner.TYPICAL)


def units(*rows: list[float], modality: int = 0) -> np.ndarray:
    """Objects (n, 3, WIDTH) with one modality, of the first values of their embeddings."""
    vectors = np.zeros((len(rows), 3, WIDTH), np.float32)
    for row, values in enumerate(rows):
        vectors[row, modality, : len(values)] = np.array(values) / np.linalg.norm(values)
    return vectors


def random_units(n: int, seed: int) -> np.ndarray:
    return units(*np.random.default_rng(seed).normal(size=(n, WIDTH)).tolist())


def scores(n: int, value: float = TYPICAL_SCORE) -> np.ndarray:
    return np.full(n, value)


def test_one_answer_changes_the_object_itself_by_the_worked_value() -> None:
    # f = 4 (1 - sigmoid(f)): where the prior is even.
    f = brentq(lambda f: 4.0 * (1.0 - 1.0 / (1.0 + exp(-f))) - f, 0.0, 4.0)
    here = units([1, 0])
    found = learn("m", "r", here, scores(1), np.array([True])).apply(scores(1), here)
    assert found.change[0] == pytest.approx(2.0 * f, abs=1e-6)
    assert found.score[0] == pytest.approx(1.0 - exp(-(6.0 + 2.0 * f)), abs=1e-9)
    assert found.answers.tolist() == [1]


def test_answers_are_learned_as_scikit_learn_learns_them() -> None:
    here = random_units(30, 1)
    interesting = np.random.default_rng(2).random(30) < 0.4
    own = ConstantKernel(learner.AMPLITUDE, "fixed") * RBF(learner.LENGTH, "fixed")
    theirs = GaussianProcessClassifier(own, optimizer=None).fit(here[:, 0], interesting).base_estimator_
    found = learn("m", "r", here, scores(30), interesting)
    assert np.abs(found.weights - (interesting - theirs.pi_)).max() < 2e-4  # vectors are kept in 16 bits
    others = random_units(5, 3)
    latent = own(others[:, 0], here[:, 0]) @ (interesting - theirs.pi_)
    change = found.apply(scores(5), others).change
    assert change == pytest.approx(np.where(np.abs(latent / 0.5) < 0.1, 0.0, latent / 0.5), abs=5e-3)


def test_what_is_far_from_all_answers_is_as_it_was() -> None:
    correction = learn("m", "r", units([1, 0]), scores(1), np.array([False]))
    far = units([-1, 0])
    found = correction.apply(np.array([0.25]), far)
    assert found.score.tolist() == [0.25]
    assert (found.change.tolist(), found.answers.tolist()) == ([0.0], [0])


def test_no_single_answer_changes_more_than_its_bound() -> None:
    here = units([1, 0])
    for score in (0.0, 0.5, 0.999, 1.0 - 1e-12):
        for answer in (True, False):
            change = learn("m", "r", here, scores(1, score), np.array([answer])).apply(scores(1, score), here).change
            assert abs(change[0]) < learner.AMPLITUDE / learner.BETA
            assert (change[0] > 0) == answer or change[0] == 0.0


def test_people_who_contradict_each_other_cancel_out() -> None:
    here = np.repeat(units([1, 0]), 2, axis=0)
    found = learn("m", "r", here, scores(2), np.array([True, False])).apply(scores(1), here[:1])
    assert found.change.tolist() == [0.0]


def test_answers_of_the_other_kind_are_not_counted() -> None:
    near = units([1, 0], [1, 0.01], [1, -0.01])
    found = learn("m", "r", near, scores(3), np.array([True, True, False])).apply(scores(1), units([1, 0]))
    assert found.change[0] > 0
    assert found.answers.tolist() == [2]


def test_what_has_no_modality_in_common_is_not_compared() -> None:
    correction = learn("m", "r", units([1, 0]), scores(1), np.array([True]))
    found = correction.apply(scores(1, 0.5), units([1, 0], modality=2))
    assert found.change.tolist() == [0.0]


def test_the_covariance_of_several_modalities_is_worked_out() -> None:
    both = units([1, 0]) + units([0, 1], modality=2)
    # Of two modalities one is the same, the other absent: 1 / sqrt(2 * 1).
    assert kernel(both, units([1, 0]))[0, 0] == pytest.approx(learner.AMPLITUDE / np.sqrt(2.0), rel=1e-6)
    assert kernel(both, both)[0, 0] == pytest.approx(learner.AMPLITUDE, rel=1e-6)
    # 60 degrees: 1 - cos = 0.5, over 0.25.
    turned = units([0.5, np.sqrt(0.75)])
    assert kernel(units([1, 0]), turned)[0, 0] == pytest.approx(learner.AMPLITUDE * exp(-2.0), rel=1e-6)


def test_the_covariance_has_no_negative_eigenvalue_whatever_is_absent() -> None:
    rng = np.random.default_rng(4)
    vectors = np.stack([random_units(40, seed)[:, 0] for seed in (5, 6, 7)], axis=1)
    vectors *= (rng.random((40, 3)) < 0.6)[:, :, None]
    assert np.linalg.eigvalsh(kernel(vectors, vectors)).min() > -1e-5


def test_surprises_and_scores_are_inverse_to_each_other() -> None:
    score = np.array([0.0, 0.5, 0.99])
    assert surprise(score) == pytest.approx([0.0, log(2.0), log(100.0)])
    assert changed(score, np.array([0.0, log(2.0), -log(10.0)])) == pytest.approx([0.0, 0.75, 0.9])
    assert changed(np.array([np.nan]), np.array([1.0]))[0] != changed(np.array([np.nan]), np.array([1.0]))[0]
    strange = 1.0 - np.exp(-np.array([11.0, 11.0, 11.0]))
    after = changed(strange, np.array([1.0, -0.5, -2.0]))
    half = 11.0 - 0.5 * (3.0 - log1p(3.0))
    assert -np.log1p(-after) == pytest.approx([12.0, half - 0.5, 8.0 + log1p(3.0) - 2.0], rel=1e-6)
    assert compressed(np.array([8.0, 11.0])) == pytest.approx([8.0, 8.0 + log1p(3.0)])


def test_bytes_give_the_same_correction_again() -> None:
    first = learn("m", "r", random_units(6, 8), scores(6), np.arange(6) % 2 == 0, made=60000.5)
    again = Correction.from_bytes(first.to_bytes(), "here")
    assert (again.model, again.reference_version, again.made) == ("m", "r", 60000.5)
    others = random_units(4, 9)
    assert again.apply(scores(4), others).change.tolist() == first.apply(scores(4), others).change.tolist()
    assert again.fits("m", "r")
    assert not again.fits("m", "r2")
    assert not again.fits("m2", "r")


@pytest.mark.parametrize(
    "damage",
    [
        {"weights": np.array([2.0])},
        {"weights": np.array([np.nan])},
        {"vectors": np.zeros((1, 2, WIDTH), np.float16)},
        {"vectors": np.zeros((2, 3, WIDTH), np.float16)},
        {"vectors": np.full((1, 3, WIDTH), 60_000.0, np.float16)},  # whose kernel is beyond all numbers
        {"vectors": np.zeros((1, 3, 12 << 20), np.float16)},  # 72 MiB that are 70 kB when packed
        {"format": np.array(2)},
        {"made": np.array("x")},
    ],
)
def test_what_is_no_correction_is_refused(tmp_path, damage: dict[str, np.ndarray]) -> None:
    with np.load(_file(tmp_path, learn("m", "r", units([1, 0]), scores(1), np.array([True])).to_bytes())) as file:
        arrays = dict(file) | damage
    np.savez(tmp_path / "damaged.npz", **arrays)
    with pytest.raises(ConfigurationError, match="here"):
        Correction.from_bytes((tmp_path / "damaged.npz").read_bytes(), "here")
    with pytest.raises(ConfigurationError, match="here is no correction"):
        Correction.from_bytes(b"anything", "here")


def _file(folder, data: bytes):
    path = folder / "whole.npz"
    path.write_bytes(data)
    return path


def test_only_the_latest_answers_are_learned_from() -> None:
    many = random_units(learner.MOST + 5, 10)
    interesting = np.zeros(len(many), np.bool_)
    found = learn("m", "r", many, scores(len(many)), interesting)
    assert len(found) == learner.MOST
    assert found.vectors[0] == pytest.approx(many[5], abs=1e-3)


def test_embeddings_by_modality_are_those_that_are_present() -> None:
    fused = np.stack([np.full(WIDTH, 1.0), np.full(WIDTH, 2.0)]).astype(np.float32)
    each = np.arange(2 * 3 * WIDTH, dtype=np.float32).reshape(2, 3, WIDTH)
    present = np.array([[True, False, False], [True, False, True]])
    with_each = vectors_of(fused, each, present)
    assert with_each[1, 2].tolist() == each[1, 2].tolist()
    assert not with_each[1, 1].any()
    alone = vectors_of(fused, None, present)
    assert alone[0, 0].tolist() == fused[0].tolist()
    assert not alone[1].any()
