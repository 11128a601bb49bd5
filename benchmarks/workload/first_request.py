"""What the first request to a Triton server costs that has just become ready, against those that follow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from benchmarks.workload.report import table
from broker.assemble.inputs import ModelInputs
from broker.inference.triton import TritonEngine
from deploy.local.triton_server import TritonServer

NEXT = 15
TIMEOUT_S = 120.0


def first_requests(repository: Path, batches: Mapping[int, ModelInputs], starts: int, *, in_process: bool) -> str:
    """A table: the first request of each size, after so many starts of the local server each."""
    rows = []
    for batch, inputs in batches.items():
        found = []
        for _ in range(starts):
            with TritonServer(repository, in_process=in_process) as server:
                found.append(_ratios(server, repository, inputs))
        columns = zip(*found, strict=True)
        rows.append([str(batch), *(f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns)])
    return table(["batch", "wall", "CPU", "wall, with the question what is served", "CPU, with it"], rows)


def _ratios(server: TritonServer, repository: Path, inputs: ModelInputs) -> list[float]:
    """Wall and CPU time of the first request over medians of the NEXT; both again with what a worker asks before."""
    pid = server.pid
    assert pid is not None
    with closing(TritonEngine(server.grpc_url, repository, timeout=TIMEOUT_S)) as engine:
        asked = _spent(pid, engine.embedding_width)
        first, *others = (_spent(pid, lambda: engine.predict(inputs)) for _ in range(1 + NEXT))
    medians = [statistics.median(kind) for kind in zip(*others, strict=True)]
    return [
        (spent + more) / median
        for question in ((0.0, 0.0), asked)
        for spent, more, median in zip(first, question, medians, strict=True)
    ]


def _spent(pid: int, call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, of this process and the server's."""
    cpu, start = time.process_time() + _ran(pid), time.perf_counter()
    call()
    return time.perf_counter() - start, time.process_time() + _ran(pid) - cpu


def _ran(pid: int) -> float:
    """CPU seconds of the threads of a process and its descendants that still run, to the nanosecond.

    ``measures.tree_seconds`` counts in hundredths of a second for each process, of which one request takes a few.
    """
    total = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0]) / 1e9
        total += sum(_ran(int(child)) for child in (thread / "children").read_text().split())
    return total
