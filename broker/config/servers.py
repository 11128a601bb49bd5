"""Settings of Redis and of Triton."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from broker.config.section import ADDRESS, Names, Seconds, Section, refuse_unused


class RedisSettings(Section):
    """Where the state of objects is."""

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    """``redis://`` or, with TLS, ``rediss://``; user and password of an ACL may be in it."""
    username: str | None = None
    """Of the ACL; wins over the one in ``url``, and so does the password."""
    password: SecretStr | None = None
    """Of the ACL's user, or of a Redis that has a password only; better from ``TRIFID_REDIS__PASSWORD_FILE``."""
    ca_location: Path | None = None
    """Authorities to trust, PEM; the system's own where None."""
    certificate_location: Path | None = None
    """This client's own certificate, PEM, where Redis asks for one."""
    key_location: Path | None = None
    """The certificate's private key, PEM."""
    cluster: bool = False
    """Whether ``url`` is of a node of a Redis Cluster, which is asked where each key is (docs/operations.md)."""
    nodes: Names = ()
    """``host:port`` of further nodes to ask at the start, where the one of ``url`` is down."""
    wait_replicas: int = Field(default=0, ge=0)
    """Replicas that must have what a batch writes before it counts as written; 0 for none (docs/state.md)."""

    def address(self) -> str:
        """The URL with all of this in it, as ``RedisConnection`` takes it; contains the password in clear."""
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
            "cluster": "true" if self.cluster else None,
            "nodes": ",".join(self.nodes) or None,
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

    @field_validator("nodes")
    @classmethod
    def _addresses(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for node in nodes:
            if "://" in node or not ADDRESS.fullmatch(node) or not node.rpartition(":")[2].isdigit():
                raise ValueError(f"{node!r} is no host:port of a node of the cluster")
        return nodes

    @model_validator(mode="after")
    def _cluster_is_meant(self) -> Self:
        if self.nodes and not self.cluster:
            raise ValueError("nodes given, but cluster is false")
        parts = urlsplit(self.url.get_secret_value())
        if self.cluster and (parts.scheme == "unix" or parts.path.strip("/") not in ("", "0")):
            raise ValueError("a cluster has no unix:// address and no database but 0")
        return self

    @model_validator(mode="after")
    def _tls_is_meant(self) -> Self:
        refuse_unused(
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


class TritonSettings(Section):
    """The inference server, where ``inference.engine`` is ``triton``."""

    url: str = "localhost:8001"
    """``host:port`` of the gRPC service."""

    timeout_s: Seconds = 10.0
    """Longest wait for the answer to one request."""
    retries: int = Field(default=2, ge=0)
    """Further attempts at a request that failed, before the batch waits for Triton (``pipeline.first_backoff_s``)."""
    one_request: Literal["auto", "off"] = "auto"
    """``auto``: a batch is one request where the server has the model ``trifid``; ``off``: one for each model."""
    requests_in_flight: int = Field(default=2, ge=1, le=64)
    """Parts of a batch that are with the server at the same time, while the worker assembles the next; of at least 64
    objects each."""
    shared_memory: Literal["auto", "off"] = "auto"
    """``auto``: inputs go through shared memory where the server is seen to be on this host."""
    tls: bool = False
    """Whether the connection is encrypted."""
    root_certificates: Path | None = None
    """Authorities to trust, PEM; gRPC's own list where None."""
    private_key: Path | None = None
    """With ``certificate_chain``: by which this worker identifies itself, which is Triton's only login."""
    certificate_chain: Path | None = None
    """This worker's certificate and those between it and its authority, PEM."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if "://" in url or not ADDRESS.fullmatch(url):
            raise ValueError(f"{url!r} is no host:port of Triton's gRPC service, such as localhost:8001")
        return url

    @model_validator(mode="after")
    def _tls_is_meant(self) -> Self:
        refuse_unused(
            self, self.tls, "tls is false, so that nothing would be encrypted",
            "root_certificates", "private_key", "certificate_chain",
        )  # fmt: skip
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("private_key and certificate_chain: give both or neither")
        return self
