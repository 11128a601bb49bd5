"""One typed settings tree: a TOML file, and environment variables that win over it.

``kafka.group_id`` in the file is ``TRIFID_KAFKA__GROUP_ID`` in the environment. Secrets are ``SecretStr``:
they are given to the libraries that need them and never printed. One may be in a file of its own, which a variable
names, as the images of databases have it: ``TRIFID_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka`` (docs/security.md).

Values that cannot be meant are refused: empty texts, infinite numbers, a login or files for TLS where it is off.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from broker.errors import ConfigurationError
from broker.kafka_options import refusal
from broker.state.merge import MAX_POINTS
from broker.topic_names import KINDS, check_topic, is_pattern, matches, topic_of

CONFIG_VARIABLE = "TRIFID_CONFIG"
"""Environment variable that names the TOML file where ``--config`` does not."""
_OF_WHEEL: Final = Path(__file__).with_name("model_repo")
MODEL_REPOSITORY: Final = _OF_WHEEL if _OF_WHEEL.is_dir() else Path(__file__).parents[1] / "model_repo"
"""That of the wheel, where this was installed from one, else the checkout's."""
_LONGEST_SECRET: Final = 65_536


def _split(value: object) -> object:
    """``a, b`` from the environment to a list; lists from TOML stay. Each name once."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("names nothing")
        if any(isinstance(part, str) and not part.strip() for part in value):
            raise ValueError("has an empty name")
        return list(dict.fromkeys(value)) if all(isinstance(part, str) for part in value) else value
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Int32 = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Section(BaseModel):
    # Unknown keys of the file are refused by load_settings, with a hint; unknown variables are not ours.
    model_config = ConfigDict(
        extra="ignore", frozen=True, protected_namespaces=(), hide_input_in_errors=True, allow_inf_nan=False
    )
    _may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields for which the empty text means something."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object, info: ValidationInfo) -> object:
        """An empty text is a variable that somebody forgot to fill, and as a group or a path it would do harm."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and not text.strip() and info.field_name not in cls._may_be_empty:
            raise ValueError("is empty; leave it out for the default")
        return value


_ADDRESS: Final = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.%]+\]|[^:/\s\[\]@?#]+)(?::\d{1,5})?")
"""``host:port``, for Kafka with a protocol before it."""


def _refuse_unused(section: BaseModel, used: bool, why: str, *names: str) -> None:
    """Whoever gives files for TLS, or a login, means it: without it, data or passwords would travel in clear."""
    given = [name for name in names if getattr(section, name) is not None]
    if given and not used:
        raise ValueError(f"{', '.join(given)} given, but {why}")


class KafkaSettings(_Section):
    """Where alerts come from and annotations go to, and what is promised in between (docs/delivery.md)."""

    _may_be_empty: ClassVar[frozenset[str]] = frozenset({"spectra_topic"})

    bootstrap_servers: str = "localhost:9092"
    input_topics: Names = ("alerts.ztf", "alerts.lsst")
    """A name that begins with ``^`` is a regular expression: ``^lsst-alerts-.*`` reads reprocessed alerts, too
    (docs/schemas.md). None may take a topic that the service writes to, or ``spectra_topic``."""
    spectra_topic: str = "spectra"
    """Where spectra arrive (docs/spectra.md), read beside the alerts; none where empty."""
    group_id: str = "trifid"
    worker_id: str = Field(default_factory=socket.gethostname)
    """Names this process among those of the group, the same after a restart: it is part of the transactional
    id, by which Kafka shuts out an earlier process that only seemed dead, and the static member's name. No two
    workers of a group may have the same."""
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    session_timeout_s: Seconds = 10.0
    """A worker silent for so long loses its partitions to the others of the group; one that was stopped and is a
    static member, too."""
    static_membership: bool = True
    """Whether a worker that restarts within ``session_timeout_s`` gets its partitions back without a rebalance
    (KIP-345). Without it, partitions of a worker that stops go to the others at once."""
    group_protocol: Literal["cooperative", "eager"] = "cooperative"
    """How the group hands out partitions: step by step (KIP-429), or all at once, as versions before 0.1.0 did. All
    workers of a group need the same one: to change it, stop them all (docs/delivery.md, Upgrades)."""
    max_poll_interval_s: Seconds = 300.0
    """A worker that does not ask for alerts for so long loses its partitions. It asks while a batch takes long, too:
    this is for one that hangs."""
    transaction_timeout_s: Seconds = 60.0
    max_message_bytes: _Int32 = 10_485_760
    """Largest message sent out, and how much is fetched at once. What comes in is bounded by the input topic's
    ``max.message.bytes``: a consumer takes larger messages than it asks for, one at a time."""
    consumer_queue_mib: _Int32 = 32
    """Alerts fetched ahead, MiB; one fetch may go beyond."""
    producer_queue_mib: _Int32 = 64
    """Messages that wait to be sent, MiB; the worker waits when it is full."""
    metadata_refresh_s: Seconds = 5.0
    """Input topics and partitions that are new, missing or recreated are noticed within so long."""
    unreachable_limit_s: Seconds = 120.0
    """A worker whose connections have not reached any of Kafka's brokers for so long, or for which a transaction has
    not come to an end, exits with code 1: the next process asks ``bootstrap_servers`` again, behind which brokers may
    have moved."""
    create_topics: bool = True
    """Whether to create the topics of annotations, dead letters and spectra that are missing."""
    create_input_topics: bool = False
    """Whether to create those of ``input_topics`` that are missing, regular expressions excepted. A name with a typing
    error in it is created, too."""
    topic_partitions: _Int32 = 4
    replication_factor: int = -1
    """Of created topics; -1 for the cluster's own default."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    """``SCRAM-SHA-512``, ``SCRAM-SHA-256`` or ``PLAIN``."""
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    """Authorities to trust, PEM; the system's own where None."""
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    ssl_key_password: SecretStr | None = None
    options: dict[str, str | int | float | bool] = {}
    """Further librdkafka properties, for consumer, producer and administration alike, that tune or secure connections
    (``broker/kafka_options.py``). None that delivery rests on, and no secrets: these are printed like any setting."""

    @field_validator("options")
    @classmethod
    def _only_tuning(cls, options: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        """One property of the wrong kind, such as enable.auto.commit, loses alerts without a sign of it."""
        if refused := [why for why in map(refusal, options) if why is not None]:
            raise ValueError("; ".join(refused))
        return options

    @model_validator(mode="after")
    def _security_is_meant(self) -> Self:
        """Refuse settings that would do nothing: whoever gives them believes the connection is protected."""
        _refuse_unused(
            self, "SSL" in self.security_protocol, "security_protocol is not SSL or SASL_SSL",
            "ssl_ca_location", "ssl_certificate_location", "ssl_key_location", "ssl_key_password",
        )  # fmt: skip
        _refuse_unused(
            self, "SASL" in self.security_protocol, "security_protocol is not SASL_PLAINTEXT or SASL_SSL",
            "sasl_mechanism", "sasl_username", "sasl_password",
        )  # fmt: skip
        return self

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, servers: str) -> str:
        for server in servers.split(","):
            if not _ADDRESS.fullmatch(server.strip()):
                raise ValueError(f"{server.strip()!r} is no host:port")
        return servers

    @field_validator("input_topics")
    @classmethod
    def _topics(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        for topic in topics:
            check_topic(topic)
        return topics

    @field_validator("spectra_topic")
    @classmethod
    def _spectra(cls, topic: str) -> str:
        if is_pattern(topic):
            raise ValueError("no regular expression can be the topic of spectra, which is written to as well")
        return check_topic(topic) if topic else topic

    @field_validator("replication_factor")
    @classmethod
    def _replicas(cls, factor: int) -> int:
        if factor != -1 and not 1 <= factor <= 32_767:
            raise ValueError("give a number of replicas, or -1 for the cluster's own default")
        return factor

    @property
    def spectra_group_id(self) -> str:
        """The group of ``spectra_topic``: partitions of alerts and of spectra are shared out apart."""
        return f"{self.group_id}-spectra"

    def client_options(self) -> dict[str, str | int | float | bool]:
        """librdkafka properties that every client of this cluster needs; contains the secrets in clear."""
        given: dict[str, str | Path | None] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": in_clear(self.sasl_password),
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": in_clear(self.ssl_key_password),
        }
        return {name: str(value) for name, value in given.items() if value is not None} | self.options


class SchemaRegistrySettings(_Section):
    """Where the schemas of LSST's alerts are looked up (docs/schemas.md)."""

    url: str | None = None
    """``https://host/path`` of a Confluent schema registry; None for the schemas of lsst-alert-packet alone."""
    cache_dir: Path | None = None
    """Folder in which schemas are kept over restarts; None for memory only."""
    username: str | None = None
    password: SecretStr | None = None
    ca_location: Path | None = None
    """Authorities to trust, PEM, a file or a folder; those of certifi where None."""
    certificate_location: Path | None = None
    key_location: Path | None = None
    key_password: SecretStr | None = None
    timeout_s: Seconds = 5.0
    """Longest wait for each step of a request (seconds); asking for one schema takes twice as long at most, in all."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        try:
            parts = None if url is None else urlsplit(url)
            readable = parts is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
        except ValueError:
            readable = False
        if not readable:
            raise ValueError("no http:// or https:// URL")
        if parts is not None and "@" in parts.netloc:
            raise ValueError("has a login, which would be printed: give username and password as settings of their own")
        return url


class RedisSettings(_Section):
    """Where the state of objects is."""

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    """``redis://`` or, with TLS, ``rediss://``; user and password of an ACL may be in it."""
    username: str | None = None
    """Of the ACL; wins over the one in ``url``, and so does the password."""
    password: SecretStr | None = None
    ca_location: Path | None = None
    """Authorities to trust, PEM; the system's own where None."""
    certificate_location: Path | None = None
    key_location: Path | None = None

    def address(self) -> str:
        """The URL with all of this in it, as redis-py takes it; contains the password in clear."""
        parts = urlsplit(self.url.get_secret_value())
        login, _, host = parts.netloc.rpartition("@")
        name, _, word = login.partition(":")
        if self.username is not None:
            name = quote(self.username, safe="")
        if self.password is not None:
            word = quote(self.password.get_secret_value(), safe="")
        given = {
            "ssl_ca_certs": self.ca_location,
            "ssl_certfile": self.certificate_location,
            "ssl_keyfile": self.key_location,
        }
        query = urlencode({key: str(path) for key, path in given.items() if path is not None})
        if self.username is None and self.password is None and not query:
            return self.url.get_secret_value()
        return urlunsplit(
            parts._replace(
                netloc=f"{name}:{word}@{host}" if name or word else host,
                query="&".join(part for part in (parts.query, query) if part),
            )
        )

    @field_validator("url")
    @classmethod
    def _readable(cls, url: SecretStr) -> SecretStr:
        # What urlsplit says of a password with a "/" or "#" in it quotes the password.
        try:
            parts = urlsplit(url.get_secret_value())
            readable = parts.scheme in ("redis", "rediss", "unix") and parts.port != 0 and not parts.fragment
        except ValueError:
            readable = False
        if not readable:
            raise ValueError(
                "no redis://, rediss:// or unix:// URL; in a password, / is %2F, # is %23, ? is %3F and @ is %40"
            )
        if parts.scheme != "unix" and not re.fullmatch(r"/?|/\d{1,5}/?", parts.path):
            raise ValueError("what follows the host is no number of a database, as in redis://localhost:6379/0")
        for name, values in parse_qs(parts.query, keep_blank_values=True).items():
            if not values[0] or not _redis_takes(name, values[0]):
                raise ValueError(f"after the '?', {name} is no option of redis-py or its value is none")
        return url

    @model_validator(mode="after")
    def _tls_is_meant(self) -> Self:
        _refuse_unused(
            self, urlsplit(self.url.get_secret_value()).scheme == "rediss",
            "url is not rediss://, so that nothing would be encrypted",
            "ca_location", "certificate_location", "key_location",
        )  # fmt: skip
        return self


def _redis_takes(name: str, value: str) -> bool:
    """Whether redis-py understands an option of a URL, before a connection is made with it."""
    from redis import ConnectionPool, RedisError

    try:
        options = ConnectionPool.from_url(f"rediss://h/?{urlencode({name: value})}").make_connection()
    except (ValueError, TypeError, AttributeError, RedisError):
        return False
    return all(math.isfinite(v) and v >= 0 for v in vars(options).values() if isinstance(v, float))


class StateSettings(_Section):
    """What is kept of an object, and for how long (docs/state.md)."""

    max_points: PositiveInt = MAX_POINTS
    """Points kept of one object in one survey; of more, upper limits go first, then the oldest."""
    expiry_days: float = Field(default=1000.0, gt=0, le=36_500)
    """Objects not seen for so long are forgotten."""
    association_radius_arcsec: float = Field(default=1.5, ge=0, le=60)
    """Within which objects of two surveys are taken for one; 0 for never."""
    spectrum_radius_arcsec: float = Field(default=2.0, ge=0, le=60)
    """Within which a spectrum is taken for the object's."""


class TritonSettings(_Section):
    """The inference server, where ``inference.engine`` is ``triton``."""

    url: str = "localhost:8001"
    """``host:port`` of the gRPC service."""

    timeout_s: Seconds = 10.0
    retries: int = Field(default=2, ge=0)
    tls: bool = False
    root_certificates: Path | None = None
    """Authorities to trust, PEM; gRPC's own list where None."""
    private_key: Path | None = None
    """With ``certificate_chain``: by which this worker identifies itself, which is Triton's only login."""
    certificate_chain: Path | None = None

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if "://" in url or not _ADDRESS.fullmatch(url):
            raise ValueError(f"{url!r} is no host:port of Triton's gRPC service, such as localhost:8001")
        return url

    @model_validator(mode="after")
    def _tls_is_meant(self) -> Self:
        _refuse_unused(
            self, self.tls, "tls is false, so that nothing would be encrypted",
            "root_certificates", "private_key", "certificate_chain",
        )  # fmt: skip
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("private_key and certificate_chain: give both or neither")
        return self


class InferenceSettings(_Section):
    """What runs the model."""

    engine: Literal["onnx", "triton"] = "onnx"
    """``onnx`` in this process, ``triton`` on a server."""
    model_repository: Path = MODEL_REPOSITORY
    """Triton model repository with its ``manifest.json``; of it ``triton`` needs the manifest only."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of ``onnx``; 0 for one a core."""
    device: Literal["any", "cpu", "gpu"] = "any"
    """Where the model has to run; ``/readyz`` says no where it runs elsewhere."""
    other_threshold: float | None = Field(default=None, gt=0, le=1)
    """Probability of being none of the ten classes from which an alert is published as ``Other`` (docs/annotation.md);
    the model's own where None, 1 for never. Known bodies of the solar system are Other in any case."""


class AnomalySettings(_Section):
    """What objects are compared with."""

    reference_set: Path | None = None
    """Embeddings of known objects, ``.npz``; ``reference_set.npz`` of the model repository where None."""
    threshold: float = Field(default=0.99, ge=0, le=1)
    """Anomaly score from which an object is published to the anomaly topic."""


class PipelineSettings(_Section):
    """How alerts are put together into batches, and how long to wait for what is unavailable."""

    batch_size: _Int32 = 256
    period_search_growth: float = Field(default=0.2, ge=0, le=1)
    """A light curve's period is searched anew where its points, or the time they span, have grown by this fraction
    since the last full search; in between that one's result is refined (docs/state.md). 0 for at every new point."""
    future_days: float = Field(default=30.0, ge=0, le=36_500)
    """An alert whose detection is later than its receipt by more days than this becomes a dead letter, and such points
    of others are left out (docs/points.md)."""
    batch_wait_s: Seconds = 0.5
    """A batch is processed after so long even where it is not full."""
    batch_mib: _Int32 = 64
    """A batch with so much payload, MiB, is full; up to 32 messages may go beyond."""
    max_message_alerts: int = Field(default=10_000, ge=1, le=100_000)
    """A message with more alerts becomes a dead letter as a whole; one with fewer is handled ``batch_size`` alerts at a
    time, and its annotations are delivered together."""
    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """A message that inflates to more, MiB, becomes a dead letter before the memory for it is taken."""
    first_backoff_s: Seconds = 0.5
    """Pause before the first new attempt where Redis, Triton or Kafka is unavailable; doubled each time."""
    max_backoff_s: Seconds = 15.0
    max_dead_letter_ratio: float = Field(default=0.5, ge=0, le=1)
    """The service stops where more than this share of the latest alerts would be dead letters, and leaves the batch
    that would make it so in the input topic (docs/operations.md); 1 for never."""
    dead_letter_window: _Int32 = 1000
    """How many of the latest alerts that share is taken of."""
    dead_letter_min_alerts: _Int32 = 100
    """Of fewer alerts than this no share is taken."""
    stop_timeout_s: Seconds = 8.0
    """After SIGTERM the in-flight batch has half of this to be finished, else it is abandoned for reprocessing; after
    all of it the process ends, whatever it waits for."""

    @model_validator(mode="after")
    def _limits_are_meant(self) -> Self:
        if self.max_backoff_s < self.first_backoff_s:
            raise ValueError(f"max_backoff_s = {self.max_backoff_s:g} is below first_backoff_s")
        if self.dead_letter_min_alerts > self.dead_letter_window:
            raise ValueError("dead_letter_min_alerts is above dead_letter_window, so that no share would be taken")
        return self


class PublishSettings(_Section):
    """What is published and where."""

    topic_prefix: str = Field(default="trifid", pattern=r"^[A-Za-z0-9._-]+$")
    broker_name: str = "Trifid"
    disagreement_probability: float = Field(default=0.95, gt=0.5, le=1)
    """Probability of the leading parent, or class, from which the model is said to disagree with a catalogue of known
    variable stars (docs/catalogs.md)."""
    dead_letter_max_bytes: _Int32 = 1_000_000
    """Payloads of dead letters are cut to this size; Kafka's own default limit for a message is 1,048,588."""


class MetricsSettings(_Section):
    """Where Prometheus finds the metrics."""

    address: str = "0.0.0.0"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 for none. ``/healthz`` and ``/readyz`` are there, too (docs/operations.md)."""
    probe_interval_s: Seconds = 5.0
    """Pause between two looks at Redis, Triton and Kafka for ``/readyz``."""
    alive_limit_s: Seconds = 60.0
    """``/healthz`` fails where the worker's loop has not come round for so long."""
    batch_limit_s: Seconds = 600.0
    """``/healthz`` fails where one batch has been in flight for so long without an answer or an error."""
    lag_window_s: Seconds = 300.0
    """``/readyz`` fails where the lag has grown over so long. Longer than a burst of alerts lasts."""
    lag_floor: int = Field(default=2000, ge=0)
    """Alerts in the input topics not yet taken that are no matter of concern, growing or not."""
    mixed_models_limit_s: Seconds = 900.0
    """``/readyz`` fails where workers of one group have run different models or reference sets for so long; it names
    them at once. Longer than it takes to replace all workers one by one."""


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
    redis: RedisSettings = RedisSettings()
    state: StateSettings = StateSettings()
    triton: TritonSettings = TritonSettings()
    inference: InferenceSettings = InferenceSettings()
    anomaly: AnomalySettings = AnomalySettings()
    pipeline: PipelineSettings = PipelineSettings()
    publish: PublishSettings = PublishSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _reads_no_output(self) -> Self:
        """A service that reads what it writes would have each annotation as an alert that cannot be decoded."""
        kafka = self.kafka
        surveys = ["ztf", "lsst", "elasticc", *(name.rpartition(".")[2] for name in self.surveys)]
        written = [topic_of(self.publish.topic_prefix, survey, kind) for survey in surveys for kind in KINDS]
        written.append(f"{self.publish.topic_prefix}.deadletter")
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
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"settings file {path}: {error}") from error
        unknown = list(_unknown_keys(table, Settings))
        if unknown:
            raise ConfigurationError(f"settings file {path}: unknown {'; '.join(unknown)}")
    try:
        return Settings(**table)
    except ValidationError as error:
        # Location and message only: the input may be a secret.
        wrong = [
            ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))))
            for e in error.errors(include_input=False)
        ]
        raise ConfigurationError(f"settings: {'; '.join(wrong)}") from error
    except SettingsError as error:
        raise ConfigurationError(f"settings: {error}") from error


def _unknown_keys(table: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        field = model.model_fields.get(key)
        if field is None:
            near = difflib.get_close_matches(key, model.model_fields, n=1)
            yield f"'{prefix}{key}'" + (f" (did you mean '{prefix}{near[0]}'?)" if near else "")
        elif isinstance(value, Mapping) and isinstance(field.default, BaseModel):
            yield from _unknown_keys(value, type(field.default), f"{prefix}{key}.")


def in_clear(secret: SecretStr | None) -> str | None:
    """What a client is to be given; never print it."""
    return None if secret is None else secret.get_secret_value()
