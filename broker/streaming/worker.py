"""A worker of the service, put together from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka.admin import AdminClient

from broker import metrics
from broker.anomaly.reference_set import ReferenceSet
from broker.batch import BatchResult
from broker.build import (
    build_decoder,
    build_drift,
    build_engine,
    build_pipeline,
    build_publisher,
    build_store,
    reference_set_in_redis,
)
from broker.config import KafkaSettings, Settings
from broker.errors import ConfigurationError
from broker.feedback.learned import Learned
from broker.models.candidate import Candidate, Loaded
from broker.pipeline import Pipeline
from broker.redis_client import RedisConnection
from broker.similar.keeper import Keeper
from broker.state import Store
from broker.streaming import clients
from broker.streaming.handling import Process
from broker.streaming.health import Health, Probe, Probes, wrong_device
from broker.streaming.peers import Peers
from broker.streaming.service import Control, Service, Traced
from broker.streaming.serving import Serving
from broker.streaming.topics import TopicAdmin
from broker.surveys import Decoder
from broker.topic_names import dead_letter_topic, is_pattern

if TYPE_CHECKING:
    from broker.build import AnyEngine

log = logging.getLogger(__name__)


@contextmanager
def worker(
    settings: Settings,
    on_batch: Callable[[BatchResult], None] | None = None,
    control: Control | None = None,
) -> Iterator[Service]:
    """A service with its store and engine, which are closed at the end.

    Without ``control`` nobody looks at its health. Raises ConfigurationError where the model cannot be used; servers
    that are unavailable are waited for when the service runs.
    """
    publisher, decoder = build_publisher(settings), build_decoder(settings)
    named = (topic for topic in settings.kafka.input_topics if not is_pattern(topic))
    metrics.initialise(publisher.topics.surveys, named)
    versions: list[str] = []
    candidates: list[Candidate | None] = [None]
    drift = build_drift(settings)
    progress = control.health.progress if control is not None else lambda: None

    def pipeline(engine: AnyEngine, reference: ReferenceSet, keeper: Keeper | None) -> Pipeline:
        counter = None if drift is None else drift.counter(reference)
        made = build_pipeline(
            settings, decoder, store, engine, reference, progress, keeper, candidates[0], learned, counter
        )
        # Not before: where a version is refused, that in use keeps its own correction, and is watched for drift.
        if drift is not None and counter is not None:
            drift.watch(counter)
        learned.follow(engine.model_version, reference.version)
        return made

    def on_model(name: str) -> None:
        versions[:] = [name]

    def note(text: str | None) -> None:
        if control is not None:
            control.health.note("promotion", text)

    with (
        closing(build_store(settings)) as store,
        closing(Learned(RedisConnection(settings.redis.address()))) as learned,
        closing(Serving(settings, pipeline, on_model, note)) as serving,
        ExitStack() as stack,
    ):
        if drift is not None:
            stack.enter_context(closing(drift))
            drift.start()
        traced = _tracing(settings, stack)
        if settings.candidate.version is not None:
            load = partial(_load_candidate, settings, decoder, store, serving)
            candidate = Candidate(load, settings.candidate.share, publish=settings.candidate.publish)
            candidates[0] = stack.enter_context(closing(candidate))

        def prepare() -> Process:
            # Before the group assigns partitions: a worker that cannot work should not hold any.
            store.check()
            publisher.prepare()
            return serving.prepare()

        def about_dead_letters(client: AdminClient) -> None:
            client.list_topics(dead_letter_topic(settings.publish.topic_prefix), timeout=clients.CALL_TIMEOUT)

        probes: dict[str, Probe] = {
            "redis": store.check,
            settings.inference.engine: serving.check,
            "kafka": clients.probe(settings.kafka, about_dead_letters),
            "topics": _topics_probe(settings.kafka),
            "device": lambda: wrong_device(settings.inference.device, serving.device()),
        }
        if control is None:
            yield Service(
                settings.kafka, settings.pipeline, prepare, publisher, Control(Health(settings.metrics)), on_batch
            )
            return
        peers = Peers(
            settings.redis.address(),
            settings.kafka.group_id,
            settings.kafka.worker_id,
            lambda: versions[0] if versions else None,
            lambda text: control.health.note("models", text),
            settings.metrics.mixed_models_limit_s,
        )
        probes["models"] = peers.probe
        with closing(peers), Probes(control.health, settings.metrics.probe_interval_s, probes):
            yield Service(settings.kafka, settings.pipeline, prepare, publisher, control, on_batch, traced)


def _load_candidate(settings: Settings, decoder: Decoder, store: Store, serving: Serving) -> Loaded:
    """The candidate's engine and pipeline; raises what these do where they cannot be had."""
    version, publish = settings.candidate.version, settings.candidate.publish
    # Not again what failed: the served version has answered. What is published has combined anomaly scores, too.
    engine = build_engine(settings.inference, settings.triton, version, retries=0, by_modality=publish)
    try:
        serving.leases.hold("candidate", engine.model_version)
        engine.check()
        reference = reference_set_in_redis(settings, version)
        return Loaded(engine, build_pipeline(settings, decoder, store, engine, reference).annotate_inputs)
    except BaseException:
        engine.close()
        raise


def _tracing(settings: Settings, stack: ExitStack) -> Traced | None:
    """What makes spans of batches, closed with ``stack``; None where tracing is off."""
    if settings.tracing.endpoint is None:
        return None
    try:
        from broker import tracing
    except ImportError as error:
        needed = "tracing.endpoint needs the extra otel: pip install 'trifid[otel]'"
        raise ConfigurationError(f"{needed} ({error})") from error
    spans = tracing.start(settings.tracing, settings.kafka.group_id, settings.kafka.worker_id)
    return stack.enter_context(closing(spans)).batch


def _topics_probe(settings: KafkaSettings) -> Probe:
    """Whether all that is to be read exists: of what does not, Kafka only says nothing."""
    topics = TopicAdmin(settings)
    names = [*settings.input_topics, *([settings.spectra_topic] if settings.spectra_topic else [])]

    def probe() -> str | None:
        missing = topics.missing(names)
        if not missing:
            return None
        return (
            f"{', '.join(missing)}: no such topic. Create it, or correct kafka.input_topics or kafka.spectra_topic, or "
            "set kafka.create_input_topics"
        )

    return probe
