"""What all runs of ``benchmarks/stream.py`` share: what was asked for, the servers, and alerts that are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from benchmarks.workload.packets import Kind
from benchmarks.workload.service import (
    Workers,
    configuration,
)
from benchmarks.workload.stars import Stream
from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import KafkaServer
from deploy.local.triton_server import TritonServer

WARM = 600
"""Alerts before the open run, so that it does not begin in the workers' first batches, and are in no figure."""
_QUIET = {"log_level": 0}
"""For clients that outlive the server by a moment; what was not delivered shows in the counts."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; see the command's help."""

    objects: int
    min_points: int
    max_points: int
    alerts: int
    mix: dict[Kind, float]
    rate: float
    minutes: float
    bursts: tuple[int, ...]
    every: float
    runs: tuple[str, ...]
    workers: int
    partitions: int
    batch_size: int
    threads: int
    delivery: str
    cold: bool
    engine: str
    similar: bool
    model_repository: Path
    quiet_s: float
    seed: int

    def repeats(self) -> int:
        """How many alerts of known stars all runs have together, at most."""
        share = self.mix[Kind.REPEAT]
        mixed = self.alerts * ("closed" in self.runs)
        if "open" in self.runs:
            mixed += WARM + round(self.rate * 60 * self.minutes) + sum(self.bursts)
        return round(share * mixed) + 10 + self.alerts * ("repeats" in self.runs)


class Bench:
    """Servers that run and state that is loaded."""

    def __init__(
        self, options: Options, kafka: KafkaServer, redis: RedisServer, triton: TritonServer | None, stream: Stream,
        folder: Path,
    ) -> None:  # fmt: skip
        self.options, self.kafka, self.redis, self.stream, self.folder = options, kafka, redis, stream, folder
        self._triton = triton
        self._producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "linger.ms": 5,
                "acks": "all",
                "queue.buffering.max.kbytes": 524_288,
                **_QUIET,
            }
        )
        self._admin = AdminClient({"bootstrap.servers": kafka.bootstrap, **_QUIET})

    @property
    def exactly_once(self) -> bool:
        return self.options.delivery == "exactly-once"

    def start_workers(self, topic: str, kafka: Mapping[str, Any] | None = None) -> Workers:
        """``kafka`` are settings of that section beside those of ``configuration``."""
        options = self.options
        config = configuration(
            bootstrap=self.kafka.bootstrap,
            topic=topic,
            redis=self.redis.url,
            partitions=options.partitions,
            batch_size=options.batch_size,
            threads=options.threads,
            delivery=options.delivery,
            triton=None if self._triton is None else self._triton.grpc_url,
            model_repository=options.model_repository,
            similar=options.similar,
        )
        config["kafka"] |= kafka or {}
        return Workers(self.folder, options.workers, config)

    def send(self, topic: str, kind: Kind, due: float) -> int:
        """Send one alert that was due at a Unix time; its size."""
        # In turn: the client's own choice, for messages without a key, fills one partition for a while.
        partition = len(self.stream.sent) % self.options.partitions
        payload = self.stream.next(kind)
        while True:
            try:
                self._producer.produce(topic, bytes(payload), partition=partition, timestamp=round(due * 1000))
                break
            except BufferError:
                self._producer.poll(0.05)
        self._producer.poll(0)
        return len(payload)

    def flush(self) -> None:
        if left := self._producer.flush(300):
            raise TimeoutError(f"Kafka did not take {left} alerts")

    def topic(self, name: str) -> str:
        self.kafka.create_topics([name], partitions=self.options.partitions)
        return name

    def drop(self, name: str) -> None:
        """Its packets are no longer needed; the disk is."""
        self._admin.delete_topics([name])[name].result()
