"""How long a worker takes from the start of its process until /readyz says yes: the first of a group, and once more.

The worker is a process of ``trifid run`` against real Kafka and Redis. The first start has no compiled code, as in an
image without Numba's cache, and makes its topics; the others are those of a worker that was stopped, with the cache,
as every start of the image. Seconds of CPU are beside those of the clock, which on a busy machine say little.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import KafkaServer, find_kafka_home

LOOK_S = 0.05
LIMIT_S = 300.0
BAR_S = 5.0


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:  # HTTPError, of 503, is one
        return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(settings: dict[str, str], log: Path) -> tuple[float, float]:
    """Seconds of the clock and of CPU until it was ready; it is stopped then."""
    port = int(settings["TRIFID_METRICS__PORT"])
    with log.open("ab") as out:
        began = time.monotonic()
        worker = subprocess.Popen(
            [sys.executable, "-m", "broker.cli", "run"], env={**os.environ, **settings}, stdout=out, stderr=out
        )
    try:
        while not ready(port):
            if worker.poll() is not None or time.monotonic() - began > LIMIT_S:
                raise SystemExit(f"not ready:\n{log.read_text()[-3000:]}")
            time.sleep(LOOK_S)
        return time.monotonic() - began, cpu_seconds(worker.pid)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--log", action="store_true", help="print the workers' log")
    given = parser.parse_args()
    if find_kafka_home() is None:
        print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): skipped")
        return
    with tempfile.TemporaryDirectory() as name, KafkaServer() as kafka, RedisServer(persistent=True) as redis:
        cache = Path(name) / "numba"
        cache.mkdir()
        settings = {
            "TRIFID_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
            "TRIFID_KAFKA__CREATE_INPUT_TOPICS": "true",
            "TRIFID_KAFKA__WORKER_ID": "worker-1",
            "TRIFID_REDIS__URL": redis.url,
            "TRIFID_METRICS__ADDRESS": "127.0.0.1",
            "TRIFID_METRICS__PORT": str(free_port()),
            "NUMBA_CACHE_DIR": str(cache),
        }
        log = Path(name) / "worker.log"
        for number in range(given.restarts + 1):
            clock, cpu = start(settings, log)
            what = "first start, nothing compiled, topics made" if number == 0 else "start with compiled code"
            print(f"{what}: ready after {clock:.1f} s, {cpu:.1f} s of CPU", flush=True)
        print(f"bar: {BAR_S:.0f} s; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        if given.log:
            print(log.read_text())


if __name__ == "__main__":
    main()
