"""Whether an alert costs more than it did: CPU time of the pipeline as a multiple of a calibration workload's.

    PYTHONPATH=. python benchmarks/regression.py [--store]

Both run in turns in one thread of one process, the same work each time: a batch of alerts of known stars with 400
points, from packets to messages, with the state in a real Redis put back in between, and a fixed mixture of what the
pipeline is made of (Python objects, passes of NumPy over a batch's points, products of matrices). Of each the least CPU
time of all turns counts: other processes add to it, and take nothing off. What is left is the ratio of two amounts of
work, which another processor changes by far less than each of them. ``tests/unit/test_cost_of_an_alert.py`` compares it
with the one in STORED.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.workload.packets import Kind, simulated_template
from benchmarks.workload.stars import Curves, Sky, Stream, write_known
from broker.batch import IncomingMessage
from broker.build import build_publisher, load_reference_set
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.pipeline import Pipeline
from broker.state.redis import RedisStore
from broker.streaming.handling import handle
from broker.surveys import Decoder

STORED: Final = Path(__file__).with_name("regression.json")
ALERTS: Final = 128
POINTS: Final = 400
TURNS: Final = 7
MARGIN: Final = 0.1
MARGIN_ELSEWHERE: Final = 0.3
"""On another processor than the stored ratio's, and on a machine where more than BUSY processes a core want to run:
caches that many share take more from the pipeline than from the calibration."""
BUSY: Final = 3.0


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of the pipeline for an alert, and of the calibration workload."""

    alert: float
    calibration: float

    @property
    def ratio(self) -> float:
        """Of a thousand alerts to one calibration."""
        return 1e3 * self.alert / self.calibration

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f} calibrations for 1,000 alerts ({1e3 * self.alert:.3f} core-ms an alert, "
            f"{1e3 * self.calibration:.1f} core-ms a calibration)"
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A ratio that was measured, and where."""

    ratio: float
    processor: str

    @property
    def margin(self) -> float:
        """How much more is allowed here and now."""
        busy = os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)
        return MARGIN if self.processor == processor() and not busy else MARGIN_ELSEWHERE


def stored() -> Stored:
    """What STORED holds."""
    return Stored(**json.loads(STORED.read_text()))


def processor() -> str:
    """The processor's name, family, model and whether it has AVX-512, which decides how NumPy and ONNX Runtime compute.

    A virtual machine may hide the name's number, but neither family nor model.
    """
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    first = dict(line.partition("\t")[::2] for line in told.partition("\n\n")[0].splitlines())
    name, family, model = (first.get(key, "").strip(" \t:") for key in ("model name", "cpu family", "model"))
    known = f"{name}, family {family}, model {model}" if name else platform.machine()
    return f"{known}{', AVX-512' if 'avx512f' in told else ''}"


def complaint(cost: Cost, before: Stored) -> str | None:
    """What to say where ``cost`` is more than ``before`` by over its margin."""
    if cost.ratio <= (1 + before.margin) * before.ratio:
        return None
    return (
        f"{cost}: {cost.ratio / before.ratio - 1:.0%} more than the stored {before.ratio:.2f}, and {before.margin:.0%} "
        "is allowed. Where the change is worth it: benchmarks/regression.py --repeats 10 --store"
    )


def calibration() -> None:
    """A mixture of Python objects, array passes and matrix products that never changes."""
    rng = np.random.default_rng(0)
    objects = [{"name": f"star {n}", "values": list(range(n % 40)), "mean": n / 7} for n in range(6000)]
    names = {}
    for one in objects:
        names[str(one["name"])] = (len(one), hash(str(one["mean"])), isinstance(one["values"], list))
    sorted(names.items(), key=lambda item: item[1][1] % 97)
    row, value = np.repeat(np.arange(200), 400), rng.normal(size=80_000)
    for _ in range(4):
        order = np.lexsort((value, row))
        ranked = value[order] - np.bincount(row, value, 200)[row] / 400
        np.log(np.where(ranked > 0, ranked, 1.0)).cumsum()
        ranked.reshape(200, 400).sort(axis=1)
    matrix, batch = rng.random((96, 96), np.float32), rng.random((8192, 96), np.float32)
    for _ in range(6):
        batch = np.tanh(batch @ matrix) * np.float32(0.5) + np.float32(0.1)


def synthetic_curves(count: int, seed: int = 0) -> Curves:
    """``count`` variable stars over five years, two points more of each than POINTS, of periods from hours to weeks."""
    rng = np.random.default_rng(seed)
    points = POINTS + 2
    mjd = 59_000.0 + np.sort(rng.integers(0, 1800, (count, points)) + rng.uniform(0.1, 0.4, (count, points)), axis=1)
    mjd += 1e-3 * np.arange(points)
    phase = mjd / (10.0 ** rng.uniform(-0.8, 1.3, (count, 1)))
    wave = np.sin(2 * np.pi * phase) + 0.4 * np.sin(4 * np.pi * phase + rng.uniform(0, 6, (count, 1)))
    flux = 1e6 * (1 + 0.2 * wave + 0.03 * rng.normal(size=(count, points)))
    start = points * np.arange(count + 1)
    return Curves(start.astype(np.intp), mjd.ravel(), flux.ravel(), np.full(count * points, 3e4))


@contextmanager
def workload() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What has the pipeline handle the batch, and what puts the state back as it was before."""
    settings = Settings()
    engine = OnnxEngine(settings.inference.model_repository, threads=1)
    reference = load_reference_set(settings)
    sky = Sky(synthetic_curves(ALERTS), ALERTS, POINTS, POINTS, 2, 0)
    stream = Stream(sky, [simulated_template(10)], 0)
    messages = [IncomingMessage(bytes(stream.next(Kind.REPEAT)), 61_300.0) for _ in range(ALERTS)]
    with (
        closing(engine), RedisServer() as server, closing(RedisStore(server.url, timeout=60)) as store,
        server.client() as client,
    ):  # fmt: skip
        pipeline = Pipeline(Decoder(), store, engine, engine.manifest, reference)
        publisher = build_publisher(settings)
        write_known(sky, range(ALERTS), store, pipeline, settings.pipeline.period_search_growth)
        before: Mapping[Any, Any] = {key: client.dump(key) for key in client.scan_iter(count=1000)}

        def put_back() -> None:
            client.flushall()
            with client.pipeline() as batch:
                for key, value in before.items():
                    batch.restore(key, 0, value)
                batch.execute()

        def run() -> None:
            result, _ = handle(pipeline.process_next, publisher, messages)
            assert len(result.annotations) == ALERTS

        yield run, put_back


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of this thread, without a collection of garbage that happens to be due."""
    gc.collect()
    gc.disable()
    try:
        start = time.thread_time()
        action()
        return time.thread_time() - start
    finally:
        gc.enable()


def measure(run: Callable[[], None], put_back: Callable[[], None], turns: int = TURNS) -> Cost:
    """The least of several turns of both."""
    with threadpool_limits(1):
        run()
        calibration()
        alerts, calibrations = [], []
        for _ in range(turns):
            put_back()
            calibrations.append(cpu_seconds(calibration))
            alerts.append(cpu_seconds(run) / ALERTS)
            calibrations.append(cpu_seconds(calibration))
    return Cost(min(alerts), min(calibrations))


@click.command(help=__doc__)
@click.option("--store", is_flag=True, help="Write the lowest ratio to STORED, where a change is worth it.")
@click.option("--repeats", default=1, show_default=True)
def main(store: bool, repeats: int) -> None:
    with workload() as (run, put_back):
        costs = [measure(run, put_back) for _ in range(repeats)]
    for cost in costs:
        print(cost)
    ratios = np.array([cost.ratio for cost in costs])
    print(f"lowest {ratios.min():.2f}, median {np.median(ratios):.2f}, highest {ratios.max():.2f}")
    if store:
        told = {"ratio": round(float(ratios.min()), 2), "processor": processor()}
        STORED.write_text(json.dumps(told, indent=2) + "\n")
    elif STORED.exists():
        print(f"stored: {stored()}")


if __name__ == "__main__":
    main()
