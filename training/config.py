"""Settings of one model, read from a small TOML file in ``training/configs``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

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


class PlateauSettings(StageSettings):
    """A stage as AstroM3 trains it: ``training.schedules.Plateau`` instead of one cycle of AdamW."""

    beta1: float = Field(ge=0, lt=1)
    clip_norm: PositiveFloat | None = None
    """To which the norm of a step's gradient is cut; None where it is not."""
    warmup_epochs: NonNegativeInt
    """Over which the rate rises, from 1e-5 of ``learning_rate``."""
    factor: float = Field(gt=0, lt=1)
    """By which the rate is multiplied when the validation loss has stood still for more than ``patience`` epochs."""
    patience: NonNegativeInt
    early_stop: PositiveInt
    """Epochs without a lower validation loss after which the stage ends."""


class ModalitySettings(PlateauSettings):
    """Supervised training of one encoder and its own head."""

    dropout: float = Field(ge=0, lt=1)
    """Instead of the encoder's dropout in pre-training."""


class ModalitiesSettings(_Strict):
    """Supervised training, one modality after the other; named as in ``broker.assemble.inputs.MODALITIES``."""

    light_curve: ModalitySettings
    spectrum: ModalitySettings
    metadata: ModalitySettings


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


class TrifidRecipe(ModelSettings):
    """What the settings of every model have that is trained by this project's recipe: all modalities at once."""

    pretrain: PretrainSettings
    finetune: FinetuneSettings


class AstroM3Encoders(ModelSettings):
    """What the settings of every model have that is made of AstroM3's encoders."""

    encoders: Literal["astrom3"]
    informer: InformerSettings
    galspecnet: GalSpecNetSettings
    perceptron: PerceptronSettings


class TrifidSettings(TrifidRecipe):
    """A model of this project's own encoders."""

    encoders: Literal["trifid"] = "trifid"
    light_curve: LightCurveSettings


class AstroM3Settings(TrifidRecipe, AstroM3Encoders):
    """A model of AstroM3's encoders and head, trained by this project's recipe."""


class AstroM3RecipeSettings(AstroM3Encoders):
    """A model of AstroM3's encoders, trained by AstroM3's own recipe: one supervised stage and head a modality."""

    recipe: Literal["astrom3"]
    pretrain: PlateauSettings
    finetune: ModalitiesSettings


_KINDS: dict[str, type[ModelSettings]] = {"trifid": TrifidSettings, "astrom3": AstroM3Settings}


def trifid_recipe(settings: ModelSettings, what: str) -> TrifidRecipe:
    """The same settings; ConfigurationError where they are of another recipe, which ``what`` cannot do."""
    if isinstance(settings, TrifidRecipe):
        return settings
    raise ConfigurationError(f"{what} trains by this project's recipe, and the model {settings.name} has another")


def load_settings(name_or_path: str) -> ModelSettings:
    """Settings by the name of a file in ``training/configs`` or by path; ConfigurationError says what is wrong.

    ``encoders`` in the file says whose encoders they are, "trifid" where it says nothing; with ``recipe`` AstroM3's can
    have AstroM3's own training.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    try:
        values = tomllib.loads(path.read_text())
        kind = _KINDS.get(encoders := str(values.get("encoders", "trifid")))
        if kind is None:
            raise ConfigurationError(f"model settings {path}: encoders is {encoders!r}, not one of {', '.join(_KINDS)}")
        if kind is AstroM3Settings and "recipe" in values:
            kind = AstroM3RecipeSettings
        return kind.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigurationError(f"model settings {path}: {error}") from error
