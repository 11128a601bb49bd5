"""Scores after the first detections: what is cut, what is counted, and that more points give better scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from broker.assemble.lightcurve import MIN_POINTS, assemble_light_curves
from broker.records import LightCurve, PhotometryKind
from training.calibrate import Encoded, probabilities
from training.config import load_settings
from training.detections import (
    accuracy_by_detections,
    detections_markdown,
    first_detections,
    save_detections,
)
from training.encoders.build import build_model
from training.encoders.trimodal import Trimodal


def light_curve(size: int, seed: int = 0, limits: tuple[int, ...] = ()) -> LightCurve:
    """A sinusoid with ``size`` points; those at ``limits`` are upper limits."""
    rng = np.random.default_rng(seed)
    mjd = np.sort(rng.uniform(58000, 58400, size))
    kind = np.full(size, PhotometryKind.DETECTION, np.uint8)
    kind[list(limits)] = PhotometryKind.LIMIT
    flux = (1e5 * (1 + 0.3 * np.sin(2 * np.pi * mjd / 0.7))).astype(np.float32)
    flux[list(limits)] = np.nan
    return LightCurve(
        mjd, flux, np.full(size, 1e3, np.float32), np.zeros(size, np.float32), np.full(size, 9, np.uint8), kind
    )


@pytest.fixture(scope="module")
def model() -> Trimodal:
    torch.manual_seed(1)
    return build_model(load_settings("trifid")).eval()


def test_the_first_detections_in_time_are_kept_whatever_their_order() -> None:
    curve = light_curve(12)
    turned = LightCurve(*(getattr(curve, name)[::-1] for name in LightCurve.__dataclass_fields__))
    np.testing.assert_array_equal(first_detections(turned, 5).mjd, curve.mjd[:5])
    np.testing.assert_array_equal(first_detections(turned, 5).flux, curve.flux[:5])
    np.testing.assert_array_equal(first_detections(turned, None).mjd, curve.mjd)


def test_limits_are_not_counted_and_later_ones_are_not_known_yet() -> None:
    curve = light_curve(10, limits=(0, 2, 6, 7))
    assert len(first_detections(curve, 3)) == 5  # limit, detection, limit, detection, detection
    assert len(first_detections(curve, 4)) == 6
    assert len(first_detections(curve, 5)) == 9  # the limits at 6 and 7 came before the fifth detection
    assert len(first_detections(curve, 50)) == 10


def test_stars_are_counted_by_their_number_of_detections(model: Trimodal) -> None:
    sizes = [3, 4, 7, 30, 60]
    curves = [light_curve(size, seed) for seed, size in enumerate(sizes)]
    label = np.arange(5)
    scores = accuracy_by_detections(model, curves, label, (4, 5, 10, 50, None), processes=1)
    assert [s.name for s in scores] == ["4", "5", "10", "50", "all"]
    assert [s.objects for s in scores] == [5] * 5
    assert [s.shorter for s in scores] == [1, 2, 3, 4, 0]
    assert [s.not_classified for s in scores] == [5, 2, 2, 2, 2]
    assert MIN_POINTS == 5
    assert math.isnan(scores[0].accuracy)
    assert all(0 <= s.accuracy <= 1 for s in scores[1:])


def test_scores_are_those_of_the_services_inputs_cut_to_the_first_points(model: Trimodal) -> None:
    curves = [light_curve(size, seed) for seed, size in enumerate([40, 80, 120])]
    inputs = assemble_light_curves(
        [LightCurve(*(getattr(c, n)[:20] for n in LightCurve.__dataclass_fields__)) for c in curves]
    )
    with torch.no_grad():
        own = model.light_curve_encoder(
            *(torch.from_numpy(a) for a in (inputs.points, inputs.points_mask, inputs.folded, inputs.features))
        )
    embeddings = torch.stack([own, torch.zeros_like(own), torch.zeros_like(own)], dim=1)
    encoded = Encoded(np.arange(3), embeddings, torch.tensor([[True, False, False]] * 3), np.full(3, 10, np.int32))
    best = probabilities(model.classifier, encoded, (True, False, False)).argmax(axis=1)
    label = np.where(np.arange(3) < 2, best, (best + 1) % 10)
    assert accuracy_by_detections(model, curves, label, (20,), processes=1)[0].accuracy == pytest.approx(2 / 3)


def test_a_cap_chooses_the_same_stars_for_every_number_and_two_processes_change_nothing(model: Trimodal) -> None:
    curves = [light_curve(20 + seed, seed) for seed in range(12)]
    label = np.arange(12) % 10
    one = accuracy_by_detections(model, curves, label, (10, None), max_stars=9, seed=3, processes=1)
    two = accuracy_by_detections(model, curves, label, (10, None), max_stars=9, seed=3, processes=2)
    assert one == two
    assert [s.objects for s in one] == [9, 9]


def test_table_and_json(model: Trimodal, tmp_path: Path) -> None:
    curves = [light_curve(size) for size in (4, 30)]
    scores = {"ASAS": accuracy_by_detections(model, curves, np.array([1, 2]), (4, None), processes=1)}
    lines = detections_markdown(scores).splitlines()
    assert lines[-2].startswith("| ASAS | 4 | 2 | 0 | 2 |")
    assert lines[-1].startswith("| ASAS | all | 2 | 0 | 1 |")
    save_detections(scores, tmp_path / "detections.json")
    first, last = json.loads((tmp_path / "detections.json").read_text())["ASAS"]
    assert first["accuracy"] is None
    assert last["accuracy"] in (0.0, 1.0)
