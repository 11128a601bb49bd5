"""Builds wheel and sdist, checks them, and tests each in an environment that holds nothing else: ``make release``."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_LIGHT_CURVE: Final = ROOT / "tests/data/cases/01-ztf-dr-irsa-csv/irsa.csv.gz"
"""An RRAB star, as ZTF's archive at IRSA gives it."""


def run(*command: str | Path, folder: Path = ROOT, errors: int | None = None) -> str:
    """What a command prints; raises CalledProcessError, after its error output, where it fails."""
    # Not this checkout: what was installed is to be tested.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True
    )
    return done.stdout


def refusal(*command: str | Path, folder: Path) -> str:
    """The error output of a command that fails; raises RuntimeError where it does not."""
    try:
        run(*command, folder=folder, errors=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    raise RuntimeError(f"{command[1:]} did not fail")


def build(folder: Path) -> list[Path]:
    """Wheel and sdist, each built in an environment of its own, and checked."""
    run(sys.executable, "-m", "build", "--outdir", folder, ".")
    (wheel,), (sdist,) = folder.glob("trifid-*.whl"), folder.glob("trifid-*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    return [wheel, sdist]


def try_out(package: Path) -> None:
    """Install a package where nothing else is: its client, its service, which classifies a light curve, its pages.

    What training needs, some GB, is only looked for.

    Raises CalledProcessError, RuntimeError.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, trifid = folder / "env/bin/python", folder / "env/bin/trifid"
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder / "env")
        install = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python)
        run(*install, f"trifid @ {package.as_uri()}")
        run(python, "-c", "import broker.client", folder=folder)
        run(trifid, "subscribe", "--help", folder=folder)
        if "trifid[service]" not in refusal(trifid, "classify", "no.avro", folder=folder):
            raise RuntimeError(f"{package.name} without its service does not say that classify needs it")
        run(*install, f"trifid[service] @ {package.as_uri()}")
        run(sys.executable, "-m", "uv", "pip", "check", "--quiet", "--python", python)
        version = run(trifid, "--version", folder=folder)
        (folder / "ztf.csv").write_bytes(gzip.decompress(_LIGHT_CURVE.read_bytes()))
        found = run(trifid, "classify", "--lightcurves", "ztf.csv", folder=folder)
        if "RRAB" not in found:
            raise RuntimeError(f"{package.name} does not classify:\n{found}")
        run(*install, f"trifid[web] @ {package.as_uri()}")
        (folder / "trifid.toml").write_text('[web]\ndatabase = "sqlite:///web.sqlite"\n')
        token = run(trifid, "web", "--config", "trifid.toml", "token", "create", "me", folder=folder)
        if not token.startswith("trifid_"):
            raise RuntimeError(f"{package.name} makes no token:\n{token}")
        run(*install, "--dry-run", f"trifid[training] @ {package.as_uri()}")
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
