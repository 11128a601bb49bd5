"""Settings of the web page and the HTTP API (``trifid web``, docs/web.md)."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from ipaddress import ip_address, ip_network
from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from broker.config.section import Names, Section

_KEY_BYTES: Final = 32
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43}=")
PerMinute = Annotated[int, Field(ge=1, le=1_000_000)]


class WebSettings(Section):
    """Where people look at what the broker says, and for how long that is kept."""

    address: str = "127.0.0.1"
    """Where to listen. On a loopback address no token is needed (docs/web.md)."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Of the pages and the API."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where metrics, ``/healthz`` and ``/readyz`` are without a token, at ``address``; 0 for those of the API alone."""
    database: SecretStr = SecretStr("sqlite:///trifid-web.sqlite")
    """SQLAlchemy's URL of the index of annotations: a file of SQLite, or ``postgresql+psycopg://user:password@host/db``
    for several processes. Its tables are made where they are missing."""
    secret_key: SecretStr | None = None
    """Encrypts what lists hold of receivers, URLs of webhooks and tokens, in the database: 32 bytes in URL-safe base64
    (``openssl rand -base64 32 | tr +/ -_``). Of several, with blanks between, the first encrypts and all decrypt."""
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
    """Largest uploaded file, MiB."""

    @field_validator("database")
    @classmethod
    def _is_url(cls, database: SecretStr) -> SecretStr:
        if "://" not in database.get_secret_value():
            raise ValueError("no URL of a database, such as sqlite:////var/lib/trifid/web.sqlite")
        return database

    @field_validator("secret_key")
    @classmethod
    def _are_keys(cls, secret: SecretStr | None) -> SecretStr | None:
        for key in () if secret is None else secret.get_secret_value().split() or ("",):
            try:
                right = len(urlsafe_b64decode(key)) == _KEY_BYTES and _KEY.fullmatch(key)
            except ValueError:  # which quotes nothing, but is no help either
                right = None
            if not right:
                raise ValueError("no key of 32 bytes in URL-safe base64: openssl rand -base64 32 | tr +/ -_ makes one")
        return secret

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
    def secret_keys(self) -> tuple[str, ...]:
        """Of ``secret_key``, the one that encrypts first."""
        return () if self.secret_key is None else tuple(self.secret_key.get_secret_value().split())

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
