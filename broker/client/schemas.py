"""Schemas of annotations that are in a registry, parsed once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastavro

from broker.config.kafka import AnnotationRegistrySettings
from broker.publish.annotation import Schemas
from broker.publish.registered import annotation_registry

if TYPE_CHECKING:
    from broker.avro.registry import SchemaRegistry


def schemas_of(registry: str | SchemaRegistry) -> Schemas:
    """What gives a parsed schema by its id, from a registry or from that at an address without a login.

    Raises ConfigurationError for what is no address, or where the registry's client is not installed.
    """
    if isinstance(registry, str):
        found = annotation_registry(AnnotationRegistrySettings(), registry)
        assert found is not None
        registry = found
    schemas, parsed = registry, dict[int, Any]()

    def schema(schema_id: int) -> Any:
        if (found := parsed.get(schema_id)) is None:
            found = parsed[schema_id] = fastavro.parse_schema(dict(schemas(schema_id)))
        return found

    return schema
