"""RedisStore.update on a single Redis, on a cluster of three primaries, and there with a replica's acknowledgement.

    python benchmarks/cluster.py

Batches of 256 alerts of 10 points into objects of 400, all over the sky and within one visit of Rubin; all servers and
the client share this machine, so that a cluster shows what it costs, not what it gains.
"""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np

from benchmarks.bytes_an_object import alert
from broker.embedded.redis import RedisServer
from broker.state.redis import RedisStore
from deploy.local.redis_cluster import RedisCluster

COUNT, BATCH, ROUNDS = 1024, 256, 5


def measure(name: str, url: str, replicas: int = 0) -> None:
    rng = np.random.default_rng(0)
    for where, ra, dec in (
        ("sky", rng.uniform(0, 360, COUNT), np.degrees(np.arcsin(rng.uniform(-1, 1, COUNT)))),
        ("visit", 30 + rng.uniform(0, 3.1, COUNT), rng.uniform(0, 3.1, COUNT)),
    ):
        with closing(RedisStore(url, timeout=60, prefix=f"{where}{replicas}", wait_replicas=replicas)) as store:
            cpu = wall = float("inf")
            for points in [400] + [10] * ROUNDS:
                numbers = [range(first, first + BATCH) for first in range(0, COUNT, BATCH)]
                batches = [[alert(n, points, float(ra[n]), float(dec[n])) for n in some] for some in numbers]
                begun, start = time.thread_time(), time.perf_counter()
                for batch in batches:
                    store.update(batch)
                if points == 10:
                    cpu, wall = min(cpu, time.thread_time() - begun), min(wall, time.perf_counter() - start)
        print(f"{name}, {where}: {1e3 * cpu / COUNT:.3f} core-ms an alert, {1e3 * wall / COUNT:.3f} ms passed")


def main() -> None:
    with RedisServer() as server:
        measure("single", server.url)
    with RedisCluster() as cluster:
        measure("cluster", cluster.address)
        measure("cluster, wait_replicas 1", cluster.address, 1)


if __name__ == "__main__":
    main()
