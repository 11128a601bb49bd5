"""The pipeline in this process with real Redis, every alert one of a known star: CPU time by stage."""

from __future__ import annotations

import cProfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from prometheus_client import Counter

from benchmarks.workload.packets import Kind, Template
from benchmarks.workload.stars import Curves, Sky, Stream, preload_plain, preload_with_progress
from broker.batch import IncomingMessage
from broker.build import build_publisher, load_reference_set
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.metrics import PERIOD_SEARCHES, STAGE_CPU_SECONDS
from broker.pipeline import Pipeline
from broker.state.redis import RedisStore
from broker.streaming.handling import handle
from broker.surveys import Decoder
from broker.times import mjd_now

GROWTH = 0.2
"""As `pipeline.period_search_growth`: how far the stars are from their next full search (``stars.preload``)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What alerts of known stars cost."""

    stages: dict[str, float]
    """Core-ms an alert of each stage, of this thread."""
    total: float
    """Core-ms an alert of all, with what is between stages."""
    alerts_a_second: float
    """By the clock, of this one process."""
    searches: dict[str, float]
    """Of each reason for a period search, how many of the alerts had it; all but ``refined`` are full searches."""
    redis_bytes: float
    """Memory of Redis a star before the alerts, what Redis needs when empty left out."""
    curve_bytes: list[int]
    """Of stored light curves, one for each alert."""
    payload_bytes: list[bytes]
    """The messages."""
    published_bytes: int
    """Of all annotations."""


def follow(
    curves: Curves,
    packets: Sequence[Template],
    *,
    points: int,
    alerts: int,
    batch: int,
    warm_up: int,
    stars: int | None = None,
    processes: int = 1,
    profiler: cProfile.Profile | None = None,
) -> Cost:
    """Preload ``stars`` (one for each alert unless given) of ``points`` points, then send ``alerts`` of them.

    Where there are more stars than alerts, alerts are of any of them, and no other star has its period searched.
    ``warm_up`` alerts come before that and are not counted. Raises AssertionError where an alert was not annotated.
    """
    count = alerts + warm_up
    sky = Sky(curves, stars or count, points, points, 2, 0)
    stream = Stream(sky, packets, 0)
    payloads = [bytes(stream.next(Kind.REPEAT)) for _ in range(count)]
    settings = Settings()
    publisher, reference = build_publisher(settings), load_reference_set(settings)
    engine = OnnxEngine(settings.inference.model_repository, threads=1)
    with RedisServer() as server, server.client() as client:
        empty = int(client.info("memory")["used_memory"])
        if len(sky) > count:
            preload_plain(sky, server.url, processes, stream.first(count))
        preload_with_progress(sky, server.url, processes, GROWTH, only=stream.first(count))
        redis_bytes = (int(client.info("memory")["used_memory"]) - empty) / len(sky)
        with closing(RedisStore(server.url, timeout=60)) as store:
            pipeline = Pipeline(Decoder(), store, engine, engine.manifest, reference, batch_size=max(batch, warm_up))
            messages = [IncomingMessage(payload, mjd_now()) for payload in payloads]
            handle(pipeline.process_next, publisher, messages[:warm_up])
            before, searched = by_label(STAGE_CPU_SECONDS, "stage"), by_label(PERIOD_SEARCHES, "reason")
            start, began = time.thread_time(), time.monotonic()
            published = done = 0
            if profiler is not None:
                profiler.enable()
            for first in range(warm_up, count, batch):
                result, outgoing = handle(pipeline.process_next, publisher, messages[first : first + batch])
                published += sum(len(message.value) for message in outgoing)
                done += len(result.annotations)
            if profiler is not None:
                profiler.disable()
            total, seconds = time.thread_time() - start, time.monotonic() - began
        assert done == alerts, f"{done} of {alerts} alerts were annotated"
        some = islice(client.scan_iter("trifid:*:lc", count=1000), count)
        sizes = [client.strlen(key) for key in some]
    after, reasons = by_label(STAGE_CPU_SECONDS, "stage"), by_label(PERIOD_SEARCHES, "reason")
    return Cost(
        {name: 1e3 * (after[name] - before.get(name, 0.0)) / alerts for name in after},
        1e3 * total / alerts,
        alerts / seconds,
        {reason: number - searched.get(reason, 0.0) for reason, number in reasons.items()},
        redis_bytes,
        sizes,
        payloads,
        published,
    )


def by_label(counter: Counter, label: str) -> dict[str, float]:
    """The values of a counter by one of its labels."""
    samples = [sample for metric in counter.collect() for sample in metric.samples]
    return {s.labels[label]: s.value for s in samples if s.name.endswith("_total")}
