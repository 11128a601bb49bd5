"""The HTTP API: annotations a second into the index, and answers at a steady rate over an index of many objects.

The server is a process of its own, with a real Redis that holds one object of 1,000 points. Requests are sent by the
clock, whatever the answers do, so that a slow one delays none of the others' times.

With ``--stream`` a worker of ``trifid run`` classifies so many simulated alerts a second meanwhile, from a real Kafka
and with the same Redis, and the server reads its annotations into the index; the end says how many came.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from confluent_kafka import Producer

from benchmarks.workload.service import PREFIX, WorkerProcess, configuration
from broker.build import build_store
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.records import Alert, LightCurve, Neighbour
from broker.surveys.simulator import simulate_alerts
from broker.taxonomy import CLASS_NAMES
from broker.times import mjd_now
from broker.web.app import parts_of, server
from broker.web.index import Index
from deploy.local.kafka_server import KafkaServer

POINTS, BATCH = 1000, 500
ROOT = Path(__file__).resolve().parents[1]
INPUT = "alerts-ztf"
VISITS = 40
CPU, INDEXED = "process_cpu_seconds_total", "trifid_web_indexed_total"
_STREAMED = 8
"""Times ``--seconds`` that the stream is long: the start of the server, three kinds of requests, pauses."""


def annotations(count: int, objects: int, rng: np.random.Generator) -> list[PublishedAnnotation]:
    """Of objects all over the sky, each with all ten classes and five neighbours."""
    ra, sin_dec = rng.uniform(0, 360, objects), rng.uniform(-1, 1, objects)
    now = mjd_now()
    made = []
    for n in range(count):
        number = n % objects
        share = rng.dirichlet(np.full(len(CLASS_NAMES), 0.3)).tolist()
        made.append(
            PublishedAnnotation(
                survey="ztf", alert_id=n, source_id=n, object_id=f"ZTF18{number:07d}", ra=float(ra[number]),
                dec=math.degrees(math.asin(sin_dec[number])), mjd=61000.0 + n / 1e4, class_names=CLASS_NAMES,
                probabilities=tuple(share), modalities=("light_curve", "metadata"), detections=30, period=0.5,
                parents={"RRLyrae": share[3] + share[6]}, anomaly_score=float(rng.random()), anomaly_distance=0.5,
                neighbours=(Neighbour("css:3031101071811", "SR", 0.5),) * 5, publish_mjd=now,
                class_ids=tuple(range(10)), elasticc_ids=(None,) * 10,
            )
        )  # fmt: skip
    return made


def long_curve(points: int, rng: np.random.Generator) -> Alert:
    """An alert of the first object with so many points in two bands."""
    mjd = np.sort(rng.uniform(58000, 61000, points))
    flux = (3e5 * (1 + 0.3 * np.sin(mjd / 0.08))).astype(np.float32)
    curve = LightCurve(
        mjd, flux, np.full(points, 3e3, np.float32), np.zeros(points, np.float32),
        (np.arange(points) % 2).astype(np.uint8), np.zeros(points, np.uint8),
    )  # fmt: skip
    return Alert("ztf", 1, 1, "ZTF180000000", 10.0, 20.0, float(mjd[-1]), "ztf:g", curve, "")


@contextmanager
def stream(folder: Path, redis: str, rate: float, seconds: float) -> Iterator[str]:
    """Kafka's address, while a worker classifies ``rate`` alerts a second, enough of them for ``seconds``."""
    alerts = [a.payload for a in simulate_alerts(max(1, round(1.2 * rate * seconds / VISITS)), VISITS)]
    with KafkaServer() as kafka:
        kafka.create_topics([INPUT])
        config = configuration(
            bootstrap=kafka.bootstrap, topic=INPUT, redis=redis, partitions=4, batch_size=256, threads=1,
            delivery="exactly-once", triton=None, model_repository=ROOT / "model_repo",
        )  # fmt: skip
        worker = WorkerProcess(folder, "worker", config)
        over = threading.Event()

        def feed() -> None:
            producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
            start = time.monotonic()
            for number, alert in enumerate(alerts):
                if over.wait(max(0.0, start + number / rate - time.monotonic())):
                    break
                producer.produce(INPUT, alert)
                producer.poll(0)
            producer.flush(10)

        feeding = threading.Thread(target=feed)
        try:
            worker.wait_until_ready()
            feeding.start()
            yield kafka.bootstrap
            worker.check()
        finally:
            over.set()
            if feeding.ident is not None:
                feeding.join()
            worker.kill()


def serve(settings: Settings, follow: bool) -> None:
    """The server's process."""
    with (
        closing(Index(settings.web.database.get_secret_value())) as index,
        parts_of(settings, index, follow=follow) as parts,
    ):
        server(parts).run()


def measured(base: str, name: str) -> float:
    """One of the metrics of the server's process."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def timed(url: Callable[[int], str], rate: float, seconds: float) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum (ms) of the time from when each request was due to its whole answer."""

    def ask(number: int, due: float) -> float:
        time.sleep(max(0.0, due - time.perf_counter()))
        with urllib.request.urlopen(url(number), timeout=30) as answer:
            json.load(answer)
        return (time.perf_counter() - due) * 1000

    with ThreadPoolExecutor(32) as threads:
        start = time.perf_counter() + 0.2
        taken = list(threads.map(lambda n: ask(n, start + n / rate), range(int(rate * seconds))))
    return float(np.median(taken)), float(np.percentile(taken, 99)), max(taken)


def main() -> None:
    """Print the rate of the index, and a line for each kind of request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--stream", type=float, default=0.0, help="alerts a second that are classified meanwhile")
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    with RedisServer() as redis, TemporaryDirectory() as folder, ExitStack() as stack:
        web = {"database": f"sqlite:///{Path(folder) / 'web.sqlite'}", "port": free_port()}
        chosen = {"redis": {"url": redis.url}, "web": web | {"requests_per_minute": 10**6}}
        settings = Settings.model_validate(chosen)
        stars = annotations(2 * given.objects, given.objects, rng)
        with closing(Index(web["database"])) as index:
            begun = time.perf_counter()
            for first in range(0, len(stars), BATCH):
                index.add(stars[first : first + BATCH])
            rate = len(stars) / (time.perf_counter() - begun)
            # The object that is looked at has a history, too.
            index.add([replace(stars[0], alert_id=10**9 + n, mjd=61100.0 + n) for n in range(60)])
        print(f"{len(stars):,} annotations of {given.objects:,} objects into the index: {rate:,.0f} a second")
        with closing(build_store(settings)) as store:
            store.update([long_curve(POINTS, rng)])
        if given.stream:
            bootstrap = stack.enter_context(stream(Path(folder), redis.url, given.stream, _STREAMED * given.seconds))
            chosen |= {"kafka": {"bootstrap_servers": bootstrap}, "publish": {"topic_prefix": PREFIX}}
            settings = Settings.model_validate(chosen)
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(settings, bool(given.stream)))
        process.start()
        base = f"http://127.0.0.1:{web['port']}"
        while True:
            try:
                urllib.request.urlopen(base + "/healthz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        api = f"{base}/api/v1/objects"
        kinds: dict[str, Callable[[int], str]] = {
            f"object of {POINTS:,} points, 60 annotations": lambda n: f"{api}/ztf/ZTF180000000",
            "class, probability above 0.9": lambda n: f"{api}?class={CLASS_NAMES[n % 10]}&min_probability=0.9",
            "cone of 10 arcmin": lambda n: f"{api}?ra={stars[n].ra}&dec={stars[n].dec}&radius=600",
        }
        if given.stream:
            time.sleep(given.seconds)  # until annotations come as alerts do
        had, began = measured(base, INDEXED), time.monotonic()
        for name, url in kinds.items():
            timed(url, 10, 1)
            before = measured(base, CPU)
            median, p99, most = timed(url, given.rate, given.seconds)
            core = (measured(base, CPU) - before) / (given.rate * given.seconds) * 1000
            times = f"median {median:.1f} ms, 99 % {p99:.1f} ms, most {most:.1f} ms"
            print(f"{name}, {given.rate:g} a second: {times}; {core:.1f} core-ms each")
        if given.stream:
            came = (measured(base, INDEXED) - had) / (time.monotonic() - began)
            print(f"meanwhile {came:.0f} annotations a second came from {given.stream:g} alerts a second")
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
