"""How fast `trifid state rebuild` brings the state back, from a topic and from archives, beside what these cost.

    PYTHONPATH=. python benchmarks/rebuild.py                 # 20,000 alerts, about two minutes
    PYTHONPATH=. python benchmarks/rebuild.py --alerts 5000 --processes 1
    PYTHONPATH=. python benchmarks/rebuild.py --only topic
    PYTHONPATH=. python benchmarks/rebuild.py --only parts --alerts 3000     # seconds: what an alert costs, by part

Alerts are simulated ones without cutouts, as archives of thinned packets hold them, six of each star with 30 days of
history. The command runs as an operator starts it, against real Kafka and Redis. Seconds of CPU are those of it
and its processes, without Redis and Kafka: where other work takes the cores they say more than the clock. The start of
the command, that of a run with 8 alerts, is in neither. The floor of a compressed archive is
`xz -dc` or `gzip -dc` of it alone.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from broker.build import build_decoder, build_store
from broker.config import KafkaSettings, Settings
from broker.embedded.redis import RedisServer
from broker.rebuild import BATCH, merge
from broker.sources import Packet
from broker.streaming.replay import Replay
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home

BAR = 5000
PARTITIONS = 4
FEW = 8
COMMAND = [sys.executable, "-m", "broker.cli", "state", "rebuild"]


def cpu_of(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds of CPU of a command and all its processes, seconds by the clock, and what it said."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    clock, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{done.stderr[-3000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock, done.stdout


def measure(what: str, source: str, few: Path, alerts: int, environment: dict[str, str], *options: str) -> None:
    """Into an empty Redis; the start of the command, which is that of a run with ``few``, is left out."""
    with RedisServer() as redis:
        variables = {**environment, "TRIFID_REDIS__URL": redis.url}
        start_cpu, start, _ = cpu_of([*COMMAND, "--from", str(few), *options], variables)
        with redis.client() as client:
            client.flushall()
            before = sum(client.info("cpu")[name] for name in ("used_cpu_user", "used_cpu_sys"))
            cpu, clock, said = cpu_of([*COMMAND, "--from", source, *options], variables)
            used = sum(client.info("cpu")[name] for name in ("used_cpu_user", "used_cpu_sys")) - before
    found = re.search(r"^(\d+) alerts ", said)
    if found is None or int(found[1]) != alerts:
        raise SystemExit(f"{alerts} alerts were expected: {said}")
    print(
        f"{what}: {alerts / (clock - start):.0f} alerts/s by the clock, {alerts / (cpu - start_cpu):.0f} a second of "
        f"CPU of ours, {alerts / used:.0f} of Redis's; start {start:.1f} s, {start_cpu:.1f} s of CPU; bar {BAR}",
        flush=True,
    )


def archive(path: Path, payloads: list[bytes], mode: str) -> None:
    with tarfile.open(path, mode) as out:
        for number, payload in enumerate(payloads):
            entry = tarfile.TarInfo(f"{number}.avro")
            entry.size = len(payload)
            out.addfile(entry, io.BytesIO(payload))


def cost_of_parts(payloads: list[bytes]) -> None:
    """CPU of one process, in microseconds an alert: decoded; decoded and merged, new and again; handed to another."""
    packets = [Packet(f"night[0] offset {number}", payload) for number, payload in enumerate(payloads)]
    batches = [packets[start : start + BATCH] for start in range(0, len(packets), BATCH)]

    def cpu(action: Callable[[list[Packet]], object]) -> float:
        before = time.process_time()
        for batch in batches:
            action(batch)
        return 1e6 * (time.process_time() - before) / len(packets)

    with RedisServer() as redis:
        settings = Settings.model_validate({"redis": {"url": redis.url}})
        with closing(build_store(settings)) as store:
            decoder = build_decoder(settings)
            merge(batches[0], decoder, store)  # compiles
            with redis.client() as client:
                client.flushall()
            decoded = cpu(lambda batch: decoder.decode_batch([p.payload for p in batch]))
            first, again = (cpu(lambda batch: merge(batch, decoder, store)) for _ in range(2))
    near, far = multiprocessing.get_context("spawn").Pipe()
    given = cpu(ForkingPickler.dumps)
    taker = threading.Thread(target=lambda: [far.recv() for _ in batches])
    taker.start()
    through = cpu(near.send)  # with what takes it in, in the other thread
    taker.join()
    print(f"microseconds of CPU an alert: decode {decoded:.0f}, decode and merge {first:.0f}, again {again:.0f}; "
          f"to another process {through:.0f}, of which pickle {given:.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("tar.gz", "tar.xz", "topic", "parts"))
    given = parser.parse_args()
    payloads = [a.payload for a in simulate_alerts(given.alerts // 4 + 10, 6, seed=1)][: given.alerts]
    if given.only == "parts":
        cost_of_parts(payloads)
        return
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIFID_")} | {"OMP_NUM_THREADS": "1"}
    options = ("--processes", str(given.processes))
    size = sum(map(len, payloads)) / len(payloads)
    print(f"{len(payloads)} alerts of {size / 1000:.0f} kB with their schema, {given.processes} processes, "
          f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="trifid-rebuild-") as name:
        few = Path(name) / "few.tar"
        archive(few, payloads[:FEW], "w")
        for suffix, mode, tool in (("tar.gz", "w:gz", "gzip"), ("tar.xz", "w:xz", "xz")):
            if given.only not in (None, suffix):
                continue
            path = Path(name) / f"night.{suffix}"
            archive(path, payloads, mode)
            if shutil.which(tool):
                cpu, clock, _ = cpu_of(["sh", "-c", f"{tool} -dc {path} > /dev/null"], environment)
                print(f"{suffix}: {tool} alone {len(payloads) / cpu:.0f} alerts a second of CPU, "
                      f"{clock:.1f} s by the clock", flush=True)  # fmt: skip
            measure(suffix, str(path), few, len(payloads), environment, *options)
        if given.only not in (None, "topic"):
            return
        if find_kafka_home() is None:
            print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): no topic")
            return
        with KafkaServer() as kafka:
            kafka.create_topics(["night"], partitions=PARTITIONS)
            with Replay(KafkaSettings(bootstrap_servers=kafka.bootstrap), "night") as sender:
                for payload in payloads:
                    sender.send(payload)
            measure("topic", f"kafka://{kafka.bootstrap}/night", few, len(payloads), environment, *options)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
