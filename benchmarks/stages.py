"""Core-milliseconds an alert of each stage, with known stars of 400 real points, and the least that each could take.

    PYTHONPATH=. python benchmarks/stages.py [--points 400] [--profile]

The pipeline in this process with real Redis, real ZTF packets and real light curves (as in ``stream.py``), every alert
of a known star, batches of 256. CPU time of this thread only, so that others may use the machine meanwhile; a batch
before the first is left out. The floor of a stage is what it has to move or compute, at what this core does in the same
run: bytes copied by numpy, bytes through Redis by plain MGET and SET in batches, FLOPs by a matrix product.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import redis
from threadpoolctl import threadpool_limits

from benchmarks.workload.flops import model_flops
from benchmarks.workload.known_stars import follow
from benchmarks.workload.packets import Kind, templates
from benchmarks.workload.stars import read_curves
from broker.config import Settings
from broker.embedded.redis import RedisServer

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_BATCH = 256


def cpu(action: Callable[[], object], repeats: int) -> float:
    """CPU seconds of an action, the best of several."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        action()
        best = min(best, time.thread_time() - start)
    return best


def copied_bytes_a_second() -> float:
    source = np.random.default_rng(0).integers(0, 255, 64_000_000, np.uint8)
    target = np.empty_like(source)
    return len(source) / cpu(lambda: np.copyto(target, source), 5)


def flops_a_second() -> float:
    matrix = np.random.default_rng(0).random((512, 512), np.float32)
    with threadpool_limits(1):
        return 2 * 512**3 / cpu(lambda: matrix @ matrix, 20)


def redis_floor(url: str, sizes: list[int]) -> float:
    """CPU seconds of the client to read and write values of these sizes, in batches, an object."""
    with redis.Redis.from_url(url) as client:
        values = {f"floor:{number}": bytes(size) for number, size in enumerate(sizes)}
        keys = list(values)
        client.mset(values)  # type: ignore[arg-type]

        def both() -> None:
            for first in range(0, len(keys), _BATCH):
                some = keys[first : first + _BATCH]
                client.mget(some)
                client.mset({key: values[key] for key in some})

        seconds = cpu(both, 3)
        client.delete(*keys)
    return seconds / len(keys)


@click.command(help=__doc__)
@click.option("--points", default=400, show_default=True, help="Of each star.")
@click.option("--alerts", default=2048, show_default=True)
@click.option("--profile", is_flag=True, help="Functions by their own CPU time, too; the profiler slows all down.")
def main(points: int, alerts: int, profile: bool) -> None:
    try:
        packets = [one for one in templates(_SHARED / "alerts" / "ztf") if one.kind is Kind.REPEAT]
        curves = read_curves(_SHARED / "data", points + 2)
    except FileNotFoundError as error:
        print(f"{error}: nothing to measure", file=sys.stderr)
        return
    profiler = cProfile.Profile(time.thread_time) if profile else None
    cost = follow(curves, packets, points=points, alerts=alerts, batch=_BATCH, warm_up=_BATCH, profiler=profiler)
    sizes, payloads, published = cost.curve_bytes, cost.payload_bytes, cost.published_bytes
    with RedisServer() as server:
        stored = redis_floor(server.url, sizes)
    copied, flops = copied_bytes_a_second(), flops_a_second()
    # What stands before the cutouts, which the decoder steps over.
    read = np.mean([len(payload) - _cutouts(payload) for payload in payloads])
    network = model_flops(Settings().inference.model_repository)
    floors: dict[str, tuple[str, float]] = {
        "decode": (f"{read / 1e3:.1f} kB before the cutouts, copied at {copied / 1e9:.1f} GB/s", read / copied),
        "update_state": (f"{np.mean(sizes) / 1e3:.1f} kB read and written by MGET and SET, in batches", stored),
        "infer": (f"{network / 1e6:.1f} MFLOP at {flops / 1e9:.0f} GFLOP/s", network / flops),
        "publish": (f"{published / alerts / 1e3:.1f} kB made, copied", published / alerts / copied),
    }
    print(f"{alerts} alerts of stars with {points} points, batches of {_BATCH}, one thread\n")
    print("| stage | core-ms an alert | floor, ms | what the floor is |\n|---|---:|---:|---|")
    for name in sorted(cost.stages, key=lambda name: -cost.stages[name]):
        what, floor = floors.get(name, ("", 0.0))
        print(f"| {name} | {cost.stages[name]:.3f} | {f'{1e3 * floor:.4f}' if what else ''} | {what} |")
    print(f"| all, with what is between stages | {cost.total:.3f} | | |")
    shares = ", ".join(f"{reason} {number / alerts:.1%}" for reason, number in sorted(cost.searches.items()))
    print(f"\nperiod searches, all but the refined ones in full: {shares}")
    if profiler is not None:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def _cutouts(payload: bytes) -> int:
    """Bytes of the gzip'd images at a packet's end."""
    at = payload.find(b"\x1f\x8b\x08")
    return len(payload) - at if at >= 0 else 0


if __name__ == "__main__":
    main()
