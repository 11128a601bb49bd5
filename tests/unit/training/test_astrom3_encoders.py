"""AstroM3's encoders: attention against a plain computation, padding, export, sizes and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, POINTS
from broker.errors import ConfigurationError
from tests.unit.training.test_model import assert_what_is_absent_has_no_say, batch
from training.config import CONFIGS, AstroM3RecipeSettings, AstroM3Settings, load_settings
from training.encoders.astrom3 import AUXILIARIES, InformerEncoder, ProbSparseAttention
from training.encoders.build import build_model
from training.encoders.trimodal import MeanClassifier, Trimodal
from training.export import check_export, export_models

LENGTH = 24


@pytest.fixture(scope="module")
def model() -> Trimodal:
    torch.manual_seed(7)
    return build_model(load_settings("astrom3")).eval()


def observed_first(mask: Tensor) -> Tensor:
    return (~mask).long().argsort(dim=1, stable=True)


def plain_attention(attention: ProbSparseAttention, x: Tensor, mask: Tensor, queries: list[int]) -> Tensor:
    """Output for one light curve x (length, width), a head at a time, where ``queries`` attend in full."""
    heads = attention.heads
    outputs = []
    for head in range(heads):
        own = slice(head * x.shape[1] // heads, (head + 1) * x.shape[1] // heads)
        q, k, v = (layer(x)[:, own] for layer in (attention.query, attention.key, attention.value))
        context = v[mask].mean(dim=0).repeat(len(x), 1)
        for query in queries:
            weight = (k[mask] @ q[query] / q.shape[1] ** 0.5).exp()
            context[query] = (weight[:, None] * v[mask]).sum(dim=0) / weight.sum()
        outputs.append(context)
    result: Tensor = attention.out(torch.cat(outputs, dim=1))
    return result


@torch.no_grad()
def test_attention_with_all_queries_active_is_full_softmax_attention() -> None:
    torch.manual_seed(0)
    attention = ProbSparseAttention(width=16, heads=2, factor=LENGTH, length=LENGTH, seed=0).eval()
    assert attention.active == LENGTH
    x = torch.randn(3, LENGTH, 16)
    mask = torch.rand(3, LENGTH) < 0.6
    got = attention(x, mask, observed_first(mask))
    for row in range(3):
        expected = plain_attention(attention, x[row], mask[row], list(range(LENGTH)))
        assert torch.allclose(got[row][mask[row]], expected[mask[row]], atol=1e-5)


@torch.no_grad()
def test_only_the_queries_with_the_largest_measure_attend() -> None:
    torch.manual_seed(1)
    attention = ProbSparseAttention(width=8, heads=1, factor=1, length=LENGTH, seed=3).eval()
    assert attention.active == 4  # ceil(ln 24)
    x, mask = torch.randn(1, LENGTH, 8) * 3, torch.ones(1, LENGTH, dtype=torch.bool)
    mask[0, 5::4] = False
    places = [place for place in range(LENGTH) if mask[0, place]]
    score = attention.query(x[0]) @ attention.key(x[0]).T / 8**0.5
    measure = {}
    for query in places:
        sample = [score[query, places[int(share * len(places))]] for share in attention.sample[query].tolist()]
        measure[query] = float(max(sample) - sum(sample) / len(sample))
    queries = sorted(places, key=lambda query: -measure[query])[: attention.active]
    got = attention(x, mask, observed_first(mask))[0]
    expected = plain_attention(attention, x[0], mask[0], queries)
    assert torch.allclose(got[mask[0]], expected[mask[0]], atol=1e-5)


@torch.no_grad()
def test_the_sample_of_keys_is_fixed_in_evaluation_and_random_in_training() -> None:
    encoder = InformerEncoder(dropout=0.0)
    encoder.embed_dropout.p = 0.0
    b = batch(4)
    inputs = (b.points, b.points_mask, b.folded, b.features)
    encoder.eval()
    assert torch.equal(encoder(*inputs), encoder(*inputs))
    assert not torch.equal(encoder.layers[0].attention.sample, encoder.layers[1].attention.sample)
    encoder.train()
    assert not torch.equal(encoder(*inputs), encoder(*inputs))


@torch.no_grad()
def test_embeddings_have_unit_length_even_without_any_point(model: Trimodal) -> None:
    b = batch(5)
    b.points_mask[2] = False
    assert torch.allclose(model.encode(b).norm(dim=2), torch.ones(5, 3), atol=1e-5)


@torch.no_grad()
def test_padding_unknown_values_and_absent_modalities_have_no_say(model: Trimodal) -> None:
    assert_what_is_absent_has_no_say(model)


@torch.no_grad()
def test_every_channel_and_every_auxiliary_is_seen_and_no_other_feature(model: Trimodal) -> None:
    b = batch(3)

    def encode(points: Tensor, features: Tensor) -> Tensor:
        result: Tensor = model.light_curve_encoder(points, b.points_mask, b.folded, features)
        return result

    before = encode(b.points, b.features)
    for channel in range(b.points.shape[2]):
        points = b.points.clone()
        points[..., channel] += 0.5
        # AstroM3 has no bands: the wavelength, which is last, is not seen.
        assert torch.allclose(before, encode(points, b.features), atol=1e-4) == (channel == b.points.shape[2] - 1)
    for column, name in enumerate(LIGHT_CURVE_FEATURES):
        features = b.features.clone()
        features[:, column] += 1.0
        assert torch.equal(before, encode(b.points, features)) == (name not in AUXILIARIES)


@torch.no_grad()
def test_auxiliaries_are_standardised() -> None:
    encoder = InformerEncoder(layers=1).eval()
    b = batch(6)
    plain = encoder(b.points, b.points_mask, b.folded, b.features)
    stretched = b.features * 7 + 3
    encoder.set_feature_scale(stretched)
    scaled = encoder(b.points, b.points_mask, b.folded, stretched)
    encoder.set_feature_scale(b.features)
    assert torch.allclose(scaled, encoder(b.points, b.points_mask, b.folded, b.features), atol=1e-4)
    assert not torch.allclose(scaled, plain, atol=1e-3)


@torch.no_grad()
def test_the_head_is_linear_in_the_mean_of_what_is_present() -> None:
    head = MeanClassifier()
    embeddings = torch.randn(2, 3, 512)
    present = torch.tensor([[True, False, True], [False, True, False]])
    expected = head.linear(torch.stack([(embeddings[0, 0] + embeddings[0, 2]) / 2, embeddings[1, 1]]))
    assert torch.allclose(head.logits(embeddings, present), expected, atol=1e-5)


def test_sizes_are_those_of_the_published_configuration(model: Trimodal) -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # By hand: embedding, eight layers (four projections, two feed-forward, two norms), norm, projection.
    layer = 4 * (128 * 128 + 128) + (128 * 512 + 512) + (512 * 128 + 128) + 2 * 2 * 128
    informer = (9 * 128 * 3 + 128) + 8 * layer + 2 * 128 + (POINTS * 128 * 512 + 512)
    assert count(model.light_curve_encoder) == informer
    convolutions = (3 * 64 + 64 * 64 + 64 * 32 + 32 * 32) * 3 + 64 + 64 + 32 + 32
    assert count(model.spectrum_encoder) == convolutions + 1184 * 512 + 512
    assert count(model.metadata_encoder) == (34 * 512 + 512) + 2 * (512 * 512 + 512)
    assert count(model.classifier) == 3 * (512 * 10 + 10)
    assert count(build_model(load_settings("informer")).classifier) == 512 * 10 + 10
    print(f"parameters: Informer {informer:,}")


def test_the_export_gives_the_same_numbers_for_any_batch_size(model: Trimodal, tmp_path: Path) -> None:
    export_models(model, tmp_path)
    for size in (1, 3, 17):
        assert check_export(model, tmp_path, batch(size, seed=size), tolerance=1e-4) < 1e-4


@pytest.mark.parametrize("bfloat16", [False, True])
def test_gradients_reach_every_weight(bfloat16: bool) -> None:
    model = build_model(load_settings("astrom3"))
    b = batch(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        embeddings = model.encode(b)
    model.classifier.logits(embeddings.float(), torch.ones(4, 3, dtype=torch.bool)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Keys' biases shift all scores of a query alike; the contrastive temperature is no part of the logits.
    assert [name for name in without if not name.endswith("attention.key.bias")] == ["log_scale"]


def test_settings_name_the_encoders(tmp_path: Path) -> None:
    assert isinstance(load_settings("astrom3"), AstroM3RecipeSettings)
    assert isinstance(load_settings("informer"), AstroM3Settings)
    text = (CONFIGS / "informer.toml").read_text()
    path = tmp_path / "model.toml"
    path.write_text(text.replace('encoders = "astrom3"', 'encoders = "resnet"'))
    with pytest.raises(ConfigurationError, match="encoders is 'resnet', not one of trifid, astrom3"):
        load_settings(str(path))
    path.write_text(text.replace('encoders = "astrom3"', ""))
    with pytest.raises(ConfigurationError, match="light_curve"):
        load_settings(str(path))
    path.write_text(f'recipe = "adam"\n{text}')
    with pytest.raises(ConfigurationError, match=r"(?s)recipe.*'astrom3'"):
        load_settings(str(path))
    path.write_text(text.replace("factor = 1 ", "factors = 1 "))
    with pytest.raises(ConfigurationError, match="factors"):
        load_settings(str(path))
