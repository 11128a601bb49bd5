"""Alerts a second through the worker's pipeline with several engines, which take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.workload.report import table
from broker.batch import IncomingMessage
from broker.build import load_reference_set
from broker.config import Settings
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine
from broker.pipeline import Pipeline
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.times import mjd_now

EARLIER = 15
"""Alerts of each object before the one that is measured."""


def pipelines(
    engines: Mapping[str, OnnxEngine | TritonEngine], batches: Sequence[int], objects: int, rounds: int
) -> str:
    """A table of alerts a second, from packets to annotations; ratios to the first engine, medians over the rounds.

    Each object's history is in the state before, in memory, with its period search, which its latest alert refines.
    """
    sent = list(simulate_alerts(objects, EARLIER + 1))
    past = [IncomingMessage(one.payload, mjd_now()) for one in sent]
    latest = [IncomingMessage(payload, mjd_now()) for payload in {one.object_id: one.payload for one in sent}.values()]
    reference = load_reference_set(Settings())
    store = MemoryStore()  # one for all: to merge an alert again changes nothing
    first, *_ = engines
    rows: list[list[str]] = []
    for batch in batches:
        made = {
            way: Pipeline(Decoder(), store, engine, engine.manifest, reference, batch_size=batch)
            for way, engine in engines.items()
        }
        if not rows:
            made[first].process(past)
        for pipeline in made.values():
            pipeline.process(latest)
        seconds: dict[str, list[float]] = {way: [] for way in made}
        for number in range(rounds):
            for way in list(made) if number % 2 else list(made)[::-1]:
                start = time.perf_counter()
                for begin in range(0, len(latest), batch):
                    done = made[way].process(latest[begin : begin + batch])
                    assert not done.dead_letters
                seconds[way].append(time.perf_counter() - start)
        rows += [
            [way, str(batch), f"{len(latest) / statistics.median(took):,.0f}",
             *_of([e / w for e, w in zip(seconds[first], took, strict=True)])]
            for way, took in seconds.items()
        ]  # fmt: skip
    return table(["pipeline", "batch", "alerts/s", f"of {first}", "quartiles"], rows)


def _of(ratios: list[float]) -> list[str]:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
