"""Servers, workers and a ledger for one fault: everything a case needs, and everything gone after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from deploy.local.kafka_server import KafkaServer
from deploy.local.redis_cluster import RedisCluster
from tests.faults.ledger import Ledger, Row, Sent
from tests.faults.proxy import BadNetwork

ROOT: Final = Path(__file__).resolve().parents[2]
PARTITIONS: Final = 8
SESSION_S: Final = 6.0
"""The shortest that Kafka's brokers allow by default."""
TRANSACTION_S: Final = 10.0
BATCH: Final = 16
"""Messages in flight at a worker."""
RECOVERY_S: Final = 30.0
"""The bar: at the full rate again so many seconds after a fault has gone."""
GIVE_UP_S: Final = 300.0
"""A worker that does not come back for so long is taken for one that hangs, also on a busy machine."""
JOINED: Final = "partitions assigned"
"""What a worker logs when it is in the group."""
_PENDING: Final = "cannot seek to the committed offsets"
"""What a worker logs where a transaction holds them."""
_STALLED_S: Final = 60.0
"""Several times what a transaction may take: whatever ends by itself has ended."""
_LOOK_S: Final = 0.5
_SETTLE_S: Final = 2.0
"""How long to wait for what must not come."""
_STOP_S: Final = 300.0
_TAIL: Final = 1500

Config = Mapping[str, Mapping[str, Any]]


class Kafka(KafkaServer):
    """A broker with a second listener, whose advertised address is a network that can be made a bad one."""

    def __init__(self, data: Path | None = None, **settings: str) -> None:
        super().__init__(data, settings=settings)
        self._behind_port = free_port()
        self.network = BadNetwork(self._behind_port)

    @property
    def through_network(self) -> str:
        """``host:port`` for a worker that is to be cut off."""
        return f"127.0.0.1:{self.network.port}"

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            return super().__enter__()
        except BaseException:
            self.network.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.network.__exit__(kind, error, trace)

    @property
    def logs(self) -> Path:
        """The folders of all partitions."""
        return self._data / "log"

    def end_open_transactions(self) -> list[tuple[str, int]]:
        """What the runbook says of TrifidOffsetsPending; topic and partition, or the transactional id and -1, of each.

        First those that their coordinator knows and that are older than a worker's may be, then those that it does not.
        """
        ended: list[tuple[str, int]] = []
        for row in self._transactions("list"):
            if row["TransactionState"] != "Ongoing":
                continue
            name = row["TransactionalId"]
            (found,) = self._transactions("describe", "--transactional-id", name)
            if int(found["TransactionDurationMs"]) > 2 * 1000 * TRANSACTION_S:
                self.tool("transactions", "forceTerminateTransaction", "--transactionalId", name)
                ended.append((name, -1))
        for row in self._transactions("find-hanging", "--broker-id", "1", "--max-transaction-timeout", "0"):
            place = ("--topic", row["Topic"], "--partition", row["Partition"])
            self.tool("transactions", "abort", *place, "--start-offset", row["StartOffset"])
            ended.append((row["Topic"], int(row["Partition"])))
        return ended

    def _transactions(self, *arguments: str) -> list[dict[str, str]]:
        """The table that Kafka's tool prints."""
        head, *rows = [
            [cell.strip() for cell in line.split("\t")]
            for line in self.tool("transactions", *arguments).splitlines()
            if line.strip()
        ]
        return [dict(zip(head, row, strict=False)) for row in rows]

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        command, environment = super()._command()
        controller = f"CONTROLLER://127.0.0.1:{self._controller_port}"
        listeners = {
            "listeners": f"PLAINTEXT://{self.bootstrap},BEHIND://127.0.0.1:{self._behind_port},{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap},BEHIND://{self.through_network}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,BEHIND:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        }
        # A key given twice has its last value.
        return [*command, *(f"{key}={value}" for key, value in listeners.items())], environment


class Worker:
    """A process of ``trifid run`` with a log, that can be killed and started again."""

    def __init__(self, folder: Path, name: str, config: Config, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.toml"
        # Strings, numbers, truth values and lists of them are the same in TOML and in JSON.
        lines = [
            line
            for section, values in {"": config.get("", {}), **config}.items()
            for line in [
                f"[{section}]" if section else "",
                *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in values.items()),
            ]
        ]
        self.config.write_text("\n".join(lines))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRIFID_")}
        self._environment = {**inherited, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0

    def start(self) -> None:
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=ROOT,
            )

    @property
    def output(self) -> str:
        """What it wrote since its latest start."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait_for(self, text: str, seconds: float = GIVE_UP_S) -> None:
        """Until it wrote ``text`` since its latest start."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.running, f"worker {self.name} ended with {self.exit_code}:\n{self.output[-_TAIL:]}"
            assert time.monotonic() < end, f"worker {self.name} did not write {text!r}:\n{self.output[-_TAIL:]}"
            time.sleep(0.05)

    def wait_for_end(self, seconds: float) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """As a crash would (kill -9)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and a good end in time."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_STOP_S)
        assert code == 0, f"worker {self.name} ended with {code}:\n{self.output[-_TAIL:]}"
        assert "reconciled" in self.output, self.output[-_TAIL:]


class Case:
    """Topics, Redis, workers and the ledger of one fault; ends all of them."""

    def __init__(
        self,
        kafka: Kafka,
        folder: Path,
        report: Callable[[Row], None],
        prefix: str,
        *,
        redis: RedisServer | RedisCluster | None = None,
        dead_letter_topic: Mapping[str, str] | None = None,
    ) -> None:
        """``dead_letter_topic`` are settings of that topic."""
        self.kafka, self.folder, self.prefix = kafka, folder, prefix
        self._report = report
        self.redis: RedisServer | RedisCluster = redis or RedisServer(persistent=True)
        self.workers: list[Worker] = []
        self.restarts = 0
        self._stack = ExitStack()
        self._dead_letter_topic = dead_letter_topic

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            outputs = [f"{self.prefix}.ztf.all"]
            dead_letters = [f"{self.prefix}.deadletter"]
            self.kafka.create_topics([f"{self.prefix}.in"], partitions=PARTITIONS)
            self.kafka.create_topics(outputs, partitions=2)
            self.kafka.create_topics(dead_letters, partitions=1, config=self._dead_letter_topic)
            partitions = {**dict.fromkeys(outputs, 2), **dict.fromkeys(dead_letters, 1)}
            self.ledger = stack.enter_context(Ledger(self.kafka.bootstrap, self.prefix, partitions))
            stack.callback(self._kill_workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _kill_workers(self) -> None:
        for worker in self.workers:
            worker.kill()

    def worker(self, name: str, changes: Config | None = None, environment: Mapping[str, str] | None = None) -> Worker:
        """Start a worker; ``changes`` are settings by section that win over those of all."""
        config: dict[str, dict[str, Any]] = {
            "": {"surveys": ["broker.surveys.ztf"]},
            "kafka": {
                "bootstrap_servers": self.kafka.bootstrap,
                "input_topics": [f"{self.prefix}.in"],
                "spectra_topic": "",
                "group_id": self.prefix,
                "worker_id": name,
                "session_timeout_s": SESSION_S,
                "transaction_timeout_s": TRANSACTION_S,
                "topic_partitions": 1,
            },
            "redis": {"url": self.redis.url},
            "inference": {"engine": "onnx", "threads": 1},
            "pipeline": {"batch_size": BATCH, "batch_wait_s": 0.1, "first_backoff_s": 0.2, "max_backoff_s": 1.0},
            "publish": {"topic_prefix": self.prefix},
            "metrics": {"port": 0},
        }
        for section, values in (changes or {}).items():
            config[section] = config.get(section, {}) | dict(values)
        worker = Worker(self.folder, name, config, environment)
        self.workers.append(worker)
        worker.start()
        return worker

    def begin(self, alerts: Sequence[Sent], share: float = 0.25, seconds: float = GIVE_UP_S) -> float:
        """Send all, and wait until this share of them is out; the rate at which they came, in alerts a second."""
        for worker in self.workers:  # all are at work before there is any
            worker.wait_for(f"{JOINED}: {self.prefix}.in")
        self.ledger.send(alerts)
        few = max(1, round(0.05 * len(alerts)))
        self.wait(few, seconds)
        begun, before = time.monotonic(), self.ledger.accounted
        # The first ones come at once where a worker was quicker than the sending.
        self.wait(min(len(alerts), max(round(share * len(alerts)), before + few)), seconds)
        return (self.ledger.accounted - before) / (time.monotonic() - begun)

    def wait(self, count: int, seconds: float = GIVE_UP_S, *, restart: bool = False) -> None:
        """Until so many alerts are accounted for.

        With ``restart`` workers that end with exit code 1 are started again, as a service manager does.
        """
        end = time.monotonic() + seconds
        while not self.ledger.wait(count, _LOOK_S):
            if restart:
                self.look_after()
            assert time.monotonic() < end, (
                f"only {self.ledger.accounted} of {count} came in {seconds:.0f} s\n{self.tails()}"
            )

    def wait_with_the_runbook(self, count: int) -> str:
        """As ``wait`` with ``restart``; where nothing comes for a minute and workers say that offsets are pending, what
        the runbook says is done, once, and then all has to come. What was done, for the table.

        One node that is killed has nobody to take its transactions over, and may lose what it knew of one.
        """
        ended: list[tuple[str, int]] = []
        last, since = self.ledger.accounted, time.monotonic()
        while not self.ledger.wait(count, _LOOK_S):
            self.look_after()
            now = time.monotonic()
            if self.ledger.accounted != last:
                last, since = self.ledger.accounted, now
            elif not ended and now - since > _STALLED_S and any(_PENDING in worker.output for worker in self.workers):
                ended = self.kafka.end_open_transactions()
                since = now
            assert now - since < GIVE_UP_S, (
                f"only {self.ledger.accounted} of {count} came; transactions ended: {ended}\n{self.tails()}"
            )
        return f"; transactions ended by hand: {len(ended)}" if ended else ""

    def look_after(self) -> None:
        """Start workers again that ended with exit code 1."""
        for worker in self.workers:
            if worker.exit_code == 1:
                worker.start()
                self.restarts += 1

    def finish(
        self,
        name: str,
        recovery_s: float | None = None,
        note: str = "",
        *,
        seconds: float = GIVE_UP_S,
        doubled: int = 0,
    ) -> Row:
        """Wait for everything, stop the workers in order, and balance the ledger; ``doubled`` as in ``complaint``."""
        self.ledger.flush()
        self.ledger.wait(len(self.ledger.sent), seconds)
        time.sleep(_SETTLE_S)
        running = [worker for worker in self.workers if worker.running]
        complaint = self.ledger.complaint(doubled)
        row = self.ledger.row(name, recovery_s, note)
        self._report(row)
        assert not complaint, f"{row}\n{complaint}\n{self.tails()}"
        for worker in running:
            worker.stop()
        assert self.ledger.complaint(doubled) == ""
        return row

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"== {w.name} ({'runs' if w.running else w.exit_code}):\n{w.log.read_text(errors='replace')[-_TAIL:]}"
            for w in self.workers
        )


def check_recovery(seconds: float) -> None:
    """Hold a recovery against its target, in the long form only: on a machine with other work the time says nothing."""
    if os.environ.get("TRIFID_FAULTS") == "full":
        assert seconds < RECOVERY_S


def markdown(rows: Sequence[Row]) -> str:
    """The table of results."""
    head = ("fault", "alerts", "lost", "duplicated", "dead-lettered", "recovery, s", "")
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|---|"]
    for row in rows:
        recovery = "" if row.recovery_s is None else f"{row.recovery_s:.1f}"
        cells = (row.name, row.alerts, row.lost, row.duplicated, row.dead_lettered, recovery, row.note)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
