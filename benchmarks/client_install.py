"""What ``pip install 'trifid[client]'`` puts into an empty environment, MiB by package, without pip itself.

    .venv/bin/python benchmarks/client_install.py

Builds the wheel of this checkout and installs it with its extra ``client`` from the package index. The bar is 150 MiB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR_MIB = 150.0
OF_PIP = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def sizes(site: Path) -> dict[str, float]:
    """MiB of each folder or file at the top of ``site``, as the files' lengths say."""
    found: dict[str, float] = {}
    for path in site.rglob("*"):
        top = path.relative_to(site).parts[0]
        if path.is_file() and not top.startswith(OF_PIP):
            found[top] = found.get(top, 0.0) + path.stat().st_size / 2**20
    return found


def main() -> None:
    """Print the sizes; exit code 1 above the bar."""
    with tempfile.TemporaryDirectory() as folder:
        wheels, env = Path(folder, "wheels"), Path(folder, "env")
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        source = Path(folder, "source")
        # Of a copy, since setuptools writes beside the sources.
        subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(source)], check=True)
        subprocess.run([*command, "-w", str(wheels), str(source)], check=True)
        (wheel,) = wheels.glob("trifid-*.whl")
        venv.create(env, with_pip=True)
        subprocess.run([env / "bin" / "python", "-m", "pip", "install", "-q", f"{wheel}[client]"], check=True)
        (site,) = (env / "lib").glob("python*/site-packages")
        found = sizes(site)
        packages = len(list(site.glob("*.dist-info"))) - len(list(site.glob("pip-*.dist-info")))
    for name, size in sorted(found.items(), key=lambda item: -item[1])[:12]:
        print(f"{size:7.1f} MiB  {name}")
    total = sum(found.values())
    print(f"{total:7.1f} MiB  all, {packages} distributions; the bar is {BAR_MIB:g} MiB")
    sys.exit(total > BAR_MIB)


if __name__ == "__main__":
    main()
