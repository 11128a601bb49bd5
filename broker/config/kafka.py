"""Settings of Kafka and of the schema registry."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from broker.config.kafka_options import refusal
from broker.config.section import ADDRESS, Int32, Names, Seconds, Section, in_clear, refuse_unused
from broker.topic_names import check_topic, is_pattern


class KafkaSettings(Section):
    """Where alerts come from and annotations go to, and what is promised in between (docs/delivery.md)."""

    _may_be_empty: ClassVar[frozenset[str]] = frozenset({"spectra_topic"})

    bootstrap_servers: str = "localhost:9092"
    """Brokers to ask first, ``host:port``, several with commas; they tell of all others."""
    input_topics: Names = ("alerts.ztf", "alerts.lsst")
    """A name that begins with ``^`` is a regular expression: ``^lsst-alerts-.*`` reads reprocessed alerts, too
    (docs/schemas.md). None may take a topic that the service writes to, or ``spectra_topic``."""
    spectra_topic: str = "spectra"
    """Where spectra arrive (docs/spectra.md), read beside the alerts; none where empty."""
    group_id: str = "trifid"
    """Consumer group: workers of one group share out the input partitions. Part of the transactional id, too."""
    worker_id: str = Field(default_factory=socket.gethostname)
    """Names this process among those of the group, the same after a restart: it is part of the transactional
    id, by which Kafka fences an earlier process that only seemed dead, and the static member's name. No two
    workers of a group may have the same."""
    worker_id_folder: Path | None = None
    """Folder from which the workers of one machine take ids that are free, in place of ``worker_id``: replicas of
    Docker Compose, whose hosts have another name each time (docs/operations.md)."""
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    """``exactly-once`` with transactions; ``at-least-once`` for a Kafka without them (docs/delivery.md)."""
    session_timeout_s: Seconds = 10.0
    """A worker silent for so long loses its partitions to the others of the group; one that was stopped and is a
    static member, too."""
    static_membership: bool = True
    """Whether a worker that restarts within ``session_timeout_s`` gets its partitions back without a rebalance
    (KIP-345). Without it, partitions of a worker that stops go to the others at once."""
    group_protocol: Literal["cooperative", "eager"] = "cooperative"
    """How the group assigns partitions: step by step (KIP-429), or all at once, as versions before 0.1.0 did. All
    workers of a group need the same one: to change it, stop them all (docs/delivery.md, Upgrades)."""
    max_poll_interval_s: Seconds = 300.0
    """A worker that does not ask for alerts for so long loses its partitions. It asks while a batch takes long, too:
    this is for one that hangs."""
    transaction_timeout_s: Seconds = 60.0
    """Kafka aborts a transaction that has been open for so long, and its batch is processed again."""
    max_message_bytes: Int32 = 10_485_760
    """Largest message sent out, and how much is fetched at once. What comes in is bounded by the input topic's
    ``max.message.bytes``: a consumer takes larger messages than it asks for, one at a time."""
    consumer_queue_mib: Int32 = 32
    """Alerts fetched ahead, MiB; one fetch may go beyond."""
    producer_queue_mib: Int32 = 64
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
    topic_partitions: Int32 = 4
    """Of created topics."""
    replication_factor: int = -1
    """Of created topics; -1 for the cluster's own default."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether connections are encrypted (``SSL``) and whether there is a login (``SASL``; docs/security.md)."""
    sasl_mechanism: str | None = None
    """``SCRAM-SHA-512``, ``SCRAM-SHA-256`` or ``PLAIN``."""
    sasl_username: str | None = None
    """Login at the broker, with ``SASL_PLAINTEXT`` and ``SASL_SSL``."""
    sasl_password: SecretStr | None = None
    """Its password; better from ``TRIFID_KAFKA__SASL_PASSWORD_FILE`` than from a file of settings."""
    ssl_ca_location: Path | None = None
    """Authorities to trust, PEM; the system's own where None."""
    ssl_certificate_location: Path | None = None
    """This client's own certificate, PEM, where the broker asks for one."""
    ssl_key_location: Path | None = None
    """The certificate's private key, PEM."""
    ssl_key_password: SecretStr | None = None
    """Of an encrypted private key."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further librdkafka properties, for consumer, producer and administration alike, that tune or secure connections
    (``broker/config/kafka_options.py``). None that delivery rests on, and no secrets: these are printed like any
    setting."""

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        if self.worker_id_folder is not None and "worker_id" in self.model_fields_set:
            raise ValueError("give worker_id or worker_id_folder, not both")
        return self

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
        refuse_unused(
            self, "SSL" in self.security_protocol, "security_protocol is not SSL or SASL_SSL",
            "ssl_ca_location", "ssl_certificate_location", "ssl_key_location", "ssl_key_password",
        )  # fmt: skip
        refuse_unused(
            self, "SASL" in self.security_protocol, "security_protocol is not SASL_PLAINTEXT or SASL_SSL",
            "sasl_mechanism", "sasl_username", "sasl_password",
        )  # fmt: skip
        return self

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, servers: str) -> str:
        for server in servers.split(","):
            if not ADDRESS.fullmatch(server.strip()):
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


class _RegistrySettings(Section):
    """How a Confluent schema registry is reached."""

    url: str | None = None
    """``https://host/path`` of the registry; None for none."""
    username: str | None = None
    """Login, by HTTP basic authentication."""
    password: SecretStr | None = None
    """Its password."""
    ca_location: Path | None = None
    """Authorities to trust, PEM, a file or a folder; those of certifi where None."""
    certificate_location: Path | None = None
    """This client's own certificate, PEM, where the registry asks for one."""
    key_location: Path | None = None
    """The certificate's private key, PEM."""
    key_password: SecretStr | None = None
    """Of an encrypted private key."""
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


class SchemaRegistrySettings(_RegistrySettings):
    """Where LSST's schemas are looked up (docs/schemas.md); without ``url`` in lsst-alert-packet alone."""

    cache_dir: Path | None = None
    """Folder in which schemas are kept over restarts; None for memory only."""


class AnnotationRegistrySettings(_RegistrySettings):
    """Where the schema of annotations is registered (docs/annotation.md); without ``url`` each message carries it."""

    subject: str = "org.trifid.annotation.v1.BrokerClassification"
    """Under which name: the record's own (Confluent's RecordNameStrategy), since all topics hold the same record."""
    register_schema: bool = True
    """Whether a worker that starts registers its schema; false where it may only look it up, and somebody else
    registers ``broker/publish/annotation.avsc``."""
