"""OpenBLAS's threads spin while they wait: each stage's matrix products stay on its own thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from broker.anomaly.scores import nearest
from broker.config import Settings
from broker.streaming import supervisor
from broker.streaming.supervisor import supervise


def _blas_threads() -> set[int]:
    """Of NumPy's own BLAS; SciPy, which only tests load, has another."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {library["num_threads"] for library in libraries if "numpy" in library["filepath"]}


class _Watched(np.ndarray):
    """Notes how many threads BLAS may use when it is multiplied."""

    seen: list[set[int]] = []  # noqa: RUF012

    def __matmul__(self, other: object) -> object:
        _Watched.seen.append(_blas_threads())
        return np.asarray(self) @ np.asarray(other)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with threadpool_limits(2, user_api="blas"):
        assert _blas_threads() == {2}
        yield
        assert _blas_threads() == {2}  # and they are restored


def test_the_search_of_neighbours() -> None:
    _Watched.seen.clear()
    vectors = np.eye(8, dtype=np.float32)
    _, index = nearest(vectors, vectors[:3].view(_Watched), 1)
    assert np.asarray(index)[:, 0].tolist() == [0, 1, 2]
    assert _Watched.seen == [{1}]


def test_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    class Watched:
        hangs = False

        def run(self) -> None:
            seen.append(_blas_threads())

    monkeypatch.setattr(supervisor, "worker", lambda settings, control: nullcontext(Watched()))
    supervise(Settings.model_validate({"metrics": {"port": 0}}))
    assert seen == [{1}]
