"""The tree of all settings, from a TOML file, the environment and files of secrets."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, get_args
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from broker.config.kafka import AnnotationRegistrySettings, KafkaSettings, SchemaRegistrySettings
from broker.config.notify import NotifySettings
from broker.config.processing import (
    AnomalySettings,
    CandidateSettings,
    DriftSettings,
    InferenceSettings,
    MetricsSettings,
    PipelineSettings,
    PublishSettings,
    SimilarSettings,
    StateSettings,
)
from broker.config.section import Names, in_clear
from broker.config.servers import RedisSettings, TritonSettings
from broker.config.tracing import TracingSettings
from broker.config.web import WebSettings
from broker.errors import ConfigurationError
from broker.topic_names import KINDS, dead_letter_topic, elasticc_topic, matches, topic_of

CONFIG_VARIABLE = "TRIFID_CONFIG"
"""Environment variable that names the TOML file where ``--config`` does not."""
_LONGEST_SECRET: Final = 65_536


class Settings(BaseSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(
        env_prefix="TRIFID_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    surveys: Names = ("broker.surveys.ztf", "broker.surveys.lsst", "broker.surveys.elasticc")
    """Modules that decode the packets of one survey each; yours may be among them (broker/surveys/elasticc.py)."""
    kafka: KafkaSettings = KafkaSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    annotation_registry: AnnotationRegistrySettings = AnnotationRegistrySettings()
    redis: RedisSettings = RedisSettings()
    state: StateSettings = StateSettings()
    triton: TritonSettings = TritonSettings()
    inference: InferenceSettings = InferenceSettings()
    candidate: CandidateSettings = CandidateSettings()
    anomaly: AnomalySettings = AnomalySettings()
    similar: SimilarSettings = SimilarSettings()
    drift: DriftSettings = DriftSettings()
    pipeline: PipelineSettings = PipelineSettings()
    publish: PublishSettings = PublishSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    web: WebSettings = WebSettings()
    notify: NotifySettings = NotifySettings()

    def secrets(self) -> Iterator[str]:
        """All passwords in clear, that of Redis's URL among them, to keep them out of logs; never print them."""
        for section, key in _secrets(type(self)):
            secret = in_clear(getattr(getattr(self, section), key))
            if secret is None:
                continue
            if (section, key) != ("redis", "url"):  # of which the host may be told
                yield secret
            if "://" in secret and (password := urlsplit(secret).password):
                yield from {password, unquote(password)}
        yield from self.web.secret_keys  # each of several
        if word := urlsplit(self.redis.address()).password:
            yield word

    @model_validator(mode="after")
    def _reads_no_output(self) -> Self:
        """A service that reads what it writes would have each annotation as an alert that cannot be decoded."""
        kafka = self.kafka
        surveys = ["ztf", "lsst", "elasticc", *(name.rpartition(".")[2] for name in self.surveys)]
        written = [topic_of(self.publish.topic_prefix, survey, kind) for survey in surveys for kind in KINDS]
        written += [dead_letter_topic(self.publish.topic_prefix), elasticc_topic(self.publish.topic_prefix)]
        for topic in kafka.input_topics:
            if kafka.spectra_topic and matches(topic, kafka.spectra_topic):
                raise ValueError(f"kafka.input_topics: {topic!r} takes kafka.spectra_topic, which holds no alerts")
            if found := next((name for name in written if matches(topic, name)), None):
                raise ValueError(f"kafka.input_topics: {topic!r} takes {found}, which the service writes itself")
        if kafka.spectra_topic in written:
            raise ValueError(f"kafka.spectra_topic: the service writes {kafka.spectra_topic} itself")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then files of secrets, then the file, which ``load_settings`` passes as arguments."""
        return env_settings, _SecretFiles(settings_cls), init_settings


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets in files that variables of the environment name: ``TRIFID_KAFKA__SASL_PASSWORD_FILE``."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: ``__call__`` gives all."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """What the files hold, by section and key; raises ConfigurationError where one cannot be used."""
        variables = {name.upper(): value for name, value in os.environ.items()}
        found: dict[str, dict[str, str]] = {}
        for section, key in _secrets(self.settings_cls):
            name = f"TRIFID_{section}__{key}".upper()
            path = variables.get(f"{name}_FILE")
            if not path:
                continue
            if name in variables:
                raise ConfigurationError(f"settings: {name} and {name}_FILE are both set")
            found.setdefault(section, {})[key] = _read_secret(Path(path), f"{name}_FILE")
        return found


def _secrets(settings: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Section and key of all settings that are secrets."""
    for section, field in settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            for key, inner in type(field.default).model_fields.items():
                if SecretStr in (inner.annotation, *get_args(inner.annotation)):
                    yield section, key


def _read_secret(path: Path, variable: str) -> str:
    """The file's text, without the line break at its end."""
    try:
        with path.open(encoding="utf-8") as file:
            # What is longer was not meant: some device or log file.
            text = file.read(_LONGEST_SECRET + 1)
    except UnicodeDecodeError:
        raise ConfigurationError(f"settings: {variable}: {path} is no text") from None
    except OSError as error:
        raise ConfigurationError(f"settings: {variable}: {error}") from error
    secret = text.rstrip("\r\n")
    if not secret or len(text) > _LONGEST_SECRET:
        raise ConfigurationError(f"settings: {variable}: {path} is {'longer than any secret' if secret else 'empty'}")
    return secret


def load_settings(path: Path | None = None) -> Settings:
    """Settings from ``path``, else from the file that TRIFID_CONFIG names, else defaults.

    Variables of the environment win over all of them. Raises ConfigurationError where the file cannot be
    read, has a key that is no setting, or a value is wrong.
    """
    by = ""
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path, by = Path(os.environ[CONFIG_VARIABLE]), f", which {CONFIG_VARIABLE} names"
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigurationError(f"settings file {path}{by}: {why}") from error
        unknown = list(_unknown_keys(table, Settings))
        if unknown:
            raise ConfigurationError(f"settings file {path}{by}: unknown {'; '.join(unknown)}")
    try:
        return Settings(**table)
    except ValidationError as error:
        raise refusal_of(error) from error
    except SettingsError as error:
        raise ConfigurationError(f"settings: {error}") from error


def refusal_of(error: ValidationError) -> ConfigurationError:
    """What is wrong with settings, without their values: they may be secrets."""
    wrong = [
        ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))))
        for e in error.errors(include_input=False)
    ]
    return ConfigurationError(f"settings: {'; '.join(wrong)}")


def _unknown_keys(table: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        field = model.model_fields.get(key)
        if field is None:
            near = difflib.get_close_matches(key, model.model_fields, n=1)
            yield f"'{prefix}{key}'" + (f" (did you mean '{prefix}{near[0]}'?)" if near else "")
        elif isinstance(value, Mapping) and isinstance(field.default, BaseModel):
            yield from _unknown_keys(value, type(field.default), f"{prefix}{key}.")
