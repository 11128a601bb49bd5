"""Members side by side in one metadata encoder and one classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from broker.assemble.metadata import MODEL_FEATURES
from training.encoders.ensemble import EnsembleClassifier, MetadataEnsemble
from training.encoders.trimodal import ConcatClassifier, StreamClassifier
from training.export import export_classifier, export_metadata_encoder


def inputs(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, len(MODEL_FEATURES), generator=generator)
    return values, torch.rand(size, len(MODEL_FEATURES), generator=generator) < 0.7


def test_every_member_has_a_slice_of_its_own() -> None:
    encoder = MetadataEnsemble(members=4, hidden=16).eval()
    values, known = inputs(30)
    before = encoder(values, known).unflatten(1, (4, 128))
    np.testing.assert_allclose(before.norm(dim=2).detach().numpy(), 0.5, rtol=1e-5)
    with torch.no_grad():
        encoder.second.weight[2] += 1.0
    after = encoder(values, known).unflatten(1, (4, 128))
    assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]])
    assert not torch.allclose(before[:, 2], after[:, 2])
    # What is not known is not seen.
    hidden = torch.where(known, values, 100.0)
    assert torch.equal(encoder(hidden, known), encoder(values, known))


def test_probabilities_are_the_mean_of_the_members() -> None:
    """Each member by itself, written with numpy, from the weights."""
    head = EnsembleClassifier(members=2, hidden=8).eval()
    embeddings = torch.randn(20, 3, 512, generator=torch.Generator().manual_seed(1)) / 512**0.5
    present = torch.tensor([[True, False, True]] * 10 + [[True, True, True]] * 10)
    found = head.logits(embeddings, present).softmax(dim=1).detach().numpy()
    weights = {name: p.detach().numpy() for name, p in head.named_parameters()}
    light_curve, spectrum, metadata = (embeddings.numpy() * 512**0.5).transpose(1, 0, 2)
    spectrum = spectrum * present.numpy()[:, 1, None]
    members = []
    for member in range(2):
        rows = slice(8 * member, 8 * member + 8)
        hidden = light_curve @ weights["light_curve.weight"][rows].T + spectrum @ weights["spectrum.weight"][rows].T
        hidden += present.numpy() @ weights["present.weight"][rows].T + weights["present.bias"][rows]
        own = metadata[:, 256 * member : 256 * member + 256]
        hidden += own @ weights["metadata.weight"][member] + weights["metadata.bias"][member]
        active = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
        logits = active @ weights["last.weight"][member] + weights["last.bias"][member]
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
        members.append(exponent / exponent.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, np.mean(members, axis=0), atol=1e-5)
    assert np.abs(members[0] - members[1]).max() > 0.01


def test_the_service_gets_one_encoder_and_one_classifier(tmp_path: Path) -> None:
    encoder, head = MetadataEnsemble().eval(), EnsembleClassifier().eval()
    classifier = StreamClassifier(ConcatClassifier(), head).eval()
    export_metadata_encoder(encoder, tmp_path)
    export_classifier(classifier, tmp_path)
    values, known = inputs(7)
    session = onnxruntime.InferenceSession(tmp_path / "metadata_encoder" / "1" / "model.onnx")
    metadata = session.run(["embedding"], {"values": values.numpy(), "known": known.numpy()})[0]
    np.testing.assert_allclose(metadata, encoder(values, known).detach().numpy(), atol=1e-5)
    light_curve = torch.nn.functional.normalize(torch.randn(7, 512), dim=1)
    present = torch.tensor([[True, False, True]] * 4 + [[True, False, False]] * 3)
    feed = {
        "light_curve": light_curve.numpy(), "spectrum": np.zeros((7, 512), np.float32), "metadata": metadata,
        "present": present.numpy(), "detections": np.full((7, 1), 12, np.float32),
    }  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "classifier" / "1" / "model.onnx")
    found = session.run(["probabilities"], feed)[0]
    embeddings = torch.stack([light_curve, torch.zeros(7, 512), torch.from_numpy(metadata)], dim=1)
    np.testing.assert_allclose(found[:4], head.logits(embeddings, present).softmax(dim=1).detach()[:4], atol=1e-5)
    alone = classifier.without_metadata.logits(embeddings, present).softmax(dim=1).detach()
    np.testing.assert_allclose(found[4:], alone[4:], atol=1e-5)
