"""The parts of the service as the settings ask for them."""

from __future__ import annotations

import redis

from broker.anomaly.reference_set import ReferenceSet
from broker.config import InferenceSettings, Settings, TritonSettings, in_clear
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine, TritonTls
from broker.publish.messages import Publisher
from broker.publish.topics import Topics
from broker.state.admin import StateAdmin
from broker.state.objects import Limits
from broker.state.redis import DAY, RedisStore
from broker.surveys import Decoder, load_surveys
from broker.surveys.columns import ANY_TIME
from broker.surveys.registry import SchemaRegistry

REFERENCE_SET_FILE = "reference_set.npz"
"""Name of the reference set in a model repository."""


def build_engine(inference: InferenceSettings, triton: TritonSettings) -> OnnxEngine | TritonEngine:
    """The engine that ``inference.engine`` names; raises ConfigurationError where it cannot be used."""
    if inference.engine == "onnx":
        return OnnxEngine(inference.model_repository, threads=inference.threads)
    tls = TritonTls(triton.root_certificates, triton.private_key, triton.certificate_chain)
    return TritonEngine(
        triton.url,
        inference.model_repository,
        timeout=triton.timeout_s,
        retries=triton.retries,
        tls=tls if triton.tls else None,
    )


def build_decoder(settings: Settings) -> Decoder:
    """What decodes messages, with the schema registry where one is set; raises ConfigurationError."""
    registry = settings.schema_registry
    schemas = SchemaRegistry(
        registry.url,
        cache_dir=registry.cache_dir,
        username=registry.username,
        password=in_clear(registry.password),
        ca_location=registry.ca_location,
        certificate_location=registry.certificate_location,
        key_location=registry.key_location,
        key_password=in_clear(registry.key_password),
        timeout_s=registry.timeout_s,
    )
    return Decoder(
        settings.surveys,
        schemas,
        settings.pipeline.future_days,
        max_alerts=settings.pipeline.max_message_alerts,
        max_bytes=settings.pipeline.max_message_mib * 1024 * 1024,
    )


def build_store(settings: Settings) -> RedisStore:
    """The store in Redis; it connects when it is used."""
    state = settings.state
    return RedisStore(
        settings.redis.address(),
        Limits(state.max_points, state.association_radius_arcsec, state.spectrum_radius_arcsec),
        expiry_days=state.expiry_days,
    )


def build_state_admin(settings: Settings) -> StateAdmin:
    """What shows, forgets and repairs single objects in Redis; it connects when it is used."""
    client = redis.Redis.from_url(settings.redis.address(), socket_timeout=5.0, socket_connect_timeout=5.0)
    times = {survey.name: getattr(survey, "times", ANY_TIME) for survey in load_surveys(settings.surveys)}
    return StateAdmin(client, times, max(1, int(settings.state.expiry_days * DAY)))


def load_reference_set(settings: Settings) -> ReferenceSet:
    """The reference set's file; raises ConfigurationError where it cannot be read."""
    path = settings.anomaly.reference_set or settings.inference.model_repository / REFERENCE_SET_FILE
    return ReferenceSet.load_npz(path)


def build_publisher(settings: Settings) -> Publisher:
    """What turns annotations into messages; raises ConfigurationError where a survey's module cannot be used."""
    surveys = tuple(survey.name for survey in load_surveys(settings.surveys))
    topics = Topics(settings.publish.topic_prefix, settings.anomaly.threshold, surveys)
    return Publisher(topics, settings.publish.broker_name, settings.publish.dead_letter_max_bytes)


def reference_set_in_redis(settings: Settings) -> ReferenceSet:
    """The reference set in Redis; where there is none, the file's, which is put there for all workers.

    Raises DependencyUnavailableError where Redis is away, ConfigurationError where the set cannot be used.
    """
    url = settings.redis.address()
    stored = ReferenceSet.from_redis(url)
    if stored is not None:
        return stored
    reference = load_reference_set(settings)
    reference.to_redis(url)
    return reference
