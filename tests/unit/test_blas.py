"""OpenBLAS's threads spin while they wait: each stage's matrix products stay on its own thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from broker.anomaly.scores import nearest
from broker.assemble import lightcurve
from broker.assemble.lightcurve import assemble_light_curves
from broker.assemble.period import find_period
from broker.bands import BANDS
from broker.records import LightCurve


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
        assert _blas_threads() == {2}  # and they are given back


def test_the_search_of_neighbours() -> None:
    _Watched.seen.clear()
    vectors = np.eye(8, dtype=np.float32)
    _, index = nearest(vectors, vectors[:3].view(_Watched), 1)
    assert np.asarray(index)[:, 0].tolist() == [0, 1, 2]
    assert _Watched.seen == [{1}]


def test_the_fits_of_light_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def watched(*points: NDArray[np.float64]) -> object:
        seen.append(_blas_threads())
        return find_period(*points)

    monkeypatch.setattr(lightcurve, "find_period", watched)
    time = np.linspace(60_000.0, 60_100.0, 60)
    flux = (1e5 * (1.0 + 0.3 * np.sin(time))).astype(np.float32)
    like = np.zeros(60, np.float32)
    byte = np.zeros(60, np.uint8)
    assemble_light_curves([LightCurve(time, flux, like + 1e3, like, byte + BANDS.index("ztf:g"), byte)])
    assert seen == [{1}]
