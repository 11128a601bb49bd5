"""Rate of ``trifid classify --archive`` beside that of plain processes on the same stars, in one run.

A HATS catalogue with the columns of ZTF's data releases is made from real light curves of Catalina
(``../shared/data/css_v.parquet``). Workers and as many processes of ``trifid classify --lightcurves``, each with every
n-th partition's file, then classify it in turn, several times; the rates are objects a second from the start of the
command to its end, and the CPU is that of all its processes.

    python -m benchmarks.archive --stars 4000 --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.archives import make_hats

COMMAND = [sys.executable, "-m", "broker.cli", "classify"]


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of commands side by side."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(os.devnull, "w") as nothing:
        running = [subprocess.Popen(command, stdout=nothing, stderr=nothing) for command in commands]
        for process in running:
            if process.wait():
                raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=200, help="at most in a partition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[1] / ".." / "shared")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "dr"
        files = make_hats(arguments.shared.resolve(), source, arguments.stars, arguments.rows)
        print(f"{arguments.stars} stars in {len(files)} partitions, {arguments.workers} workers or processes")
        plain = []
        for n in range(arguments.workers):
            own = [word for file in files[n :: arguments.workers] for word in ("--lightcurves", str(file))]
            plain.append([*COMMAND, "--json", *own])
        timed([[*COMMAND, "--json", "--lightcurves", str(files[0])]])  # compiled code and files are cached for both
        best = {"archive": 0.0, "plain": 0.0}
        for turn in range(arguments.rounds):
            output = Path(folder) / f"classes {turn}"
            archive = [*COMMAND, "--archive", str(source), "--output", str(output), "--workers", str(arguments.workers)]
            for name, commands in (("archive", [archive]), ("plain", plain)):
                wall, cpu = timed(commands)
                best[name] = max(best[name], arguments.stars / wall)
                rate, core = arguments.stars / wall, 1e3 * cpu / arguments.stars
                print(f"{name:>8}: {rate:6.1f} objects/s, {core:.1f} core-ms each", flush=True)
        entries = [json.loads(file.read_text()) for file in (output / "trifid" / "partitions").iterdir()]
        assert sum(entry["objects"] for entry in entries) == arguments.stars
        print(f"archive / plain: {best['archive'] / best['plain']:.2f}")


if __name__ == "__main__":
    main()
