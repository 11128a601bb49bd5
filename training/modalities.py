"""Supervised training by AstroM3's recipe: one modality after the other, each with an encoder and a head of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from training.config import AstroM3RecipeSettings, ModalitySettings
from training.data import Labels, TrainingSet, to_device
from training.encoders.astrom3 import set_dropout
from training.encoders.trimodal import HeadsClassifier, Trimodal
from training.loop import Context, fit
from training.losses import label_cross_entropy
from training.pretrain import pretrain
from training.schedules import Judgement

BY_MODALITY = """**AstroM3's recipe:** each encoder was trained by itself with a head of its own, so that the rows of
one modality are what AstroM3 trains and scores. In the rows of several modalities the heads' logits are averaged, which
is ours: AstroM3 trains another model for all three, with settings that are not published."""


def train_as_astrom3(
    model: Trimodal,
    data: TrainingSet,
    labels: Labels,
    rows: NDArray[np.intp],
    validation_rows: NDArray[np.intp],
    settings: AstroM3RecipeSettings,
    seed: int,
    context: Context,
    pretraining: bool = True,
    modalities: Sequence[str] = MODALITIES,
) -> Trimodal:
    """Pre-train the encoders together, then train each of ``modalities`` with its own head; the best epochs' weights.

    Of ``rows`` (n,) and ``validation_rows`` (m,) a supervised stage uses those that have the modality, whole and
    without augmentation: AstroM3 has none either, but for its windows of 200 points, in whose place stands the
    service's choice of points. The loss is the cross-entropy with ``labels``, in which validation rows need not count.
    Encoders and heads of the other modalities stay as they are. ConfigurationError where no validation object has the
    modality, and what ``training.loop.fit`` raises.
    """
    if not isinstance(model.classifier, HeadsClassifier):
        raise TypeError("training by modality needs a head for each")
    if pretraining:
        pretrain(model, data, rows, settings.pretrain, seed, context, validation_rows)
    version = torch.zeros((), dtype=torch.long)  # the whole light curve
    for place, name in enumerate(MODALITIES):
        if name not in modalities:
            continue
        own, judged = (
            part[data.present(torch.from_numpy(part), version)[:, place].numpy()] for part in (rows, validation_rows)
        )
        own = own[labels.weight[own] > 0]
        stage: ModalitySettings = getattr(settings.finetune, name)
        model = _train_one(model, place, data, labels, own, judged, stage, seed, context)
    return model


def _train_one(
    model: Trimodal,
    place: int,
    data: TrainingSet,
    labels: Labels,
    rows: NDArray[np.intp],
    validation_rows: NDArray[np.intp],
    settings: ModalitySettings,
    seed: int,
    context: Context,
) -> Trimodal:
    """The model with the encoder and head at ``place`` of MODALITIES trained on ``rows``, which all have it."""
    workers, name = context.workers, MODALITIES[place]
    if not len(validation_rows):
        raise ConfigurationError(f"finetune-{name}: no validation objects with this modality to judge by")
    set_dropout((model.light_curve_encoder, model.spectrum_encoder, model.metadata_encoder)[place], settings.dropout)

    def loss(chosen: NDArray[np.intp], _: np.random.Generator) -> Tensor:
        own = chosen[workers.own]
        weight = torch.from_numpy(labels.weight[own]).to(workers.device)
        value, _right = _loss(model, place, data, labels, own, weight)
        return value * workers.share(weight.sum()[None])[0]

    def judge(candidate: Trimodal) -> Judgement:
        return supervised_judgement(candidate, place, data, labels, validation_rows, settings.batch_size)

    return fit(f"finetune-{name}", model, rows, settings, [seed, 2, place], context, loss, judge=judge)


@torch.no_grad()
def supervised_judgement(
    model: Trimodal, place: int, data: TrainingSet, labels: Labels, rows: NDArray[np.intp], batch_size: int
) -> Judgement:
    """Mean cross-entropy and accuracy of one modality alone over ``rows`` (n,), which have it and a label."""
    total, right = 0.0, 0
    for first in range(0, len(rows), batch_size):
        own = rows[first : first + batch_size]
        value, hits = _loss(model, place, data, labels, own, torch.ones(len(own), device=model.log_scale.device))
        total += float(value) * len(own)
        right += int(hits.sum())
    return Judgement(total / len(rows), right / len(rows))


def _loss(
    model: Trimodal, place: int, data: TrainingSet, labels: Labels, rows: NDArray[np.intp], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean of the cross-entropy over ``rows`` (n,), and (n,) whether the likeliest class is the label's."""
    assert isinstance(model.classifier, HeadsClassifier)
    device = weight.device
    batch = to_device(data.batch(rows), device)
    # The head by itself: through the classifier the other heads would get gradients of zero, and so weight decay.
    logits = model.classifier.heads[place](model.encode_one(batch, place)).float()
    target = torch.from_numpy(labels.target[rows]).to(device)
    confusion = torch.from_numpy(labels.confusions[labels.naming[rows]]).to(device)
    right = logits.argmax(dim=1) == torch.from_numpy(labels.index[rows]).to(device)
    return label_cross_entropy(logits, target, confusion, weight, smoothing=0.0), right
