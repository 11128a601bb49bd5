from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from numba import types

from broker import compiled


def double(number: int) -> int:
    return 2 * number


def test_without_a_place_for_numbas_cache_it_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it, asked = compiled.njit, []

    def njit(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(*arguments, **options)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(double, types.int64(types.int64))(21) == 42
    assert asked == [True, False]


BOUND: Final = [] if os.geteuid() else ["setpriv", "--bounding-set", "-dac_override"]
"""For root, who may write to whatever may only be read: without this right, as the user of the image."""
SCRIPT: Final = """
import sys
sys.path.insert(0, "{folder}")
import numba
from numba import types
from broker.compiled import compiled
from doubling import double

function = compiled(double, types.int64(types.int64))
print(function(21), sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values()))
print(numba.config.CACHE_DIR)
"""


def run(folder: Path, temporary: Path) -> list[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "TMPDIR": str(temporary),
    }
    command = [*BOUND, sys.executable, "-W", "error", "-c", SCRIPT.format(folder=folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a cache that may only be read, as that of the image, and a module that is compiled there."""
    if BOUND and shutil.which(BOUND[0]) is None:
        pytest.skip("no setpriv on PATH: it is in Debian's package util-linux")
    (tmp_path / "doubling.py").write_text("def double(number):\n    return 2 * number\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    assert run(tmp_path, tmp_path) == ["42", "0", "1", str(cache)]
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield tmp_path
    for path in folders:
        path.chmod(0o755)


def test_a_cache_that_may_only_be_read_saves_compiling(read_only: Path) -> None:
    temporary = read_only / "temporary"
    temporary.mkdir()
    value, hits, misses, used = run(read_only, temporary)
    assert (value, hits, misses) == ("42", "1", "0")
    assert Path(used).parent == temporary  # a copy ...
    assert not list(temporary.iterdir())  # ... that is gone at the end
