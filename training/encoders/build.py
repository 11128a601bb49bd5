"""Models from their settings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from broker.errors import ConfigurationError
from training.config import AstroM3Encoders, AstroM3RecipeSettings, AstroM3Settings, ModelSettings, TrifidSettings
from training.data import TrainingSet
from training.encoders.astrom3 import GalSpecNetEncoder, InformerEncoder, PerceptronEncoder
from training.encoders.lightcurve import LightCurveEncoder
from training.encoders.metadata import MetadataEncoder
from training.encoders.spectrum import SpectrumEncoder
from training.encoders.trimodal import ConcatClassifier, HeadsClassifier, MeanClassifier, Trimodal

ASTROM3_SCALES = torch.full((3,), 100.0)
"""Scales of the contrastive loss at AstroM3's start, one for each pair of modalities."""


def _astrom3_encoders(settings: AstroM3Encoders) -> tuple[InformerEncoder, GalSpecNetEncoder, PerceptronEncoder]:
    return (
        InformerEncoder(**settings.informer.model_dump()),
        GalSpecNetEncoder(**settings.galspecnet.model_dump()),
        PerceptronEncoder(**settings.perceptron.model_dump()),
    )


def build_model(settings: ModelSettings) -> Trimodal:
    """A model with random weights; ConfigurationError where the settings name no encoders."""
    match settings:
        case TrifidSettings():
            return Trimodal(
                LightCurveEncoder(**settings.light_curve.model_dump()),
                SpectrumEncoder(),
                MetadataEncoder(),
                ConcatClassifier(),
            )
        case AstroM3Settings():
            return Trimodal(*_astrom3_encoders(settings), MeanClassifier())
        case AstroM3RecipeSettings():
            return Trimodal(*_astrom3_encoders(settings), HeadsClassifier(), ASTROM3_SCALES)
    raise ConfigurationError(f"model {settings.name}: {type(settings).__name__} names no encoders")


def new_model(settings: ModelSettings, seed: int, data: TrainingSet, rows: NDArray[np.intp]) -> Trimodal:
    """A model with random weights of ``seed`` that standardises by the features of ``rows`` of ``data``."""
    torch.manual_seed(seed)
    model = build_model(settings)
    features = data.features[:, torch.from_numpy(rows)].float()
    model.light_curve_encoder.set_feature_scale(features.reshape(-1, features.shape[-1]))
    if isinstance(model.metadata_encoder, MetadataEncoder):
        model.metadata_encoder.fit_pieces(data.values[rows].numpy(), data.known[rows].numpy())
    return model
