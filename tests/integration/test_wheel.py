"""An installed wheel needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel's files, as pip puts them into site-packages."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, "."]
    # Of a copy, since setuptools writes beside the sources.
    source = tmp_path_factory.mktemp("source")
    for folder in ("broker", "training", "model_repo"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / file, source)
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = wheels.glob("trifid-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def trifid(source: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    if source != ROOT:  # the checkout has its functions compiled already
        environment["NUMBA_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "broker.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_wheel_classifies_from_any_folder(installed: Path, tmp_path: Path) -> None:
    where = "import broker, broker.config as c; print(broker.__file__); print(c.MODEL_REPOSITORY)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    told = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert told == [str(installed / "broker" / "__init__.py"), str(installed / "broker" / "model_repo")]
    assert trifid(installed, tmp_path, "--version") == "trifid, version 0.1.0\n"
    times = 59000.0 + 3.137 * np.arange(60)
    magnitudes = 14.0 + 0.4 * np.sin(2 * np.pi * times / 0.31)
    rows = [f"star,10.5,-3.2,{t:.5f},{m:.4f},0.02,ztf:r" for t, m in zip(times, magnitudes, strict=True)]
    (tmp_path / "star.csv").write_text("\n".join(["name,ra,dec,mjd,mag,magerr,band", *rows]) + "\n")
    arguments = ["classify", "--lightcurves", "star.csv"]
    found = trifid(installed, tmp_path, *arguments)
    assert [line.split()[:2] for line in found.splitlines()] == [["object", "survey"], ["star", "table"]]
    assert "NotClassified" not in found
    assert found == trifid(ROOT, tmp_path, *arguments)


def test_test_servers_and_tests_are_not_in_the_wheel(installed: Path) -> None:
    assert not list(installed.glob("tests")) + list(installed.glob("deploy"))
    embedded = {path.name for path in (installed / "broker" / "embedded").iterdir()}
    assert embedded == {"__init__.py", "kafka_mock.py", "ports.py", "process.py", "redis.py", "tls.py"}


def test_a_wheel_has_the_pages_and_what_they_load(installed: Path) -> None:
    for folder in ("templates", "static"):
        here, there = ROOT / "broker/web" / folder, installed / "broker/web" / folder
        names = sorted(path.name for path in here.iterdir())
        assert len(names) > 4
        assert sorted(path.name for path in there.iterdir()) == names
