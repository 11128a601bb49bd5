"""One typed settings tree: a TOML file, and environment variables that win over it.

``kafka.group_id`` in the file is ``TRIFID_KAFKA__GROUP_ID`` in the environment. Secrets are ``SecretStr``:
they are given to the libraries that need them and never printed. One may be in a file of its own, which a variable
names, as the images of databases have it: ``TRIFID_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka`` (docs/security.md).

Values that cannot be meant are refused: empty texts, infinite numbers, a login or files for TLS where it is off.

A module for each group of sections: ``kafka`` (also the schema registry), ``servers`` (Redis, Triton), ``processing``
(state, model, batches, output, metrics), ``web`` (page and API), ``notify`` (users' lists), ``tracing``; ``settings``
puts them together, and reads file and environment.
"""

from __future__ import annotations

from broker.config.kafka import AnnotationRegistrySettings, KafkaSettings, SchemaRegistrySettings
from broker.config.notify import NotifySettings
from broker.config.processing import (
    MODEL_REPOSITORY,
    AnomalySettings,
    CandidateSettings,
    InferenceSettings,
    MetricsSettings,
    PipelineSettings,
    PublishSettings,
    SimilarSettings,
    StateSettings,
)
from broker.config.section import in_clear
from broker.config.servers import RedisSettings, TritonSettings
from broker.config.settings import CONFIG_VARIABLE, Settings, load_settings, refusal_of
from broker.config.tracing import TracingSettings
from broker.config.web import WebSettings

__all__ = [
    "CONFIG_VARIABLE",
    "MODEL_REPOSITORY",
    "AnnotationRegistrySettings",
    "AnomalySettings",
    "CandidateSettings",
    "InferenceSettings",
    "KafkaSettings",
    "MetricsSettings",
    "NotifySettings",
    "PipelineSettings",
    "PublishSettings",
    "RedisSettings",
    "SchemaRegistrySettings",
    "Settings",
    "SimilarSettings",
    "StateSettings",
    "TracingSettings",
    "TritonSettings",
    "WebSettings",
    "in_clear",
    "load_settings",
    "refusal_of",
]
