"""Trifid under a survey's stream: closed runs, then an open run at a survey's rate and in its bursts.

    PYTHONPATH=. python benchmarks/stream.py                       # as Rubin sends, about half an hour on two cores
    PYTHONPATH=. python benchmarks/stream.py --objects 2000 --alerts 2000 --minutes 0.5 --bursts 500,1000

All is real but the telescope: Kafka and Redis as processes of this machine, ``trifid run`` as a user starts it, ZTF's
packets with their cutouts, and light curves of ASAS and Catalina.

**State**: before any clock starts, ``--objects`` stars with ``--min-points`` to ``--max-points`` real points each are
in Redis, written by the service's own pipeline, as if it had followed them. Where there are more objects than curves,
curves are used again, at other positions. The points are given to g and r in turn, since ZTF's objects have two bands.

**Alerts** are the 1,091 packets of ``../shared/alerts/ztf`` with another object's name, place and number. Which are new
objects, which repeat and which move is what these packets themselves say of their objects (``candidate.ndethist``,
``ssdistnr``), so that ``--mix packets`` is the mix in which ZTF sent them. A packet that repeats carries the next real
point of one of the preloaded stars, with as many earlier points of the same star as it had, and goes round all stars
in random order.

**Closed runs**, as BOOM's: the topic is filled first; the clock runs from the earliest ``brokerIngestTimestamp``, which
a worker sets on its first batch, to the last annotation read with ``read_committed``. One with the mix, one in which
every alert is of a known star.

**Open run**: alerts arrive at ``--rate`` for ``--minutes``, then in ``--bursts``, one every ``--every`` seconds whether
or not the one before is done. Latency is from the message's timestamp, which is when the alert was due, to when the
subscriber had its annotation.

In each run alerts in = classified + NotClassified + dead letters, by the workers' metrics and by what was read, each
alert once (with ``--delivery at-least-once`` at least once); otherwise the benchmark fails. Core-ms are CPU time of the
worker processes alone (/proc), from their first batch on. Kafka, Redis, the producer and the subscriber share the
machine; what any other process took is in the report, and where that is more than a few percent, only core-ms and bytes
are worth comparing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.workload import measures, report
from benchmarks.workload.bench import WARM, Bench, Options
from benchmarks.workload.packets import Kind, mix_of, templates
from benchmarks.workload.service import (
    ANNOTATIONS,
    DEAD_LETTERS,
    Subscriber,
    Workers,
    wait_for,
)
from benchmarks.workload.stars import Sky, Stream, preload_with_progress, read_curves
from broker.config import MODEL_REPOSITORY, PipelineSettings
from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import KafkaServer, find_kafka_home
from deploy.local.triton_server import TritonServer

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_KAFKA = {
    # The disk holds the latest part of each topic only; a burst of 40,000 has 0.7 GB in each of four partitions.
    "log.retention.bytes": "4000000000",
    "log.segment.bytes": "268435456",
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
}
_GROWTH = PipelineSettings().period_search_growth
"""By which a light curve grows before its period is searched anew."""
_COUNTED_S = 20.0
console = Console(stderr=True)


def closed(bench: Bench, name: str, mix: Mapping[Kind, float]) -> dict[str, Any]:
    """A topic that is full, until its last annotation was read."""
    topic, count, first = bench.topic(f"alerts.{name}"), bench.options.alerts, len(bench.stream.sent)
    size = 0
    with console.status(f"{name}: filling the topic with {count} alerts"):
        for kind in bench.stream.kinds(mix, count):
            size += bench.send(topic, kind, time.time())
        bench.flush()
    watch = Watch(bench)
    subscriber = Subscriber(bench.kafka.bootstrap, bench.options.partitions)
    with bench.start_workers(topic) as workers, console.status(f"{name}: {count} alerts from a full topic"):
        started = workers.cpu_of_start()
        wait_for(subscriber, workers, count, bench.options.quiet_s)
        figures = watch.figures(workers, {}, started, count)
        workers.stop()
    subscriber.close()
    numbers, read, taken = subscriber.annotations()
    counts = measures.Counts(**figures["counts"])
    counts.check(count, numbers - first, subscriber.dead_letters, exactly_once=bench.exactly_once)
    wall = read.max() - taken.min()
    bench.drop(topic)
    return {
        "run": name, "alerts": count, "bytes_a_packet": round(size / count), "seconds": wall,
        "alerts_a_second": count / wall, "mix": shares(bench.stream.sent[first:]), **per_alert(figures, count),
    }  # fmt: skip


def open_run(bench: Bench, mix: Mapping[Kind, float]) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Alerts that arrive when they are due; also returns (2, n) when each was due, from the start, and its latency."""
    options = bench.options
    topic = bench.topic("alerts.open")
    subscriber = Subscriber(bench.kafka.bootstrap, options.partitions)
    with bench.start_workers(topic) as workers:
        workers.wait_until_ready()
        first = len(bench.stream.sent)
        for kind in bench.stream.kinds(mix, WARM):
            bench.send(topic, kind, time.time())
        bench.flush()
        wait_for(subscriber, workers, WARM, options.quiet_s)
        Watch(bench).figures(workers, {}, 0.0, WARM)  # until all of these are counted
        dead_before = subscriber.dead_letters
        watch = Watch(bench)
        before, cpu = workers.metrics(), workers.cpu_seconds()
        steady = round(options.rate * 60 * options.minutes)
        parts: list[tuple[str, NDArray[np.float64]]] = []
        begin = time.time() + 1.0
        late = 0.0
        if steady:
            due = begin + np.arange(steady) / options.rate
            with console.status(f"open: {options.rate:g} alerts a second for {options.minutes:g} minutes"):
                late = deliver_on_time(bench, topic, mix, due)
                wait_for(subscriber, workers, WARM + steady, options.quiet_s)
            parts.append((f"{options.rate:g}/s for {options.minutes:g} min", due))
        start = time.time() + 1.0
        for number, burst in enumerate(options.bursts):
            due = np.full(burst, start + number * options.every)
            with console.status(f"open: burst {number + 1} of {len(options.bursts)}, {burst} alerts"):
                deliver_on_time(bench, topic, mix, due)
            parts.append((f"burst {number + 1}: {burst}", due))
        total = sum(len(due) for _, due in parts)
        with console.status("open: until the last annotation"):
            wait_for(subscriber, workers, WARM + total, options.quiet_s)
        figures = watch.figures(workers, before, cpu, total)
        workers.stop()
    subscriber.close()
    numbers, read, _ = subscriber.annotations()
    measures.Counts(**figures["counts"]).check(
        total,
        numbers[numbers >= first + WARM] - first - WARM,
        subscriber.dead_letters - dead_before,
        exactly_once=bench.exactly_once,
    )
    came = np.full(total, np.nan)
    mine = numbers >= first + WARM
    came[numbers[mine] - first - WARM] = read[mine]
    due = np.concatenate([due for _, due in parts])
    # The producer sends in whole milliseconds.
    latency = came - np.round(due, 3)
    rows, at = [], 0
    for label, one in parts:
        own = slice(at, at + len(one))
        at += len(one)
        dead = np.isnan(latency[own])
        done = float(np.nanmax(came[own]) - one[0])
        rows.append({"part": label, "alerts": len(one), **measures.latencies(latency[own][~dead]), "done_after": done})
    result = {
        "run": "open", "alerts": total, "mix": shares(bench.stream.sent[first + WARM :]), "producer_late_s": late,
        "latency_s": rows, **per_alert(figures, total),
    }  # fmt: skip
    bench.drop(topic)
    return result, np.stack([due - due[0], latency])


def deliver_on_time(bench: Bench, topic: str, mix: Mapping[Kind, float], due: NDArray[np.float64]) -> float:
    """Send alerts at Unix times; by how much the latest was late, in seconds."""
    late = 0.0
    for kind, at in zip(bench.stream.kinds(mix, len(due)), due.tolist(), strict=True):
        while (left := at - time.time()) > 0:
            time.sleep(left)
        bench.send(topic, kind, at)
        late = max(late, time.time() - at)
    bench.flush()
    return late


class Watch:
    """From its making on, what the workers and all others use."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._start, self._busy, self._own = (
            time.monotonic(),
            measures.busy_seconds(),
            measures.tree_seconds(os.getpid()),
        )
        self._servers = self._server_seconds()

    def _server_seconds(self) -> dict[str, float]:
        """CPU seconds of Kafka, Redis, and this process: producer and subscriber."""
        pids = {"Kafka": self._bench.kafka.pid, "Redis": self._bench.redis.pid, "this benchmark": os.getpid()}
        return {name: measures.cpu_seconds(pid) for name, pid in pids.items() if pid is not None}

    def figures(self, workers: Workers, before: measures.Samples, cpu: float, alerts: int) -> dict[str, Any]:
        """What the workers have used beyond ``before`` and ``cpu``, and how busy others kept the machine.

        A batch can be read before the worker has counted it: waits a while until all ``alerts`` are.
        """
        end = time.monotonic() + _COUNTED_S
        while True:
            samples = measures.difference(workers.metrics(), before)
            if measures.Counts.of(samples).alerts_in >= alerts or time.monotonic() > end:
                break
            time.sleep(0.1)
        if not self._bench.exactly_once:
            time.sleep(1.0)  # annotations that came twice were waited for in place of the last ones
        seconds = workers.cpu_seconds() - cpu
        others = measures.busy_seconds() - self._busy - (measures.tree_seconds(os.getpid()) - self._own)
        counts = measures.Counts.of(samples)
        servers = {name: now - self._servers[name] for name, now in self._server_seconds().items()}
        return {
            "counts": {name: getattr(counts, name) for name in counts.__slots__},
            "cpu_seconds": seconds,
            "servers": servers,
            "stages": measures.by_label(samples, "trifid_stage_cpu_seconds_total", "stage"),
            "worker_mib": [round(mib) for mib in workers.memory_mib()],
            "cores_of_others": max(0.0, others) / (time.monotonic() - self._start),
        }


def per_alert(figures: dict[str, Any], alerts: int) -> dict[str, Any]:
    """CPU seconds to core-milliseconds an alert."""
    stages = {name: 1e3 * seconds / alerts for name, seconds in figures.pop("stages").items()}
    servers = {name: 1e3 * seconds / alerts for name, seconds in figures.pop("servers").items()}
    whole = 1e3 * figures.pop("cpu_seconds") / alerts
    return {
        **figures, "core_ms": whole, "core_ms_by_stage": stages, "core_ms_outside": whole - sum(stages.values()),
        "core_ms_of_servers": servers,
    }  # fmt: skip


def shares(kinds: list[Kind]) -> dict[str, float]:
    return {str(kind): round(share, 4) for kind, share in mix_of(kinds).items()}


def read_mix(text: str, packets: Mapping[Kind, float]) -> dict[Kind, float]:
    """``packets``, or three shares of new objects, repeats and moving ones that sum to 1."""
    if text == "packets":
        return dict(packets)
    values = [float(part) for part in text.split(",")]
    if len(values) != len(Kind) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise click.BadParameter("give `packets`, or shares of new, repeat and moving that sum to 1: 0.2,0.6,0.2")
    return dict(zip(Kind, values, strict=True))


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part)
    except ValueError as error:
        raise click.BadParameter("give numbers with commas between them") from error


def _names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(part for part in value.split(",") if part)
    if wrong := set(names) - {"closed", "repeats", "open"}:
        raise click.BadParameter(f"{', '.join(sorted(wrong))}: no such run")
    return names


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n") if __doc__ else None)
@click.option("--objects", default=100_000, show_default=True, type=click.IntRange(1), help="Stars in Redis.")
@click.option("--min-points", default=100, show_default=True, help="Fewest points of a star in Redis.")
@click.option("--max-points", default=1000, show_default=True, help="Most points of a star in Redis.")
@click.option("--alerts", default=20_000, show_default=True, type=click.IntRange(1), help="Alerts of each closed run.")
@click.option("--mix", default="packets", show_default=True, help="`packets`, or shares of new, repeat and moving.")
@click.option("--rate", default=333.0, show_default=True, help="Alerts a second of the open run.")
@click.option("--minutes", default=10.0, show_default=True, help="How long they arrive at that rate.")
@click.option("--bursts", default="10000,10000,40000,10000,10000", show_default=True, callback=_numbers,
              help="Alerts of each burst after that.")  # fmt: skip
@click.option("--every", default=39.0, show_default=True, help="Seconds from one burst to the next.")
@click.option("--runs", default="closed,repeats,open", show_default=True, callback=_names, help="Which runs.")
@click.option("--workers", default=1, show_default=True, help="Worker processes.")
@click.option("--partitions", default=4, show_default=True, help="Of each topic.")
@click.option("--batch-size", default=256, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of ONNX Runtime in each worker; 0 for one a core.")
@click.option("--delivery", default="exactly-once", show_default=True,
              type=click.Choice(["exactly-once", "at-least-once"]))  # fmt: skip
@click.option("--cold", is_flag=True, help="Nothing was found in the stars yet: each one's first alert has its period "
              "searched, as after a migration.")  # fmt: skip
@click.option("--engine", default="onnx", show_default=True, type=click.Choice(["onnx", "triton"]))
@click.option("--similar/--no-similar", default=False, show_default=True, help="Keep embeddings in vector sets "
              "(similar.enabled), those of the stars in Redis from the start.")  # fmt: skip
@click.option("--model-repository", default=MODEL_REPOSITORY, show_default="the checkout's", type=click.Path(
    exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--quiet-s", default=120.0, show_default=True, help="Give up where no annotation comes for so long.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", default=Path("runs/stream-benchmark"), show_default=True, type=click.Path(path_type=Path),
              help="Folder of report.md, report.json and latency.png.")  # fmt: skip
def main(output: Path, mix: str, **given: Any) -> None:
    if find_kafka_home() is None:
        print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): nothing to measure", file=sys.stderr)
        return
    try:
        packets = templates(_SHARED / "alerts" / "ztf")
        options = Options(mix=read_mix(mix, mix_of([packet.kind for packet in packets])), **given)
        reserve = -(-options.repeats() // options.objects) + 1
        curves = read_curves(_SHARED / "data", options.min_points + reserve)
        sky = Sky(curves, options.objects, options.min_points, options.max_points, reserve, options.seed)
    except FileNotFoundError as error:
        print(f"{error}: nothing to measure", file=sys.stderr)
        return
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    stream = Stream(sky, packets, options.seed)
    output.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"machine": measures.machine(), "command": " ".join(sys.argv[1:])}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trifid-stream-")))
        redis = stack.enter_context(RedisServer())
        client = redis.client()
        stack.callback(client.close)
        empty = client.info("memory")["used_memory"]
        start = time.monotonic()
        growth = 0.0 if options.cold else _GROWTH
        preload_with_progress(sky, redis.url, about["machine"]["cores"], growth, options.similar)
        used = client.info("memory")["used_memory"] - empty
        about["state"] = {
            "objects": len(sky), "curves": sky.distinct, "points_mean": float(sky.points.mean()),
            "points_median": float(np.median(sky.points)), "redis_bytes_an_object": used / len(sky),
            "redis_bytes_a_point": used / float(sky.points.sum()), "loaded_in_s": time.monotonic() - start,
            "redis": client.info("server")["redis_version"],
        }  # fmt: skip
        kafka = stack.enter_context(KafkaServer(heap="512m", settings=_KAFKA))
        kafka.create_topics([ANNOTATIONS, DEAD_LETTERS], partitions=options.partitions)
        triton = None
        if options.engine == "triton":
            triton = stack.enter_context(TritonServer(options.model_repository))
        bench = Bench(options, kafka, redis, triton, stream, folder)
        results: list[dict[str, Any]] = []
        series: NDArray[np.float64] | None = None
        for run in options.runs:
            if run == "open":
                result, series = open_run(bench, options.mix)
            else:
                result = closed(bench, run, options.mix if run == "closed" else {Kind.REPEAT: 1.0})
            results.append(result)
            about |= {"options": report.plain(options), "runs": results}
            # After each run: where a later one fails, the earlier ones are not lost.
            (output / "report.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
    if series is not None:
        report.plot(series, output / "latency.png")
    text = report.markdown(about)
    (output / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
