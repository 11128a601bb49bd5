"""Redis: memory a detection, and batches of 512 alerts against one alert at a time."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import redis

from broker.embedded.redis import RedisServer
from broker.records import Alert, LightCurve
from broker.state.redis import RedisStore

OBJECTS, POINTS, BATCH = 5000, 200, 512


def alert(number: int, points: int) -> Alert:
    rng = np.random.default_rng(number)
    ones = np.ones(points, np.float32)
    mjd = np.sort(rng.uniform(59000, 60000, points))
    curve = LightCurve(mjd, ones, ones, ones, ones.astype(np.uint8), np.zeros(points, np.uint8))
    return Alert("ztf", number, number, f"ZTF18{number:07d}", 1.0, 2.0, float(mjd[-1]), "ztf:g", curve, "4.02")


def main() -> None:
    with RedisServer() as server, closing(RedisStore(server.url)) as store:
        with redis.Redis.from_url(server.url) as client:
            before = client.info("memory")["used_memory"]
            for first in range(0, OBJECTS, BATCH):
                store.remember([alert(n, POINTS) for n in range(first, min(first + BATCH, OBJECTS))])
            used = client.info("memory")["used_memory"] - before
        print(
            f"{OBJECTS} objects of {POINTS} points: {used / OBJECTS / POINTS:.1f} bytes of Redis a point, all included"
        )
        alerts = [alert(n, 10) for n in range(BATCH)]
        start = time.perf_counter()
        store.remember(alerts)
        batched = time.perf_counter() - start
        start = time.perf_counter()
        for one in alerts:
            store.remember([one])
        single = time.perf_counter() - start
        print(
            f"{BATCH} alerts into objects of {POINTS} points: {BATCH / batched:.0f} a second in one batch, "
            f"{BATCH / single:.0f} one by one, ratio {single / batched:.1f}"
        )


if __name__ == "__main__":
    main()
