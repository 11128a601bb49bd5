"""Schemas of annotations that are in a registry, parsed once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastavro

from broker.errors import ConfigurationError
from broker.publish.annotation import Schemas

if TYPE_CHECKING:
    from broker.avro.registry import SchemaRegistry


def schemas_of(registry: str | SchemaRegistry) -> Schemas:
    """What gives a parsed schema by its id, from a registry or from that at an address without a login.

    Raises ConfigurationError for what is no address, or where the registry's client is not installed.
    """
    if isinstance(registry, str):
        try:
            from broker.avro.registry import SchemaRegistry
        except ImportError as error:
            raise ConfigurationError(
                f"a schema registry needs more packages: pip install 'confluent-kafka[schemaregistry]' ({error})"
            ) from error
        registry = SchemaRegistry(registry)
    schemas, parsed = registry, dict[int, Any]()

    def schema(schema_id: int) -> Any:
        if (found := parsed.get(schema_id)) is None:
            found = parsed[schema_id] = fastavro.parse_schema(dict(schemas(schema_id)))
        return found

    return schema
