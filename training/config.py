"""Settings of one model, read from a small TOML file in ``training/configs``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

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
    feature_pieces: int
    dropout: float


class InformerSettings(_Strict):
    """Arguments of ``training.encoders.astrom3.InformerEncoder``."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    factor: int
    dropout: float


class GalSpecNetSettings(_Strict):
    """Arguments of ``training.encoders.astrom3.GalSpecNetEncoder``."""

    channels: tuple[int, ...]
    kernel: int
    pool: int
    dropout: float


class PerceptronSettings(_Strict):
    """Arguments of ``training.encoders.astrom3.PerceptronEncoder``."""

    hidden: int
    dropout: float


class StageSettings(_Strict):
    """What ``training.loop.fit`` needs to know of a stage of training."""

    epochs: int
    batch_size: int
    """Objects in a batch, over all processes together."""
    learning_rate: float
    weight_decay: float
    steps: PositiveInt | None = None
    """Steps of the optimiser; None for as many as ``epochs`` have. Where it is set, ``epochs`` says nothing."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """In which the encoders compute (weights are always float32): "auto" is bfloat16 on a GPU, float32 on a CPU."""


class PretrainSettings(StageSettings):
    """Contrastive pre-training."""


class FinetuneSettings(StageSettings):
    """Supervised fine-tuning."""

    label_smoothing: float
    class_balance: float
    crop_share: float
    teacher_share: float = 0.0
    """Share of a forest's opinion in the labels (``training.teacher``); 0 for none."""
    spectrum_share: float
    average_decay: float


class ModelSettings(_Strict):
    """What the settings of every model have."""

    name: str
    seed: int
    pretrain: PretrainSettings
    finetune: FinetuneSettings


class TrifidSettings(ModelSettings):
    """A model of this project's own encoders."""

    encoders: Literal["trifid"] = "trifid"
    light_curve: LightCurveSettings


class AstroM3Settings(ModelSettings):
    """A model of AstroM3's encoders and head, the baseline."""

    encoders: Literal["astrom3"]
    informer: InformerSettings
    galspecnet: GalSpecNetSettings
    perceptron: PerceptronSettings


_KINDS: dict[str, type[ModelSettings]] = {"trifid": TrifidSettings, "astrom3": AstroM3Settings}


def load_settings(name_or_path: str) -> ModelSettings:
    """Settings by the name of a file in ``training/configs`` or by path; ConfigurationError says what is wrong.

    ``encoders`` in the file says whose encoders they are, "trifid" where it says nothing.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    try:
        values = tomllib.loads(path.read_text())
        kind = _KINDS.get(encoders := str(values.get("encoders", "trifid")))
        if kind is None:
            raise ConfigurationError(f"model settings {path}: encoders is {encoders!r}, not one of {', '.join(_KINDS)}")
        return kind.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigurationError(f"model settings {path}: {error}") from error
