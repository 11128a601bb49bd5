"""Rate of ``trifid classify --archive`` beside that of plain processes on the same stars, in one run.

A HATS catalogue with the columns of ZTF's data releases is made from real light curves of Catalina
(``../shared/data/css_v.parquet``). Workers and as many processes of ``trifid classify --lightcurves``, each with every
n-th partition's file, then classify it in turn, several times.

What is done is counted every 0.1 s: objects in the ledger, lines of the plain processes. ``steady`` is the rate from
when a tenth of the objects was done to nine tenths. ``start`` and ``end`` are the seconds that the command takes
beside those of all objects at this rate: before the first, and after the last. ``whole`` is the rate with both, as
it is for this many stars. Core-ms are those of all processes of the command, from its start to its end.

    python -m benchmarks.archive --stars 20000 --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.workload.measures import tree_seconds
from tests.archives import make_hats

COMMAND = [sys.executable, "-m", "broker.cli", "classify"]


@dataclass(frozen=True)
class Run:
    """One run of a command, or of several side by side."""

    whole: float
    """Objects a second, as ``steady``."""
    steady: float
    start: float
    """Seconds, as ``end``."""
    end: float
    core_ms: float
    """CPU time an object."""

    def __str__(self) -> str:
        return (
            f"whole {self.whole:6.1f} objects/s, steady {self.steady:6.1f}, start {self.start:4.1f} s, "
            f"end {self.end:4.1f} s, {self.core_ms:.2f} core-ms each"
        )


def run(commands: Sequence[Sequence[str]], outputs: Sequence[Path], done: Callable[[], int], stars: int) -> Run:
    """Run commands side by side, the output of each in its file; ``done`` counts the objects that are done."""
    before, start = _children_seconds(), time.monotonic()
    seen = [(0.0, 0)]
    cpu = 0.0
    with ExitStack() as stack:
        running = [
            subprocess.Popen(command, stdout=stack.enter_context(output.open("w")), stderr=subprocess.DEVNULL)
            for command, output in zip(commands, outputs, strict=True)
        ]
        while any(process.poll() is None for process in running):
            time.sleep(0.1)
            seen.append((time.monotonic() - start, done()))
            # The most of all times: a process that nobody waits for, as that which workers are forked from, is lost
            # with what it used when it ends.
            cpu = max(cpu, _children_seconds() - before)
        for process in running:
            if process.returncode:
                raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    seconds = seen[-1][0]
    times, counts = np.array(seen).T
    if counts[-1] != stars:
        raise SystemExit(f"{counts[-1]:.0f} of {stars} objects are done")
    # Where the count stands still it does so until it rises: each count at the first time that it was seen.
    counts, first = np.unique(counts, return_index=True)
    early, late = np.interp([0.1 * stars, 0.9 * stars], counts, times[first])
    steady = 0.8 * stars / (late - early)
    begin = early - 0.1 * stars / steady
    return Run(stars / seconds, steady, begin, seconds - begin - stars / steady, 1e3 * cpu / stars)


def _children_seconds() -> float:
    """CPU seconds of all processes under this one."""
    return tree_seconds(os.getpid()) - time.process_time()


class Lines:
    """Counts the lines of files that grow."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._read, self._lines = files, [0] * len(files), 0

    def __call__(self) -> int:
        for number, file in enumerate(self._files):
            with file.open("rb") as stream:
                stream.seek(self._read[number])
                new = stream.read()
            self._read[number] += len(new)
            self._lines += new.count(b"\n")
        return self._lines


class Ledger:
    """Counts the objects in the ledger of an archive's results."""

    def __init__(self, output: Path) -> None:
        self._folder = output / "trifid" / "partitions"
        self._objects: dict[Path, int] = {}

    def __call__(self) -> int:
        for file in self._folder.glob("*.json"):
            if file not in self._objects:
                self._objects[file] = json.loads(file.read_text())["objects"]
        return sum(self._objects.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=20_000, help="of 22,791 that there are")
    parser.add_argument("--rows", type=int, default=1000, help="at most in a partition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[1] / ".." / "shared")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "dr"
        files = make_hats(arguments.shared.resolve(), source, arguments.stars, arguments.rows)
        print(f"{arguments.stars} stars, {len(files)} partitions, {arguments.workers} workers or processes", flush=True)
        plain, lines = [], [folder / f"{number}.jsonl" for number in range(arguments.workers)]
        for number in range(arguments.workers):
            own = [word for file in files[number :: arguments.workers] for word in ("--lightcurves", str(file))]
            plain.append([*COMMAND, "--json", *own])
        # Compiled code and files are cached for both.
        subprocess.run([*COMMAND, "--json", "--lightcurves", str(files[0])], check=True, capture_output=True)
        found: dict[str, list[Run]] = {"archive": [], "plain": []}
        for turn in range(arguments.rounds):
            output = folder / f"classes {turn}"
            archive = [*COMMAND, "--archive", str(source), "--output", str(output), "--workers", str(arguments.workers)]
            found["archive"].append(run([archive], [folder / "log"], Ledger(output), arguments.stars))
            print(f"archive: {found['archive'][-1]}", flush=True)
            for file in lines:
                file.unlink(missing_ok=True)
                file.touch()
            found["plain"].append(run(plain, lines, Lines(lines), arguments.stars))
            print(f"  plain: {found['plain'][-1]}", flush=True)
        for what in ("whole", "steady"):
            ratios = [getattr(a, what) / getattr(p, what) for a, p in zip(*found.values(), strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"archive / plain, {what}: {each}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
