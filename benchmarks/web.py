"""The HTTP API: annotations a second into the index, and answers at a steady rate over an index of many objects.

The server is a process of its own, with a real Redis that holds one object of 1,000 points. Requests are sent by the
clock, whatever the answers do, so that a slow one delays none of the others' times.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from broker.build import build_store
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.records import Alert, LightCurve, Neighbour
from broker.taxonomy import CLASS_NAMES
from broker.times import mjd_now
from broker.web.app import parts_of, server
from broker.web.index import Index

POINTS, BATCH = 1000, 500


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


def serve(settings: Settings) -> None:
    """The server's process."""
    with (
        closing(Index(settings.web.database.get_secret_value())) as index,
        parts_of(settings, index, follow=False) as parts,
    ):
        server(parts).run()


def cpu_seconds(base: str) -> float:
    """CPU time that the server's process has taken so far, by its own metrics."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("process_cpu_seconds_total")).split()[1])


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
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    with RedisServer() as redis, TemporaryDirectory() as folder:
        web = {"database": f"sqlite:///{Path(folder) / 'web.sqlite'}", "port": free_port()}
        settings = Settings.model_validate({"redis": {"url": redis.url}, "web": web | {"requests_per_minute": 10**6}})
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
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(settings,))
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
        for name, url in kinds.items():
            timed(url, 10, 1)
            before = cpu_seconds(base)
            median, p99, most = timed(url, given.rate, given.seconds)
            core = (cpu_seconds(base) - before) / (given.rate * given.seconds) * 1000
            times = f"median {median:.1f} ms, 99 % {p99:.1f} ms, most {most:.1f} ms"
            print(f"{name}, {given.rate:g} a second: {times}; {core:.1f} core-ms each")
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
