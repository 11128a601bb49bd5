"""The annotations of all surveys, as the service's own settings find them: for the web page and users' lists."""

from __future__ import annotations

from typing import Literal

from broker.client import Subscription
from broker.client.schemas import schemas_of
from broker.config import Settings
from broker.publish.registered import annotation_registry
from broker.topic_names import pattern_of


def all_annotations(
    settings: Settings, group_id: str, start: Literal["earliest", "latest"] = "earliest"
) -> Subscription:
    """A subscription to the annotations of all surveys, whose iterations end after a second without any."""
    options = settings.kafka.client_options()
    servers = str(options.pop("bootstrap.servers"))
    registry = annotation_registry(settings.annotation_registry)
    return Subscription(
        pattern_of(settings.publish.topic_prefix, "all"),
        servers,
        group_id=group_id,
        start=start,
        idle_timeout=1.0,
        options=options,
        schema_registry=None if registry is None else schemas_of(registry),
    )
