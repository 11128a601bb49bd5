"""Builds wheel and sdist, checks them, and tests each in an environment that holds nothing else: ``make release``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_LIGHT_CURVE: Final = """
import numpy as np
time = 59000.0 + 3.137 * np.arange(60)
for t, m in zip(time, 14.0 + 0.4 * np.sin(2 * np.pi * time / 0.31)):
    print(f"star,10.5,-3.2,{t:.5f},{m:.4f},0.02,ztf:r")
"""


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """What a command prints; raises CalledProcessError, after its error output, where it fails."""
    # Not this checkout: what was installed is to be tested.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def build(folder: Path) -> list[Path]:
    """Wheel and sdist, each built in an environment of its own, and checked."""
    run(sys.executable, "-m", "build", "--outdir", folder, ".")
    (wheel,), (sdist,) = folder.glob("trifid-*.whl"), folder.glob("trifid-*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    return [wheel, sdist]


def try_out(package: Path) -> None:
    """Install a package where nothing else is, and classify a light curve; raises CalledProcessError, RuntimeError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, trifid = folder / "env/bin/python", folder / "env/bin/trifid"
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder / "env")
        run(
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            f"trifid[service] @ {package.as_uri()}",
        )
        run(sys.executable, "-m", "uv", "pip", "check", "--quiet", "--python", python)
        version = run(trifid, "--version", folder=folder)
        curve = run(python, "-c", _LIGHT_CURVE, folder=folder)
        (folder / "star.csv").write_text(f"name,ra,dec,mjd,mag,magerr,band\n{curve}")
        found = run(trifid, "classify", "--lightcurves", "star.csv", folder=folder)
        if "star" not in found or "NotClassified" in found:
            raise RuntimeError(f"{package.name} does not classify:\n{found}")
        print(f"{package.name}: {version.strip()}; {' '.join(found.splitlines()[-1].split()[:4])}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Build into a folder, ``dist`` where none is given; the exit code."""
    folder = Path(arguments[0] if arguments else "dist").resolve()
    if folder.exists() and any(folder.glob("trifid-*")):
        print(f"{folder} holds packages already", file=sys.stderr)
        return 2
    try:
        for package in build(folder):
            try_out(package)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
