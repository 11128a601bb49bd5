"""The workers under test as processes of ``trifid run``, and the subscriber that reads what they publish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from numpy.typing import NDArray

from benchmarks.workload import measures
from benchmarks.workload.packets import sequence_of
from broker.embedded.ports import free_port
from broker.publish.annotation import read_records
from broker.topic_names import dead_letter_topic

PREFIX: Final = "trifid"
ANNOTATIONS: Final = f"{PREFIX}.ztf.all"
DEAD_LETTERS: Final = dead_letter_topic(PREFIX)
_ROOT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 300.0
_STOP_S: Final = 60.0
_TAIL: Final = 2000
_TAKEN: Final = 500
_LOOK_S: Final = 0.1
_OTHERS_S: Final = 20.0
_CREATED_S: Final = 60.0
Config = dict[str, dict[str, Any]]


class WorkerProcess:
    """One process of ``trifid run``."""

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        self.port = free_port()
        self._log = folder / f"{name}.log"
        path = folder / f"{name}.toml"
        config = {**config, "metrics": {"address": "127.0.0.1", "port": self.port}}
        config["kafka"] = {**config["kafka"], "worker_id": name}
        # Strings, numbers, truth values and lists of them are the same in TOML and in JSON.
        lines = [
            line
            for section, values in config.items()
            for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
        ]
        path.write_text("\n".join(lines) + "\n")
        self._config = path
        self.start()

    def start(self) -> None:
        """Start the process, also again after ``stop``; the log goes on."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIFID_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", "run", "--config", str(self._config)],
                stdout=log, stderr=log, env=environment, cwd=_ROOT,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise RuntimeError, with the end of its log, where it has ended."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"a worker ended with {code}:\n{self._log.read_text(errors='replace')[-_TAIL:]}")

    def wait_until_ready(self) -> None:
        """Until ``/readyz`` says that it is in the group and its servers answer."""
        end = time.monotonic() + _START_S
        while True:
            self.check()
            with suppress(OSError):  # not there yet, or an answer of 503
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                return
            if time.monotonic() > end:
                raise RuntimeError(f"a worker is not ready:\n{self._log.read_text(errors='replace')[-_TAIL:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """SIGTERM; raises RuntimeError where it does not end with its accounting reconciled (exit code 0)."""
        self._process.send_signal(signal.SIGTERM)
        if (code := self._process.wait(_STOP_S)) != 0:
            raise RuntimeError(f"a worker ended with {code}:\n{self._log.read_text(errors='replace')[-_TAIL:]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Workers:
    """All workers of a run; as a context manager none is left behind."""

    def __init__(self, folder: Path, count: int, config: Config) -> None:
        self._processes: list[WorkerProcess] = []
        self.exchange: WorkerProcess | None = None
        """A worker that is being exchanged (``upgrade``), and so may have ended."""
        try:
            self._processes += [WorkerProcess(folder, f"worker-{number}", config) for number in range(count)]
        except BaseException:
            self.kill()
            raise

    def wait_until_ready(self) -> None:
        for process in self._processes:
            process.wait_until_ready()

    def check(self) -> None:
        for process in self._processes:
            if process is not self.exchange:
                process.check()

    def upgrade(self, away_s: float) -> list[tuple[float, float]]:
        """Stop and start one worker after the other, the last first, as a StatefulSet does: the next ends when the one
        before is ready. Each stays away for ``away_s``, as a pod that is scheduled anew.

        Unix times, of each, when it was told to stop and when it was ready again. Raises RuntimeError as ``stop`` does.
        """
        times = []
        for process in reversed(self._processes):
            began = time.time()
            self.exchange = process
            try:
                process.stop()
                time.sleep(away_s)
                process.start()
            finally:
                self.exchange = None
            process.wait_until_ready()
            times.append((began, time.time()))
        return times

    def metrics(self) -> measures.Samples:
        """Sums over the workers."""
        return measures.add(measures.scrape(process.port) for process in self._processes)

    def cpu_seconds(self) -> float:
        return sum(measures.cpu_seconds(process.pid) for process in self._processes)

    def cpu_of_start(self) -> float:
        """What starting took, up to a tenth of a second before each worker's first batch.

        Waits until all had one, but not for long where the others have had theirs: it may never get any.
        """
        seconds: dict[int, float] = {}
        waiting = list(self._processes)
        end = time.monotonic() + _START_S
        while waiting and time.monotonic() < end:
            for process in list(waiting):
                process.check()
                now = measures.cpu_seconds(process.pid)
                with suppress(OSError):  # it does not listen yet
                    stages = measures.by_label(measures.scrape(process.port), "trifid_stage_seconds_count", "stage")
                    if any(stages.values()):
                        waiting.remove(process)
                        end = min(end, time.monotonic() + _OTHERS_S)
                        seconds.setdefault(process.pid, now)
                        continue
                seconds[process.pid] = now
            time.sleep(_LOOK_S)
        return sum(seconds.values())

    def memory_mib(self) -> list[float]:
        """The most that each has held."""
        return [measures.memory_mib(process.pid)[1] for process in self._processes]

    def stop(self) -> None:
        for process in self._processes:
            process.stop()
        self._processes.clear()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Subscriber:
    """Reads annotations and dead letters, committed ones only, and notes when each came; in a thread."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        """Begins behind what the topics hold by now."""
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "stream-benchmark",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
                "queued.max.messages.kbytes": 262_144,
            }
        )
        places = []
        for topic in (ANNOTATIONS, DEAD_LETTERS):
            for number in range(partitions):
                place = TopicPartition(topic, number)
                place.offset = _end_of(self._consumer, place)
                places.append(place)
        self._consumer.assign(places)
        self._values: list[bytes] = []
        self._times: list[float] = []
        self.dead_letters = 0
        self.error: KafkaError | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, name="subscriber", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many annotations and dead letters have come."""
        return len(self._times) + self.dead_letters

    def _read(self) -> None:
        while not self._end.is_set():
            try:
                messages = self._consumer.consume(_TAKEN, 0.05)
            except KafkaException as error:
                self.error = error.args[0]
                return
            now = time.time()
            for message in messages:
                if message.error() is not None:
                    self.error = message.error()
                elif message.topic() == DEAD_LETTERS:
                    self.dead_letters += 1
                else:
                    # To be decoded when the clock has stopped: the time that takes is no part of the service's.
                    self._values.append(message.value() or b"")
                    self._times.append(now)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._consumer.close()
        if self.error is not None:
            raise KafkaException(self.error)

    def annotations(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Of each annotation, after ``close``: the alert's number in the run, Unix time when it was read, and when the
        worker had taken the alert."""
        records = [record for value in self._values for record in read_records(value)]
        taken = [record["brokerIngestTimestamp"].timestamp() for record in records]
        return np.array([sequence_of(r["alertId"]) for r in records], np.int64), np.array(self._times), np.array(taken)


def _end_of(consumer: Consumer, place: TopicPartition) -> int:
    """The offset behind the last message; waits for a partition that was just created."""
    end = time.monotonic() + _CREATED_S
    while True:
        try:
            return int(consumer.get_watermark_offsets(place, timeout=60)[1])
        except KafkaException:
            if time.monotonic() > end:
                raise
        time.sleep(_LOOK_S)


def configuration(
    *, bootstrap: str, topic: str, redis: str, partitions: int, batch_size: int, threads: int, delivery: str,
    triton: str | None, model_repository: Path, similar: bool = False,
) -> Config:  # fmt: skip
    """Settings of a worker, one group for each topic; ``triton`` is the server's address, None for ONNX Runtime.

    ``similar`` is whether embeddings are kept in vector sets.
    """
    inference: dict[str, Any] = {"model_repository": str(model_repository), "threads": threads}
    config: Config = {
        "kafka": {
            "bootstrap_servers": bootstrap, "input_topics": [topic], "spectra_topic": "", "group_id": topic,
            "topic_partitions": partitions, "delivery": delivery,
        },
        "redis": {"url": redis},
        "inference": {**inference, "engine": "onnx" if triton is None else "triton"},
        "pipeline": {"batch_size": batch_size},
        "similar": {"enabled": similar},
        "publish": {"topic_prefix": PREFIX},
    }  # fmt: skip
    if triton is not None:
        config["triton"] = {"url": triton}
    return config


def wait_for(subscriber: Subscriber, workers: Workers, count: int, quiet_s: float) -> None:
    """Until so many annotations and dead letters were read; raises TimeoutError where none comes for ``quiet_s``."""
    last, since = len(subscriber), time.monotonic()
    while (now := len(subscriber)) < count:
        workers.check()
        if subscriber.error is not None:
            raise KafkaException(subscriber.error)
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > quiet_s:
            raise TimeoutError(f"{now} of {count} annotations came, and no more for {quiet_s:.0f} s")
        time.sleep(0.01)
