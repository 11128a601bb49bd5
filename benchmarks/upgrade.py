"""A rolling upgrade under load: each of two workers is stopped and started again while alerts arrive at a fixed rate.

    PYTHONPATH=. python benchmarks/upgrade.py                     # 300 alerts a second; about two minutes
    PYTHONPATH=. python benchmarks/upgrade.py --rate 100 --static

As Kubernetes does it with the chart's StatefulSet: SIGTERM to the worker of the highest number, a new process with the
same ``kafka.worker_id`` after ``--away`` seconds, and the next worker when ``/readyz`` of the last says yes. Kafka,
Redis, packets and stars are those of ``benchmarks/stream.py``. A subscriber reads with ``read_committed``; latency is
from when an alert was due to when its annotation was read. Fails where an alert is lost or comes twice, or a worker
does not end with its accounting reconciled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.stream import deliver_on_time
from benchmarks.workload import measures
from benchmarks.workload.bench import WARM, Bench, Options
from benchmarks.workload.packets import mix_of, templates
from benchmarks.workload.service import ANNOTATIONS, DEAD_LETTERS, Subscriber, wait_for
from benchmarks.workload.stars import Sky, Stream, preload_with_progress, read_curves
from broker.config import MODEL_REPOSITORY, PipelineSettings
from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import KafkaServer, find_kafka_home

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_BEFORE_S = 10.0
"""Alerts at the rate before the first worker is told to stop."""
_PART_S = 5.0
"""Alerts that are sent before one looks whether the workers are exchanged."""
_BAR_S = 10.0
console = Console(stderr=True)


def upgrade(bench: Bench, away_s: float, kafka_settings: dict[str, Any]) -> dict[str, Any]:
    """Exchange each worker while alerts arrive; what the subscriber saw. Raises AssertionError where one is missing."""
    options = bench.options
    topic = bench.topic("alerts.upgrade")
    subscriber = Subscriber(bench.kafka.bootstrap, options.partitions)
    with bench.start_workers(topic, kafka_settings) as workers:
        workers.wait_until_ready()
        for kind in bench.stream.kinds(options.mix, WARM):
            bench.send(topic, kind, time.time())
        bench.flush()
        wait_for(subscriber, workers, WARM, options.quiet_s)
        times: list[tuple[float, float]] = []
        failure: list[BaseException] = []

        def exchange() -> None:
            try:
                time.sleep(_BEFORE_S)
                times.extend(workers.upgrade(away_s))
            except BaseException as error:
                failure.append(error)

        begin = time.time() + 1.0
        parts: list[NDArray[np.float64]] = []
        late = 0.0
        most = round(options.rate * 60 * options.minutes)
        thread = threading.Thread(target=exchange)
        busy, own, start = measures.busy_seconds(), measures.tree_seconds(os.getpid()), time.monotonic()
        with console.status(f"{options.rate:g} alerts a second, workers exchanged one after the other"):
            thread.start()
            at_work = True
            while at_work and sum(map(len, parts)) < most:
                at_work = thread.is_alive()  # one part more after the last worker is ready
                first = sum(map(len, parts))
                parts.append(begin + np.arange(first, first + round(_PART_S * options.rate)) / options.rate)
                late = max(late, deliver_on_time(bench, topic, options.mix, parts[-1]))
            thread.join()
            if failure:
                raise failure[0]
            due = np.concatenate(parts)
            count = len(due)
            wait_for(subscriber, workers, WARM + count, options.quiet_s)
            time.sleep(2.0)  # for what must not come
        others = measures.busy_seconds() - busy - (measures.tree_seconds(os.getpid()) - own)
        cores = max(0.0, others) / (time.monotonic() - start)
        workers.stop()
    subscriber.close()
    numbers, read, _ = subscriber.annotations()
    came, copies = np.unique(numbers, return_counts=True)
    lost = WARM + count - len(came) - subscriber.dead_letters
    doubled = int((copies - 1).sum())
    mine = numbers >= WARM
    seconds = read[mine] - np.round(due[numbers[mine] - WARM], 3)
    if times[-1][1] > due[-1]:
        raise AssertionError("the alerts ended before the last worker was ready: give more --most-minutes")
    if lost or doubled or (len(came) and came[-1] >= WARM + count):
        raise AssertionError(f"{lost} alerts lost, {doubled} doubled")
    return {
        "rate": options.rate, "alerts": count, "lost": lost, "doubled": doubled,
        "dead_letters": subscriber.dead_letters,
        "away_s": [round(end - began, 2) for began, end in times], "producer_late_s": late, "cores_of_others": cores,
        "latency_s": measures.latencies(seconds),
    }  # fmt: skip


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n") if __doc__ else None)
@click.option("--rate", default=300.0, show_default=True, help="Alerts a second.")
@click.option("--most-minutes", "minutes", default=5.0, show_default=True, help="How long they arrive at most; else "
              "until the last worker has been exchanged.")  # fmt: skip
@click.option("--workers", default=2, show_default=True)
@click.option("--partitions", default=4, show_default=True)
@click.option("--objects", default=10_000, show_default=True, help="Stars in Redis.")
@click.option("--away", default=1.0, show_default=True, help="Seconds from a worker's end to the start of the next.")
@click.option("--static/--dynamic", "static", default=None, help="kafka.static_membership; the service's default where "
              "not given.")  # fmt: skip
@click.option("--quiet-s", default=120.0, show_default=True, help="Give up where no annotation comes for so long.")
@click.option("--logs", is_flag=True, help="Print the workers' logs.")
def main(away: float, static: bool | None, logs: bool, **given: Any) -> None:
    if find_kafka_home() is None:
        print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): nothing to measure", file=sys.stderr)
        return
    try:
        packets = templates(_SHARED / "alerts" / "ztf")
        options = Options(
            mix=mix_of([packet.kind for packet in packets]), min_points=100, max_points=1000, alerts=0, bursts=(),
            every=0.0, similar=False, runs=("open",), batch_size=256, threads=1, delivery="exactly-once", cold=False,
            engine="onnx", model_repository=MODEL_REPOSITORY, seed=0, **given,
        )  # fmt: skip
        reserve = -(-options.repeats() // options.objects) + 1
        curves = read_curves(_SHARED / "data", options.min_points + reserve)
        sky = Sky(curves, options.objects, options.min_points, options.max_points, reserve, options.seed)
    except FileNotFoundError as error:
        print(f"{error}: nothing to measure", file=sys.stderr)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trifid-upgrade-")))
        redis = stack.enter_context(RedisServer())
        preload_with_progress(sky, redis.url, 1, PipelineSettings().period_search_growth)
        kafka = stack.enter_context(KafkaServer(heap="512m"))
        kafka.create_topics([ANNOTATIONS, DEAD_LETTERS], partitions=options.partitions)
        bench = Bench(options, kafka, redis, None, Stream(sky, packets, options.seed), folder)
        load = os.getloadavg()[0]
        settings = {} if static is None else {"static_membership": static}
        try:
            result = upgrade(bench, away, settings)
        finally:
            if logs:
                for log in sorted(folder.glob("*.log")):
                    print(f"== {log.name}\n{log.read_text()}", file=sys.stderr)
    result |= {**settings, "load": [round(load, 1), round(os.getloadavg()[0], 1)], "cores": os.cpu_count()}
    print(json.dumps(result, indent=1))
    p99 = result["latency_s"]["p99"]
    print(f"bar: 0 lost, 0 doubled, p99 below {_BAR_S:g} s at 300/s: {'met' if p99 < _BAR_S else 'not met'} at "
          f"{options.rate:g}/s with {p99:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
