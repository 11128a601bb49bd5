"""The line of the demo without Kafka: simulated alerts through pipeline and publisher, into Redis and an index."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from broker.batch import IncomingMessage
from broker.build import (
    build_decoder,
    build_engine,
    build_keeper,
    build_pipeline,
    build_publisher,
    build_store,
    load_reference_set,
)
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.publish.annotation import read
from broker.records import ObservedSpectrum, Spectrum
from broker.surveys.simulator import simulate_alerts
from broker.times import mjd_now
from broker.web.app import server
from broker.web.index import Index
from broker.web.services import Services
from tests.random_models import MODEL_REPO


def settings_for(redis_url: str, folder: Path, **web: object) -> Settings:
    """Settings of a server whose index is in ``folder``; ``web`` over its defaults."""
    given = {
        "redis": {"url": redis_url},
        "similar": {"enabled": True},
        "inference": {"engine": "onnx", "model_repository": MODEL_REPO},
        "web": {"database": f"sqlite:///{folder / 'web.sqlite'}", **web},
    }
    return Settings.model_validate(given)


def publish(settings: Settings, objects: int, visits: int, seed: int = 3) -> list[PublishedAnnotation]:
    """What a subscriber reads of so many simulated alerts; one object of them has a spectrum."""
    engine = build_engine(settings.inference, settings.triton)
    publisher = build_publisher(settings)
    with closing(build_store(settings)) as store, closing(engine):
        keeper = build_keeper(settings, engine.model_version)
        assert keeper is not None
        keeper.start()
        reference = load_reference_set(settings)
        pipeline = build_pipeline(settings, build_decoder(settings), store, engine, reference, similar=keeper)
        messages = [IncomingMessage(a.payload, mjd_now()) for a in simulate_alerts(objects, visits, seed)]
        with closing(keeper):
            result = pipeline.process(messages)
            keeper.drain()
        first = result.annotations[0]
        store.put_observed([spectrum_of(first.survey, first.object_id)])
        assert not result.dead_letters
        sent = [m for m in publisher.messages(result) if m.topic.endswith(".all")]
        return [annotation for message in sent for annotation in read(message.value, message.topic)]


def spectrum_of(survey: str, object_id: str) -> ObservedSpectrum:
    """A smooth spectrum with one absorption line, by the name of its object."""
    wavelength = np.arange(3700.0, 9100.0, 2.0)
    flux = 1.0 + 0.2 * np.sin(wavelength / 1500.0) - 0.5 * np.exp(-(((wavelength - 6564.6) / 8.0) ** 2))
    flux32 = flux.astype(np.float32)
    spectrum = Spectrum(wavelength, flux32, np.full_like(flux32, 0.02))
    return ObservedSpectrum("test:1", 0.0, 0.0, float("nan"), spectrum, survey, object_id)


def fill(settings: Settings, annotations: Sequence[PublishedAnnotation]) -> Index:
    """An index with these annotations."""
    index = Index(settings.web.database.get_secret_value())
    index.add(annotations)
    return index


@contextmanager
def serving(parts: Services) -> Iterator[str]:
    """The server of ``trifid web`` in a thread of its own; its address."""
    running = server(parts)
    # A test that fails before it stops the server must not keep pytest from ending.
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{parts.settings.web.port}"
    finally:
        running.should_exit = True
        thread.join()
