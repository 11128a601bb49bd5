"""How long it takes somebody new: ``python -m deploy.first_use``, with the network or pip's cache.

From a fresh clone to the first RR Lyrae star that a subscriber prints, by the commands of docs/tutorial.md; and from
the wheel, in an empty folder, to the class of a light curve as ZTF's archive at IRSA gives it.
"""

from __future__ import annotations

import gzip
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LIGHT_CURVE: Final = ROOT / "tests/data/cases/01-ztf-dr-irsa-csv/irsa.csv.gz"
"""An RRAB star."""
_LONGEST_S: Final = 900
_CLEAN: Final = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "TRIFID_CONFIG")}


def typed(command: str, folder: Path) -> str:
    """What a command prints, with its time; raises CalledProcessError where it fails."""
    start = time.monotonic()
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=_CLEAN, stdout=subprocess.PIPE, text=True, check=True, timeout=_LONGEST_S
    )
    print(f"  {time.monotonic() - start:6.1f} s  $ {command}", flush=True)
    return done.stdout


@contextmanager
def in_another_terminal(command: str, folder: Path, sign: Path) -> Iterator[None]:
    """A command that goes on, from when ``sign`` is there; raises RuntimeError where it ends before, or takes long."""
    start = time.monotonic()
    process = subprocess.Popen(
        shlex.split(command), cwd=folder, env=_CLEAN, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not sign.exists():
            if process.poll() is not None or time.monotonic() - start > _LONGEST_S:
                raise RuntimeError(f"{command}: {sign.name} does not come")
            time.sleep(0.1)
        print(f"  {time.monotonic() - start:6.1f} s  $ {command} &", flush=True)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def from_a_clone(folder: Path) -> float:
    """Seconds from a clone to the first RR Lyrae star."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "trifid")], check=True)
    clone = folder / "trifid"
    start = time.monotonic()
    with in_another_terminal('make demo DEMO="--keep demo.toml"', clone, clone / "demo.toml"):
        found = typed(
            ".venv/bin/trifid subscribe --parent RRLyrae --config demo.toml --from-beginning --limit 1", clone
        )
        seconds = time.monotonic() - start
    print("\n".join(f"  {line[:110]}" for line in found.splitlines()))
    if "RRLyrae" not in found:
        raise RuntimeError("no RR Lyrae star was printed")
    return seconds


def from_the_wheel(folder: Path) -> float:
    """Seconds from the wheel to the class of a light curve, the making of the wheel not counted."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    (wheel,) = folder.glob("trifid-*.whl")
    (folder / "ztf.csv").write_bytes(gzip.decompress(LIGHT_CURVE.read_bytes()))
    start = time.monotonic()
    typed(f"{sys.executable} -m venv env", folder)
    typed(f"env/bin/pip install --quiet 'trifid[service] @ {wheel.as_uri()}'", folder)
    found = typed("env/bin/trifid classify --lightcurves ztf.csv", folder)
    seconds = time.monotonic() - start
    print("\n".join(f"  {line[:110]}" for line in found.splitlines()))
    if "RRAB" not in found:
        raise RuntimeError("the star is not classified as RRAB")
    return seconds


def main() -> int:
    """Print both; the exit code."""
    try:
        for what, how in (
            ("from a clone to the first RR Lyrae star, 2 commands", from_a_clone),
            ("from the wheel to the class of a light curve, 1 command after the installation", from_the_wheel),
        ):
            with tempfile.TemporaryDirectory(prefix="trifid-first-use-") as name:
                print(f"{how(Path(name)):.0f} s {what}", flush=True)
    except (subprocess.SubprocessError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
