"""The whole way of an alert but Kafka: decode, real Redis, assemble, ONNX Runtime, score, annotate, serialise.

Batches of 256 against batches of one, in one process, and the share of each stage.
"""

from __future__ import annotations

import time
from contextlib import closing

from broker.batch import IncomingMessage
from broker.build import build_engine, build_publisher, load_reference_set
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.metrics import STAGE_SECONDS
from broker.pipeline import Pipeline
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.times import mjd_now

OBJECTS, VISITS = 200, 60


def stage_seconds() -> dict[str, float]:
    samples = [s for metric in STAGE_SECONDS.collect() for s in metric.samples if s.name.endswith("_sum")]
    return {s.labels["stage"]: s.value for s in samples}


def run(payloads: list[bytes], batch: int) -> float:
    """Alerts a second."""
    settings = Settings()
    publisher = build_publisher(settings)
    with (
        RedisServer() as redis,
        closing(RedisStore(redis.url)) as store,
        closing(build_engine(settings.inference, settings.triton)) as engine,
    ):
        pipeline = Pipeline(Decoder(), store, engine, engine.manifest, load_reference_set(settings))
        pipeline.process([IncomingMessage(payloads[0], mjd_now())])
        start = time.perf_counter()
        done = 0
        for first in range(0, len(payloads), batch):
            messages = [IncomingMessage(payload, mjd_now()) for payload in payloads[first : first + batch]]
            result = pipeline.process(messages)
            done += len(result.annotations)
            list(publisher.messages(result))
        assert done == len(payloads)
        return done / (time.perf_counter() - start)


def main() -> None:
    payloads = [a.payload for a in simulate_alerts(OBJECTS, VISITS, seed=0)]
    single = run(payloads[:1000], 1)
    before = stage_seconds()
    batched = run(payloads, 256)
    print(f"{len(payloads)} simulated ZTF alerts of {OBJECTS} objects, up to {VISITS} visits to each")
    print(f"batches of 256: {batched:.0f} alerts/s; of one: {single:.0f} alerts/s; ratio {batched / single:.1f}")
    for stage, value in stage_seconds().items():
        print(f"  {stage}: {1e3 * (value - before[stage]) / len(payloads):.3f} ms an alert")


if __name__ == "__main__":
    main()
