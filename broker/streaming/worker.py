"""A worker of the service, put together from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from broker import metrics
from broker.anomaly.reference_set import ReferenceSet
from broker.batch import BatchResult
from broker.build import (
    build_decoder,
    build_engine,
    build_pipeline,
    build_publisher,
    build_store,
    reference_set_in_redis,
)
from broker.config import KafkaSettings, Settings
from broker.models.candidate import Candidate, Loaded
from broker.pipeline import Pipeline
from broker.similar.keeper import Keeper
from broker.streaming import clients
from broker.streaming.handling import Process
from broker.streaming.health import Health, Probe, Probes, wrong_device
from broker.streaming.peers import Peers
from broker.streaming.service import Control, Service
from broker.streaming.serving import AnyEngine, Serving
from broker.streaming.topics import TopicAdmin
from broker.topic_names import dead_letter_topic, is_pattern

log = logging.getLogger(__name__)

_KEPT_ERRORS: Final = 20


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
    progress = control.health.progress if control is not None else lambda: None

    def pipeline(engine: AnyEngine, reference: ReferenceSet, keeper: Keeper | None) -> Pipeline:
        return build_pipeline(settings, decoder, store, engine, reference, progress, keeper, candidates[0])

    def on_model(name: str) -> None:
        versions[:] = [name]

    def note(text: str | None) -> None:
        if control is not None:
            control.health.note("promotion", text)

    second = settings.candidate

    def load_candidate() -> Loaded:
        # Not again what failed: the served version has answered. What is published has combined anomaly scores, too.
        engine = build_engine(
            settings.inference, settings.triton, second.version, retries=0, by_modality=second.publish
        )
        try:
            engine.check()
            reference = reference_set_in_redis(settings, second.version)
            return Loaded(engine, build_pipeline(settings, decoder, store, engine, reference))
        except BaseException:
            engine.close()
            raise

    with (
        closing(build_store(settings)) as store,
        closing(Serving(settings, pipeline, on_model, note)) as serving,
        ExitStack() as stack,
    ):
        if second.version is not None:
            candidate = Candidate(load_candidate, second.share, publish=second.publish)
            candidates[0] = stack.enter_context(closing(candidate))

        def prepare() -> Process:
            # Before the group assigns partitions: a worker that cannot work should not hold any.
            store.check()
            publisher.prepare()
            return serving.prepare()

        probes: dict[str, Probe] = {
            "redis": store.check,
            settings.inference.engine: serving.check,
            "kafka": _kafka_probe(settings),
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
            yield Service(settings.kafka, settings.pipeline, prepare, publisher, control, on_batch)


def _kafka_probe(settings: Settings) -> Probe:
    """Asks through a client of its own: the consumer's may be closed meanwhile."""
    heard: list[KafkaError] = []
    client = clients.admin(settings.kafka, heard.append)

    def probe() -> str | None:
        try:
            client.list_topics(dead_letter_topic(settings.publish.topic_prefix), timeout=clients.CALL_TIMEOUT)
        except KafkaException as error:
            clients.hear(client)
            # Why there is no connection says more than that there is none.
            why = [e for e in heard if e.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)] or [error.args[0]]
            del heard[:-_KEPT_ERRORS]
            return str(why[-1].str())
        heard.clear()
        return None

    return probe


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
