"""Prepared light curves are taken from a cache only where they were made from the same stars, labels and code."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.records import LightCurve
from training import origin as origin_module
from training import prepare as prepare_module
from training.prepare import CODE, PreparedLightCurves, prepare_light_curves

STARS = 4
LABELS = ["RRAB", None, "EW", "M"]
VERSIONS = 2


def curve(seed: int) -> LightCurve:
    """A sine of 0.5 d in V, 30 points over 60 days."""
    rng = np.random.default_rng(seed)
    mjd = np.sort(rng.uniform(59000.0, 59060.0, 30))
    flux = (1e5 * (1.0 + 0.3 * np.sin(4.0 * np.pi * mjd))).astype(np.float32)
    error = np.full(30, 1e3, np.float32)
    return LightCurve(mjd, flux, error, np.zeros(30, np.float32), np.zeros(30, np.uint8), np.zeros(30, np.uint8))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A member for each time that light curves are assembled, here without processes of their own."""
    made: list[int] = []

    class Pool:
        def __init__(self, _processes: int, _initializer: object) -> None:
            made.append(1)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        imap_unordered = staticmethod(lambda function, tasks, chunksize: map(function, tasks))

    class Context:
        def __init__(self, _method: str) -> None:
            self.Pool = Pool

    monkeypatch.setattr(prepare_module.multiprocessing, "get_context", Context)
    return made


def prepared(cache: Path, *, first: int = 0, labels: list[str | None] | None = None, versions: int = VERSIONS) -> (
    PreparedLightCurves
):  # fmt: skip
    curves = [curve(first + number) for number in range(STARS)]
    return prepare_light_curves(curves, labels or LABELS, versions, cache)


def test_a_cache_of_the_same_is_taken(tmp_path: Path, calls: list[int]) -> None:
    first, again = prepared(tmp_path), prepared(tmp_path)
    assert len(calls) == 1
    assert first.points.shape[:2] == (VERSIONS, STARS)
    np.testing.assert_array_equal(first.features, again.features)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", *[".npy"] * 7]  # nothing else is left there


def test_a_cache_of_something_else_is_made_anew(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(tmp_path)
    period = np.array(before.period)
    other = prepared(tmp_path, first=10)
    assert len(calls) == 2
    assert not np.array_equal(other.period, period)
    np.testing.assert_array_equal(before.period, period)  # whoever reads the old one is not disturbed
    # Fewer versions of the same stars: those of the first call were taken for them, as both had a mark of their own.
    assert prepared(tmp_path, versions=1).points.shape[0] == 1
    assert prepared(tmp_path).points.shape[0] == VERSIONS
    prepared(tmp_path, labels=["EA", *LABELS[1:]])
    assert len(calls) == 5
    code = tmp_path / "code.py"
    code.write_text("A = 1\n")
    monkeypatch.setattr(prepare_module, "CODE", ("code.py",))
    monkeypatch.setattr(origin_module, "_ROOT", tmp_path)
    prepared(tmp_path / "other")
    prepared(tmp_path / "other")
    assert len(calls) == 6
    code.write_text("A = 2\n")
    prepared(tmp_path / "other")
    assert len(calls) == 7


def test_what_was_left_by_a_run_that_was_ended_is_no_cache(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, first=10)
    assert len(calls) == 2
    prepared(tmp_path)  # the one before is whole
    assert len(calls) == 2


def test_what_a_killed_run_left_is_deleted(tmp_path: Path, calls: list[int]) -> None:
    left = tmp_path / "tmpk1ll3d"
    left.mkdir()
    (left / "points.npy").write_bytes(b"gigabytes")
    prepared(tmp_path)
    assert len(calls) == 1
    assert not left.exists()


def test_of_two_at_once_one_assembles(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits for it, and deletes nothing that it is writing."""
    assemble = prepare_module._assemble_all
    begun, go_on = threading.Event(), threading.Event()

    def held(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        assemble(*arguments)

    monkeypatch.setattr(prepare_module, "_assemble_all", held)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(prepared, tmp_path)
        assert begun.wait(60)
        other = pool.submit(prepared, tmp_path)
        go_on.set()
        np.testing.assert_array_equal(one.result().features, other.result().features)
    assert len(calls) == 1


def test_the_code_is_there() -> None:
    assert all((origin_module._ROOT / name).exists() for name in CODE)
