"""The processes of a pool whose parent is killed while they work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PARENT = r"""
import multiprocessing, os, sys, time
from broker.child_process import end_with_parent

def work(number):
    os.write(1, b"%d\n" % os.getpid())  # one write: print's two may come between another process's
    time.sleep(3600)

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2, end_with_parent) as pool:
        pool.map(work, range(2), chunksize=1)
"""


def running(pid: int) -> bool:
    """Whether there is such a process that has not ended; nobody may have asked yet how one ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_process_of_a_pool_outlives_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    for method in ("spawn", "fork"):
        with subprocess.Popen(
            [sys.executable, str(script), method], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as parent:
            try:
                assert parent.stdout is not None
                workers = [int(parent.stdout.readline()) for _ in range(2)]
                assert all(map(running, workers))
            finally:  # or the end of `with` would wait for it
                parent.kill()
            wait_until(lambda workers=workers: not any(map(running, workers)))  # type: ignore[misc]


def test_every_pool_has_such_processes() -> None:
    pools = {
        (path.name, found)
        for folder in ("broker", "training", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for found in re.findall(r"\)\.Pool\((.*)\)", path.read_text("utf-8"))
    }
    assert len(pools) >= 4
    assert all("end_with_parent" in given for _, given in pools), pools
