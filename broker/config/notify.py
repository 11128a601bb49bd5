"""Settings of users' lists and of what is sent for them (``trifid notify``, docs/watchlists.md)."""

from __future__ import annotations

from email.utils import parseaddr
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from broker.config.section import Int32, Names, Seconds, Section, refuse_unused


class NotifySettings(Section):
    """What lists may hold, where mail goes out, and how often a receiver that fails is tried again."""

    group_id: str = "trifid-notify"
    """The consumer group that reads annotations for lists."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where metrics, ``/healthz`` and ``/readyz`` of ``trifid notify`` are, at ``web.address``; 0 for nowhere."""
    reload_s: Seconds = 10.0
    """How soon a new or changed list counts, at the latest."""
    topic_retention_hours: float = Field(default=168.0, gt=0, le=87_600)
    """Of the lists' topics."""
    max_lists: int = Field(default=20, ge=1, le=10_000)
    """Of one user."""
    max_positions: int = Field(default=200_000, ge=1, le=10_000_000)
    """Positions and names of all lists of one user together."""
    matches_per_day: Int32 = 50_000
    """Of one user, from midnight UTC; what is beyond is counted and left out."""
    messages_per_day: Int32 = 100
    """Mails and calls of webhooks of one user, from midnight UTC; what is beyond waits for the next day."""
    digest_hour: int = Field(default=16, ge=0, le=23)
    """When daily messages go out, UTC."""
    max_attempts: int = Field(default=10, ge=1, le=100)
    """For one message, or a topic that refuses, before it is given up: a dead letter."""
    retry_s: Seconds = 30.0
    """Until the second attempt; twice as long before each further one, up to ``max_retry_s``."""
    max_retry_s: Seconds = 14_400.0
    """Longest pause between two attempts."""
    timeout_s: Seconds = 15.0
    """Longest a mail server or webhook may take in all."""
    lease_s: Seconds = 60.0
    """How long after one of several processes was killed another goes on sending."""
    webhook_networks: Names = ()
    """Networks of private addresses (``10.0.0.0/8``) that webhooks may be in, also with http; none by default, and then
    only public addresses with https."""
    email_domains: Names = ()
    """Domains (``example.org``) that mail may go to; any by default."""
    smtp_host: str | None = None
    """The mail server; no mail without it."""
    smtp_port: int = Field(default=587, ge=1, le=65535)
    """Of the mail server."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """``starttls``: encrypted after the greeting; ``tls``: from the start; ``none``: in clear, password included."""
    smtp_ca_file: Path | None = None
    """Who signed the mail server's certificate; the system's authorities by default."""
    smtp_user: str | None = None
    """Login at the mail server; none where it is left out."""
    smtp_password: SecretStr | None = None
    """Its password; better from ``TRIFID_NOTIFY__SMTP_PASSWORD_FILE``."""
    mail_from: str | None = None
    """The sender's address."""
    public_url: str | None = None
    """Of ``trifid web``, for links in messages."""

    @field_validator("webhook_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)  # a ValueError, which names it
        return networks

    @model_validator(mode="after")
    def _has_all_of_mail(self) -> Self:
        refuse_unused(
            self, self.smtp_host is not None, "there is no notify.smtp_host", "smtp_user", "smtp_password", "mail_from",
            "smtp_ca_file",
        )  # fmt: skip
        if self.smtp_host is not None and "@" not in parseaddr(self.mail_from or "")[1]:
            raise ValueError("notify.smtp_host given, and notify.mail_from is no address")
        if (self.smtp_user is None) != (self.smtp_password is None):
            raise ValueError("give both notify.smtp_user and notify.smtp_password")
        if self.smtp_user is not None and self.smtp_security == "none":
            raise ValueError("notify.smtp_password would travel in clear: set notify.smtp_security")
        return self
