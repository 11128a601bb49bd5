"""Redis: memory a detection, and batches of 512 alerts against one alert at a time."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import redis

from broker.embedded.redis import RedisServer
from broker.records import BAND_CODE, Alert, LightCurve
from broker.state.objects import Limits
from broker.state.redis import RedisStore

OBJECTS, POINTS, BATCH = 5000, 200, 512


RNG = np.random.default_rng(0)
RA = RNG.uniform(0, 360, OBJECTS)
DEC = np.degrees(np.arcsin(RNG.uniform(-1, 1, OBJECTS)))


def alert(number: int, points: int, survey: str = "ztf") -> Alert:
    rng = np.random.default_rng(number)
    ones = np.ones(points, np.float32)
    mjd = np.sort(rng.uniform(59000, 60000, points))
    band = np.full(points, BAND_CODE[f"{survey}:g"], np.uint8)
    curve = LightCurve(mjd, ones, ones, ones, band, np.zeros(points, np.uint8))
    ra, dec = float(RA[number]), float(DEC[number])
    return Alert(survey, number, number, f"{survey}18{number:07d}", ra, dec, float(mjd[-1]), f"{survey}:g", curve, "")


def rate(store: RedisStore, batches: list[list[Alert]]) -> float:
    """Alerts a second, the best of three rounds."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for batch in batches:
            store.update(batch)
        best = min(best, time.perf_counter() - start)
    return sum(map(len, batches)) / best


def main() -> None:
    with RedisServer() as server, closing(RedisStore(server.url)) as store:
        with redis.Redis.from_url(server.url) as client:
            before = client.info("memory")["used_memory"]
            for first in range(0, OBJECTS, BATCH):
                store.update([alert(n, POINTS) for n in range(first, min(first + BATCH, OBJECTS))])
            used = client.info("memory")["used_memory"] - before
        print(
            f"{OBJECTS} objects of {POINTS} points: {used / OBJECTS / POINTS:.1f} bytes of Redis a point, all included"
        )
        alerts = [alert(n, 10) for n in range(BATCH)]
        batched, single = rate(store, [alerts]), rate(store, [[one] for one in alerts])
        print(
            f"{BATCH} alerts into objects of {POINTS} points: {batched:.0f} a second in one batch, "
            f"{single:.0f} one by one, ratio {batched / single:.1f}"
        )
        # The same alerts, with and without a search for counterparts, of which each has one of 200 points.
        store.update([alert(n, POINTS, "lsst") for n in range(BATCH)])
        with closing(RedisStore(server.url, Limits(association_radius=0.0))) as alone:
            without = rate(alone, [alerts])
        together = rate(store, [alerts])
        print(
            f"with a counterpart in another survey, read and merged: {together:.0f} a second, "
            f"without the association {without:.0f}, ratio {together / without:.2f}"
        )


if __name__ == "__main__":
    main()
