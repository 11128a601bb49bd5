"""Measurements: CPU time and memory from /proc, stages and counts from a worker's metrics, latencies."""

from __future__ import annotations

import os
import platform
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

TICKS: Final = os.sysconf("SC_CLK_TCK")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""


def scrape(port: int) -> Samples:
    """The metrics of a worker on this machine; raises OSError where it does not answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        return parse(response.read().decode())


def parse(text: str) -> Samples:
    """Prometheus' text format."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def difference(after: Samples, before: Samples) -> Samples:
    """By how much each value has grown."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def add(several: Iterable[Samples]) -> Samples:
    """The sum over workers."""
    total: Samples = {}
    for samples in several:
        for key, value in samples.items():
            total[key] = total.get(key, 0.0) + value
    return total


def by_label(samples: Samples, name: str, label: str) -> dict[str, float]:
    """Sums of a metric over all its other labels."""
    found: dict[str, float] = {}
    for (metric, labels), value in samples.items():
        if metric == name:
            key = dict(labels)[label]
            found[key] = found.get(key, 0.0) + value
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the alerts of a run, as the workers count them."""

    alerts_in: int
    classified: int
    not_classified: int
    dead_lettered: int

    @staticmethod
    def of(samples: Samples) -> Counts:
        """From what the metrics of all workers have grown by."""
        out = by_label(samples, "trifid_alerts_out_total", "outcome")
        return Counts(
            round(sum(by_label(samples, "trifid_alerts_in_total", "survey").values())),
            round(out.get("classified", 0)), round(out.get("not_classified", 0)), round(out.get("dead_lettered", 0)),
        )  # fmt: skip

    def check(self, sent: int, annotations: NDArray[np.int64], dead_letters: int, *, exactly_once: bool = True) -> None:
        """Compare them with what was sent and read: ``annotations`` are the numbers of the alerts, 0 to sent - 1.

        Unless ``exactly_once``, an alert may be annotated several times, as after a rebalance. Raises AssertionError,
        with what is wrong, where an alert is missing, comes twice or is counted wrongly.
        """
        numbers, times = np.unique(annotations, return_counts=True)
        read = len(annotations) if exactly_once else len(numbers)
        problems = {
            f"{sent} alerts were sent, {self.alerts_in} taken": sent != self.alerts_in,
            f"{self.alerts_in} in are not {self.classified} classified + {self.not_classified} NotClassified + "
            f"{self.dead_lettered} dead letters": self.alerts_in
            != self.classified + self.not_classified + self.dead_lettered,
            f"{read} annotations read of {self.classified + self.not_classified}": read
            != self.classified + self.not_classified,
            f"{dead_letters} dead letters read of {self.dead_lettered}": dead_letters != self.dead_lettered,
            f"{int((times > 1).sum())} alerts annotated more than once": exactly_once and bool((times > 1).any()),
            "annotations of alerts that were not sent": bool(len(numbers) and (numbers[0] < 0 or numbers[-1] >= sent)),
        }
        wrong = [text for text, is_so in problems.items() if is_so]
        if wrong:
            raise AssertionError("; ".join(wrong))


def latencies(seconds: NDArray[np.float64]) -> dict[str, float]:
    """p50, p95, p99 and max of latencies, in seconds; the percentile is one of the values, so never flattered by a
    mean of two.

    Raises ValueError where there are none, or one is missing (NaN).
    """
    if not len(seconds) or np.isnan(seconds).any():
        raise ValueError("latencies are missing")
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99], method="higher")
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(seconds.max())}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads; of children only where they were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12)) / TICKS


def tree_seconds(root: int) -> float:
    """``cpu_seconds`` of a process and all its descendants that still run, and of those that it waited for."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        times[int(folder.name)] = sum(int(fields[index]) for index in (11, 12, 13, 14)) / TICKS

    def below(pid: int) -> bool:
        while pid not in (0, root):
            pid = parents.get(pid, 0)
        return pid == root

    return sum(seconds for pid, seconds in times.items() if below(pid))


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, now and at its highest, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def machine(**versions: str) -> Mapping[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) / 1024**2
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(total, 1),
        "system": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        **versions,
    }
