"""Methods that are compared on classes left out."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from broker.anomaly.combine import sums_of
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from training import __main__ as commands
from training import evaluate_anomaly
from training.anomaly_methods import EIGHT, columns, combined, contrastive, feature_scores
from training.anomaly_ways import WAYS, way


def test_each_method_tells_what_lies_between_and_beyond_the_classes() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 100)
    middle = rng.normal(size=(3, len(LIGHT_CURVE_FEATURES))) * 4
    known, new = (
        (middle[label] + rng.normal(size=(300, len(LIGHT_CURVE_FEATURES)))).astype(np.float32) for _ in range(2)
    )
    beyond = (middle[[0] * 50] * -1 + rng.normal(size=(50, len(LIGHT_CURVE_FEATURES)))).astype(np.float32)
    scores = feature_scores(known, label, rng)
    assert {"kNN, 8 features", "kNN, 14 of shape", "random forest: entropy"} < set(scores)
    outside = np.repeat([False, True], [300, 50])
    for name, score in scores.items():
        found = score(np.concatenate([new, beyond]))
        assert found.shape == (350,)
        assert np.isfinite(found).all()
        # Of what lies beyond a class no forest of known stars can say that it is far.
        if name.startswith(("kNN", "mixtures by class")):
            assert roc_auc_score(outside, found) > 0.95, name


@pytest.mark.parametrize("versions", [4, 5])
def test_classes_left_out_are_of_the_versions_that_the_cache_has(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: int
) -> None:
    """With others than ``train-without`` made, that cache was thrown away."""
    asked = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(commands, "outside_the_ten", lambda *_: "")
    monkeypatch.setattr(evaluate_anomaly, "prepare_light_curves", asked)
    arguments = ["evaluate-anomaly", "--shared", str(small), "--models", str(tmp_path), "--versions", str(versions)]
    with pytest.raises(InterruptedError):
        CliRunner().invoke(commands.main, arguments, catch_exceptions=False)
    assert asked.call_args.args[2:4] == (versions, tmp_path.parent / "light_curves")


def test_features_are_found_by_their_names() -> None:
    assert [LIGHT_CURVE_FEATURES[column] for column in columns(EIGHT)] == list(EIGHT)


def test_one_surprise_is_enough_for_a_harmonic_mean() -> None:
    one = np.array([0.0, 20.0])
    parts = {name: np.zeros(2) for name in ("far", "unsure", "kNN, 8 features", "random forest: entropy")}
    found = combined({**parts, "kNN, 14 of shape": one}, ["far"], "unsure")
    assert found["**distances and uncertainty**"].tolist() == [0.0, 0.0]
    assert found["**these and 14 of shape**, harmonic"][1] > 19.9


def test_two_views_of_a_star_are_near_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    star = rng.normal(size=(300, 12)).astype(np.float32)
    views = [star + 0.1 * rng.normal(size=star.shape).astype(np.float32) for _ in range(2)]
    embed = contrastive(views[0], views[1], steps=100, batch=64)
    first, second = (embed(view) for view in views)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-5)
    assert np.mean((first @ second.T).argmax(axis=1) == np.arange(300)) > 0.5


def test_a_way_adds_and_lets_what_counts_alone_decide() -> None:
    surprises = {"a": np.array([1.0, 2.0]), "b": np.array([0.5, 0.0]), "c": np.array([np.nan, 20.0])}
    found = way({"a": 1.0, "b": 2.0}, {"c": 1.25})(surprises)
    # Where there is no c the sum is as it is; else a surprise far above it is nearly all.
    np.testing.assert_allclose(found, [2.0, np.logaddexp(2.0, 25.0)])
    assert surprises["a"].tolist() == [1.0, 2.0]


def test_the_first_way_is_the_services_own() -> None:
    rng = np.random.default_rng(0)
    names = ("all.neighbours", "all.mahalanobis", "all.centroid", "class_neighbours", "uncertainty", "density", "shape")
    surprises = {name: rng.exponential(size=9) for name in names}
    nothing = {name: np.full(9, np.nan) for name in ("disagreement", "catalogue")}
    service, _ = sums_of({**surprises, **nothing})
    np.testing.assert_allclose(next(iter(WAYS.values()))(surprises), service)
