"""Settings of traces (OpenTelemetry, docs/operations.md)."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from broker.config.section import Section


class TracingSettings(Section):
    """Where spans go, and of how many alerts there are any; nothing is traced without ``endpoint``."""

    endpoint: str | None = None
    """A collector's address of OTLP over HTTP, ``http://collector:4318``: spans are posted to ``/v1/traces`` there.
    Needs the extra ``otel``. Headers and certificates are OpenTelemetry's own variables
    (``OTEL_EXPORTER_OTLP_HEADERS``)."""
    share: float = Field(default=0.001, ge=0, le=1)
    """Of the alerts whose message says nothing of a trace (no ``traceparent``), the share that is traced. A message
    whose ``traceparent`` is sampled is traced in any case."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, endpoint: str | None) -> str | None:
        parts = urlsplit(endpoint or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("no http:// or https:// URL")
        if "@" in parts.netloc:
            raise ValueError("has a login, which would be printed: give it in OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint
