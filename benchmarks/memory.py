"""Resident memory of a worker over many alerts: that after all of them against that after a tenth.

The worker is a process of ``trifid run`` against real Kafka and Redis, exactly once. It is sent the same packets over
and over, of a bounded number of objects: most with a history too short to be classified, so that a million alerts
take minutes and not hours, and one in twenty with a long one, so that every stage works.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from confluent_kafka import Producer

from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home

AHEAD = 8000
"""Alerts sent that the worker has not delivered yet."""
LOOK_S = 0.2
BAR = 0.05
# The disk holds the latest part of each topic only.
RETENTION = {
    "log.retention.bytes": "200000000",
    "log.segment.bytes": "50000000",
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
}


def packets() -> list[bytes]:
    short = [alert.payload for alert in simulate_alerts(1900, 2, seed=0)]
    long = [alert.payload for alert in simulate_alerts(10, 40, seed=1)]
    share = len(short) // 19
    mixed = short + (long * (share // len(long) + 1))[:share]
    return mixed[::2] + mixed[1::2]


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def delivered(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
    except OSError:  # it still starts
        return 0
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("trifid_alerts_in_total{")))


def settings(kafka: KafkaServer, redis: RedisServer, port: int) -> str:
    return f"""
[kafka]
bootstrap_servers = "{kafka.bootstrap}"
input_topics = ["alerts"]
spectra_topic = ""
topic_partitions = 1
[redis]
url = "{redis.url}"
[inference]
threads = 1
[metrics]
address = "127.0.0.1"
port = {port}
"""


def measure(count: int, worker: subprocess.Popen[bytes], kafka: KafkaServer, port: int) -> list[float]:
    """Resident memory after each tenth, MiB."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": "lz4", "linger.ms": 50})
    payloads = itertools.cycle(packets())
    sent = 0
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < 10:
        if worker.poll() is not None:
            raise SystemExit(f"the worker ended with {worker.returncode}")
        done = delivered(port)
        while sent < min(count, done + AHEAD):
            producer.produce("alerts", next(payloads))
            sent += 1
            producer.poll(0)
        producer.flush()
        if done >= count * (len(found) + 1) // 10:
            found.append(resident_mib(worker.pid))
            seconds = time.perf_counter() - start
            print(f"{done:9d} alerts, {seconds:6.0f} s: {found[-1]:6.1f} MiB", flush=True)
        time.sleep(LOOK_S)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=100_000)
    count: int = parser.parse_args().alerts
    if find_kafka_home() is None:
        print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): nothing to measure", file=sys.stderr)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        KafkaServer(settings=RETENTION) as kafka,
        RedisServer() as redis,
        (Path(folder) / "worker.log").open("wb") as log,
    ):
        kafka.create_topics(["alerts"])
        port, config = free_port(), Path(folder) / "trifid.toml"
        config.write_text(settings(kafka, redis, port))
        command = [sys.executable, "-m", "broker.cli", "run", "--config", str(config)]
        with subprocess.Popen(command, stdout=log, stderr=log) as worker:
            try:
                found = measure(count, worker, kafka, port)
            finally:
                worker.send_signal(signal.SIGTERM)
    growth = found[-1] / found[0] - 1
    print(
        f"resident memory after {count} alerts against that after a tenth of them: {growth:+.1%} "
        f"(bar: {BAR:.0%}; at the end {found[-1]:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
