"""Settings of the web page and the HTTP API (``trifid web``, docs/web.md)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from broker.config.section import Names, Section

PerMinute = Annotated[int, Field(ge=1, le=1_000_000)]


class WebSettings(Section):
    """Where people look at what the broker says, and for how long that is kept."""

    address: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where Prometheus finds the metrics without a token, at ``address``; 0 for none but ``/metrics`` of the API."""
    database: SecretStr = SecretStr("sqlite:///trifid-web.sqlite")
    """SQLAlchemy's URL of the index of annotations: a file of SQLite, or ``postgresql+psycopg://user:password@host/db``
    for several processes. Its tables are made where they are missing."""
    group_id: str = "trifid-web"
    """The consumer group that fills the index; processes that share a database share it, others have one each."""
    retention_days: float = Field(default=30.0, gt=0, le=36_500)
    """Annotations are kept for so long after they were published."""
    require_login: bool | None = None
    """Whether each request needs a token (``trifid web token create``). Not given: yes, unless ``address`` is a
    loopback one; false is refused for any other. Behind a proxy on the same machine give true."""
    trusted_proxies: Names = ()
    """Addresses or networks (``10.0.0.0/8``) of proxies whose ``X-Forwarded-For`` says who asks; none by default, and
    then all that come through a proxy without a token are one address, with one rate."""
    requests_per_minute: PerMinute = 600
    """Of one token, or of one address without tokens; beyond that requests are answered with 429."""
    classifications_per_minute: PerMinute = 30
    """Likewise, of requests that run the model: uploads, and an object's classes by modality."""
    max_upload_mib: int = Field(default=4, ge=1, le=256)

    @field_validator("database")
    @classmethod
    def _is_url(cls, database: SecretStr) -> SecretStr:
        if "://" not in database.get_secret_value():
            raise ValueError("no URL of a database, such as sqlite:////var/lib/trifid/web.sqlite")
        return database

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ip_network(proxy)  # a ValueError, which names it
        return proxies

    @model_validator(mode="after")
    def _has_tokens_for_others(self) -> Self:
        if self.require_login is False and not self.on_loopback:
            # Whoever asks without a token has all scopes, that of making tokens included.
            raise ValueError(
                f"web.require_login = false, and web.address = {self.address!r} is reached from other machines: "
                "anybody could give feedback and make tokens. Listen on 127.0.0.1, or leave require_login out"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"

    @property
    def tokens_required(self) -> bool:
        """Whether requests need a token."""
        return not self.on_loopback if self.require_login is None else self.require_login
