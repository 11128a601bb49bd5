"""A catalogue of known variable stars: loading it into Redis, its memory there, and finding the stars of 512 alerts.

By default the AAVSO's VSX of 2022 in ../shared; any file that `trifid catalog load vsx` takes otherwise.
"""

from __future__ import annotations

import argparse
import resource
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import redis

from broker.catalog.match import CatalogReader
from broker.catalog.memory import MemoryCatalogs
from broker.catalog.presets import KNOWN
from broker.catalog.store import CatalogStore
from broker.catalog.tables import CatalogTable
from broker.embedded.redis import RedisServer

ALERTS, REPEATS = 512, 50
VSX = Path(__file__).resolve().parents[2] / "shared" / "data" / "vsx_2022.parquet"


def main() -> None:
    """Print both ways of having the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=VSX)
    path = parser.parse_args().file
    positions = list(CatalogTable(path, KNOWN).positions())
    rng = np.random.default_rng(0)
    row = rng.choice(sum(len(ra) for ra, _ in positions), ALERTS, replace=False)
    ra = np.concatenate([ra for ra, _ in positions])[row]
    dec = np.concatenate([dec for _, dec in positions])[row]
    mjd = np.full(ALERTS, 61_000.0)
    with RedisServer() as server, closing(redis.Redis.from_url(server.url)) as client:
        before = client.info("memory")["used_memory"]
        cpu = time.process_time()
        start = time.perf_counter()
        with closing(CatalogStore(server.url)) as store:
            result = store.load("vsx", [path], KNOWN)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        used = client.info("memory")["used_memory"] - before
        rows = result.contents.rows
        print(
            f"{rows:,} stars loaded into Redis in {seconds:.1f} s ({cpu:.1f} s of CPU): {used / rows:.0f} bytes of "
            f"Redis each, {used / 1e6:.0f} MB, {result.layout.row_bytes} of a row; order {result.layout.order}; "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB of this process at most"
        )
        reader = CatalogReader()
        reader.prime(client.get(reader.meta_key))
        times = []
        for _ in range(REPEATS):
            cpu = time.process_time()
            request = reader.request(ra, dec)
            found = reader.match(request, client.mget(request.keys), ra, dec, mjd)
            times.append(time.process_time() - cpu)
        named = sum(bool(f.known_as) for f in found)
        print(
            f"{ALERTS} alerts, {named} of them known: {np.median(times) / ALERTS * 1e6:.0f} us of CPU an alert in Redis"
        )
    start = time.process_time()
    catalogs = MemoryCatalogs()
    catalogs.load("vsx", path, KNOWN)
    loaded = time.process_time() - start
    times = []
    for _ in range(REPEATS):
        cpu = time.process_time()
        catalogs.look_up(ra, dec, mjd)
        times.append(time.process_time() - cpu)
    print(
        f"`classify --known`: read in {loaded:.1f} s of CPU, {np.median(times) / ALERTS * 1e6:.0f} us of CPU an alert; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB of this process at most"
    )


if __name__ == "__main__":
    main()
