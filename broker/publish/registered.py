"""Annotations by a schema that a Confluent schema registry has: the message carries its id in place of the schema."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import fastavro

from broker.avro.wire import confluent_message
from broker.config.kafka import AnnotationRegistrySettings
from broker.config.section import in_clear
from broker.errors import ConfigurationError
from broker.publish.annotation import SCHEMA, SCHEMA_TEXT

if TYPE_CHECKING:
    from broker.avro.registry import SchemaRegistry

log = logging.getLogger(__name__)


class RegisteredWriter:
    """Makes messages in Confluent's wire format: a zero byte, the id of the schema in four, and one bare record."""

    def __init__(self, registry: SchemaRegistry, subject: str, *, write: bool = True) -> None:
        """``write``: whether to register the schema where ``subject`` does not have it yet."""
        self._registry, self._subject, self._may_write = registry, subject, write
        self._id: int | None = None

    def prepare(self) -> None:
        """Register the schema, or look it up, for its id; the registry checks that it is compatible.

        Raises ConfigurationError where it says no, DependencyUnavailableError where it is unavailable.
        """
        if self._id is None:
            self._id = self._registry.register(self._subject, SCHEMA_TEXT, write=self._may_write)
            log.info("annotations have schema id %d of subject %s", self._id, self._subject)

    def __call__(self, record: dict[str, Any]) -> bytes:
        """The message for one record, after ``prepare``."""
        assert self._id is not None
        body = io.BytesIO()
        fastavro.schemaless_writer(body, SCHEMA, record)
        return confluent_message(self._id, body.getvalue())


def annotation_registry(settings: AnnotationRegistrySettings, url: str | None = None) -> SchemaRegistry | None:
    """The registry of annotations' schemas, which connects when it is first asked; None where there is none.

    ``url`` in place of the settings'. Raises ConfigurationError where a setting is wrong, or the registry's client is
    not installed.
    """
    if (url or settings.url) is None:
        return None
    from broker.avro.registry import SchemaRegistry

    try:
        return SchemaRegistry(
            url or settings.url,
            username=settings.username,
            password=in_clear(settings.password),
            ca_location=settings.ca_location,
            certificate_location=settings.certificate_location,
            key_location=settings.key_location,
            key_password=in_clear(settings.key_password),
            timeout_s=settings.timeout_s,
        )
    except ImportError as error:  # 20 MiB, cryptography above all, that most subscribers have no use for
        raise ConfigurationError(
            f"a schema registry needs more packages: pip install 'trifid[registry]' ({error})"
        ) from error
