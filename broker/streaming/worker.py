"""A worker of the service, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from broker.batch import BatchResult
from broker.build import build_decoder, build_engine, build_publisher, build_store, reference_set_in_redis
from broker.config import Settings
from broker.errors import DependencyUnavailableError
from broker.pipeline import Pipeline
from broker.streaming.service import Process, Service


@contextmanager
def worker(settings: Settings, on_batch: Callable[[BatchResult], None] | None = None) -> Iterator[Service]:
    """A service with its store and engine, which are closed at the end.

    Raises ConfigurationError where the model cannot be used; servers that are away are waited for when the
    service runs.
    """
    publisher, decoder = build_publisher(settings), build_decoder(settings)
    with (
        closing(build_engine(settings.inference, settings.triton)) as engine,
        closing(build_store(settings)) as store,
    ):

        def prepare() -> Process:
            # Before the group hands out partitions: a worker that cannot work should not hold any.
            if not store.ready():
                raise DependencyUnavailableError("Redis does not answer")
            if not engine.ready():
                raise DependencyUnavailableError("Triton is not ready")
            reference = reference_set_in_redis(settings)
            return Pipeline(decoder, store, engine, engine.manifest, reference).process

        yield Service(settings.kafka, settings.pipeline, prepare, publisher, on_batch)
