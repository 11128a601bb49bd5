"""What augmentation may change of a batch, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import torch

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, PHASE_BINS
from tests.unit.training.test_model import batch
from training.finetune import SURVEY_FEATURES, SURVEY_LENT, augment

SURVEY = [LIGHT_CURVE_FEATURES.index(name) for name in SURVEY_FEATURES]
STAR = [i for i in range(len(LIGHT_CURVE_FEATURES)) if i not in SURVEY]
NOISE = LIGHT_CURVE_FEATURES.index("noise_to_std")


def test_what_tells_the_survey_is_lent_as_a_whole_and_the_errors_go_with_it() -> None:
    before = batch(400)
    before.features[:, NOISE] = torch.rand(400) + 0.1
    original = before.features.clone()
    torch.manual_seed(3)
    after = augment(before)
    assert torch.equal(before.features, original)  # the data set itself is not changed
    assert torch.equal(after.features[:, STAR], original[:, STAR])
    lent = (after.features[:, SURVEY] != original[:, SURVEY]).any(dim=1)
    assert abs(lent.float().mean().item() - SURVEY_LENT) < 0.1
    # Each row of these features is some object's own row.
    rows = {tuple(row) for row in original[:, SURVEY].tolist()}
    assert all(tuple(row) in rows for row in after.features[:, SURVEY].tolist())
    ratio = after.features[:, NOISE] / original[:, NOISE]
    assert torch.allclose(after.points[..., 2], before.points[..., 2] * ratio.clamp(0.1, 10)[:, None], atol=1e-5)


def test_phases_of_points_and_fold_turn_together() -> None:
    before = batch(8)
    before.points[..., 3] = torch.rand(8, 200)
    for seed in range(5):
        torch.manual_seed(seed)
        after = augment(before)
        turned = torch.remainder(after.points[..., 3] - before.points[..., 3], 1.0)[0, 0].item() * PHASE_BINS
        assert torch.equal(after.folded, before.folded.roll(round(turned), dims=2))
        assert torch.equal(after.points[..., :2], before.points[..., :2])
        hidden = (before.points_mask & ~after.points_mask).sum() / before.points_mask.sum()
        assert 0.05 < hidden.item() < 0.15
        assert not (after.points_mask & ~before.points_mask).any()
        assert np.all(after.known.numpy() <= before.known.numpy())
