"""Redis bytes an object by its points: light curve with its latest alert, place and period search, keys and overhead.

    python benchmarks/bytes_an_object.py

Objects are spread over the whole sky; in dense fields they share the hashes of places. Spectra and catalogues are
not counted. It is Redis's own count before and after, with the rounding of its allocator.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np

from broker.embedded.redis import RedisServer
from broker.records import BAND_CODE, Alert, KeptSearch, LightCurve
from broker.state.redis import RedisStore

OBJECTS = 4000
BATCH = 200
SEARCH = KeptSearch(1, 2, 3, 59_000.0, 60_000.0, (1, 2, 3, 4), tuple((float(n), 0.5) for n in range(16)))


def alert(number: int, points: int, ra: float, dec: float) -> Alert:
    rng = np.random.default_rng(number)
    ones = np.ones(points, np.float32)
    mjd = np.sort(rng.uniform(59_000, 60_000, points))
    band = np.full(points, BAND_CODE["ztf:g"], np.uint8)
    curve = LightCurve(mjd, ones, ones, ones, band, np.zeros(points, np.uint8))
    return Alert("ztf", number, number, f"ZTF18{number:07d}", ra, dec, float(mjd[-1]), "ztf:g", curve, "")


def main() -> None:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, OBJECTS), np.degrees(np.arcsin(rng.uniform(-1, 1, OBJECTS)))
    for points in (10, 100, 1000):
        with RedisServer() as server, server.client() as client, closing(RedisStore(server.url, timeout=60)) as store:
            store.check()
            client.config_set("activedefrag", "no")
            before = client.memory_stats()["dataset.bytes"] + client.memory_stats()["overhead.total"]
            for first in range(0, OBJECTS, BATCH):
                alerts = [alert(n, points, float(ra[n]), float(dec[n])) for n in range(first, first + BATCH)]
                store.update(alerts)
                store.keep_searches({(a.survey, a.object_id): SEARCH for a in alerts if points >= 50})
            store.close()
            client.client_kill_filter(_type="normal", skipme=True)
            stats = client.memory_stats()
            used = stats["dataset.bytes"] + stats["overhead.total"] - before
            print(f"{points} points: {used / OBJECTS:,.0f} bytes an object, {used / OBJECTS / points:.1f} a point")


if __name__ == "__main__":
    main()
