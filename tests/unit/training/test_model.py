"""The trimodal model: unit vectors, masks, and the same numbers from its ONNX export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.assemble.lightcurve import (
    FOLDED_CHANNELS,
    LIGHT_CURVE_FEATURES,
    PHASE_BINS,
    POINT_CHANNELS,
    POINTS,
)
from broker.assemble.metadata import MODEL_FEATURES
from broker.inference.manifest import CALIBRATION_BINS
from training.config import load_settings
from training.encoders.build import build_model
from training.encoders.lightcurve import PointsEncoder
from training.encoders.trimodal import TensorBatch, Trimodal
from training.export import check_export, export_models


def batch(size: int, seed: int = 0) -> TensorBatch:
    torch.manual_seed(seed)
    length = torch.randint(5, POINTS + 1, (size, 1))
    return TensorBatch(
        points=torch.rand(size, POINTS, POINT_CHANNELS) * 4 - 2,
        points_mask=torch.arange(POINTS)[None] < length,
        folded=torch.randn(size, FOLDED_CHANNELS, PHASE_BINS),
        features=torch.randn(size, len(LIGHT_CURVE_FEATURES)),
        spectra=torch.randn(size, 3, 2575),
        values=torch.randn(size, len(MODEL_FEATURES)),
        known=torch.rand(size, len(MODEL_FEATURES)) < 0.5,
        present=torch.rand(size, 3) < 0.6,
        detections=length.float(),
    )


class Constant(nn.Module):
    """Gives the same tensor for any input."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@pytest.fixture(scope="module")
def model() -> Trimodal:
    torch.manual_seed(7)
    return build_model(load_settings("trifid")).eval()


@torch.no_grad()
def test_embeddings_have_unit_length(model: Trimodal) -> None:
    assert torch.allclose(model.encode(batch(5)).norm(dim=2), torch.ones(5, 3), atol=1e-5)


@torch.no_grad()
def assert_what_is_absent_has_no_say(model: Trimodal) -> None:
    """Neither hidden points, nor unknown values, nor the embeddings of absent modalities change anything."""
    first = batch(4)
    points = torch.where(first.points_mask[..., None], first.points, torch.full_like(first.points, 9.0))
    values = torch.where(first.known, first.values, torch.full_like(first.values, 9.0))
    second = TensorBatch(
        points,
        first.points_mask,
        first.folded,
        first.features,
        first.spectra,
        values,
        first.known,
        first.present,
        first.detections,
    )
    assert torch.allclose(model.encode(first), model.encode(second), atol=1e-5)
    embeddings = model.encode(first)
    changed = torch.where(first.present[..., None], embeddings, torch.flip(embeddings, dims=[2]))
    for a, b in zip(
        model.classifier(*embeddings.unbind(1), first.present, first.detections),
        model.classifier(*changed.unbind(1), first.present, first.detections),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


@torch.no_grad()
def test_hidden_points_unknown_values_and_absent_modalities_have_no_say(model: Trimodal) -> None:
    assert_what_is_absent_has_no_say(model)


@torch.no_grad()
def test_temperature_is_that_of_the_subset_present_and_the_number_of_detections() -> None:
    model = build_model(load_settings("trifid")).eval()
    embeddings = model.encode(batch(3))
    present = torch.tensor([[True, False, False], [True, True, True], [True, False, False]])
    detections = torch.tensor([[10.0], [10.0], [20.0]])
    before, _ = model.classifier(*embeddings.unbind(1), present, detections)
    model.classifier.log_temperature[1, CALIBRATION_BINS.index(10)] = np.log(3.0)
    after, _ = model.classifier(*embeddings.unbind(1), present, detections)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1:], after[1:])
    expected = (before[0].log() / 3).softmax(dim=0)
    assert torch.allclose(after[0], expected, atol=1e-5)


def test_the_export_gives_the_same_numbers_for_any_batch_size(model: Trimodal, tmp_path: Path) -> None:
    export_models(model, tmp_path)
    for size in (1, 3, 17):
        assert check_export(model, tmp_path, batch(size), tolerance=1e-4) < 1e-4
    operations = Counter(node.op_type for node in onnx.load(tmp_path / "light_curve_encoder/1/model.onnx").graph.node)
    assert operations["Gelu"] == 12
    assert operations["Erf"] == 0


@torch.no_grad()
def test_points_are_attended_to_as_by_keys_and_values_of_each() -> None:
    torch.manual_seed(3)
    encoder = PointsEncoder(width=48, queries=8, heads=4, dropout=0.0).double().eval()
    embedded = torch.randn(3, 20, 48, dtype=torch.float64)
    encoder.embed, encoder.mix = Constant(embedded), nn.Identity()
    mask = torch.arange(20)[None] < torch.tensor([[20], [7], [1]])
    got = encoder(torch.zeros(3, 20, POINT_CHANNELS, dtype=torch.float64), mask)
    key, value = encoder.key_value(embedded).view(3, 20, 2, 4, 12).permute(2, 0, 3, 1, 4)
    query = encoder.queries.view(8, 4, 12).transpose(0, 1).expand(3, -1, -1, -1)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
    assert torch.allclose(got, expected.transpose(1, 2).flatten(1), rtol=0, atol=1e-12)
