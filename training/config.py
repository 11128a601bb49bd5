"""Settings of one model, read from a small TOML file in ``training/configs``."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from broker.errors import ConfigurationError

CONFIGS = Path(__file__).parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LightCurveSettings(_Strict):
    """Arguments of ``training.encoders.lightcurve.LightCurveEncoder``."""

    channels: tuple[int, ...]
    kernel: int
    point_width: int
    queries: int
    heads: int
    feature_width: int
    dropout: float


class PretrainSettings(_Strict):
    """Contrastive pre-training."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


class FinetuneSettings(_Strict):
    """Supervised fine-tuning."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    class_balance: float
    crop_share: float
    spectrum_share: float
    average_decay: float


class ModelSettings(_Strict):
    """One model."""

    name: str
    seed: int
    light_curve: LightCurveSettings
    pretrain: PretrainSettings
    finetune: FinetuneSettings


def load_settings(name_or_path: str) -> ModelSettings:
    """Settings by the name of a file in ``training/configs`` or by path; ConfigurationError says what is wrong."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    try:
        return ModelSettings.model_validate(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigurationError(f"model settings {path}: {error}") from error
