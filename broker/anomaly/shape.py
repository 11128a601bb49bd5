"""How unlike a light curve's period, amplitude and shape are to those of known stars: a distance without a network.

A network keeps what tells its classes apart, and puts a class that it has not seen where the nearest one is. So stars
are also compared by features as astronomers have them, only such as do not depend on a survey's noise and cadence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.strata import DETECTION_BINS
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.blas import one_blas_thread

SHAPE: Final = (
    "log10_std", "log10_period", "skewness", "kurtosis", "range_50_to_90", "range_20_to_90", "amplitude_1_to_std",
    "amplitude_21", "amplitude_31", "cos_phase_21", "sin_phase_21", "cos_phase_31", "sin_phase_31", "odd_even_13",
)  # fmt: skip
"""Of LIGHT_CURVE_FEATURES amplitude, period and shape alone: fits and roughness tell a survey's noise and cadence."""
LEAST_POINTS: Final = DETECTION_BINS[3]
"""Of shorter light curves a period and the shape at it are mostly chance: they have no such distance."""
_COLUMNS: Final = [LIGHT_CURVE_FEATURES.index(name) for name in SHAPE]
_LIMIT: Final = 3.5
"""Deviations beyond which a value is no farther out: among some hundred stars no rank says more."""


def shapes_of(features: NDArray[np.floating], detections: NDArray[np.integer]) -> NDArray[np.float32]:
    """(n, SHAPE) of all LIGHT_CURVE_FEATURES (n, f); NaN where ``detections`` (n,) are fewer than LEAST_POINTS."""
    found: NDArray[np.float32] = features[:, _COLUMNS].astype(np.float32)
    found[np.asarray(detections) < LEAST_POINTS] = np.nan
    return found


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Shapes:
    """Shapes of s known stars, in the strata of light curves alone."""

    strata: NDArray[np.int32]
    """(s,) numbers of ``strata_of``."""
    values: NDArray[np.float32]
    """(s, SHAPE), finite."""
    _spaces: Mapping[int, _Space] = field(init=False)

    def __post_init__(self) -> None:
        """Sort by stratum."""
        spaces = {number: _Space(self.values[self.strata == number]) for number in np.unique(self.strata).tolist()}
        object.__setattr__(self, "_spaces", spaces)

    @staticmethod
    def none() -> Shapes:
        """Of no stars: nothing has a distance."""
        return Shapes(np.zeros(0, np.int32), np.zeros((0, len(SHAPE)), np.float32))

    @staticmethod
    def of(strata: NDArray[np.integer], values: NDArray[np.float32]) -> Shapes:
        """Those of n stars that have a shape: ``values`` (n, SHAPE), NaN for others, of ``strata`` (n,)."""
        there = np.isfinite(values).all(axis=1) & (strata >= 0)
        return Shapes(strata[there].astype(np.int32), values[there])

    def distance(self, values: NDArray[np.float32], strata: NDArray[np.integer], k: int) -> NDArray[np.float64]:
        """(n,) mean distance of ``values`` (n, SHAPE) to the k nearest stars of their ``strata`` (n,).

        NaN where a value is, or where there are no such stars.
        """
        found = np.full(len(values), np.nan)
        there = np.isfinite(values).all(axis=1)
        for number, space in self._spaces.items():
            rows = np.flatnonzero(there & (strata == number))
            if len(rows) and len(space) >= k:
                found[rows] = space.distance(values[rows], k)
        return found


class _Space:
    """Known stars of one stratum, each feature by its rank as a deviate of the normal distribution."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._sorted = np.sort(values, axis=0)
        size, normal = len(values), NormalDist()
        # By twice the rank, which of equal values is that of their middle.
        ranks = (np.arange(2 * size + 1) + 1.0) / (2.0 * size + 2.0)
        deviates = np.array([normal.inv_cdf(rank) for rank in ranks.tolist()], np.float32)
        self._deviates = np.clip(deviates, -_LIMIT, _LIMIT)
        self._known = self._even(values)
        self._squares = np.square(self._known).sum(axis=1)

    def __len__(self) -> int:
        return len(self._known)

    def _even(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, SHAPE) deviates."""
        columns = []
        for known, column in zip(self._sorted.T, values.T, strict=True):
            twice = np.searchsorted(known, column, side="left") + np.searchsorted(known, column, side="right")
            columns.append(self._deviates[twice])
        return np.stack(columns, axis=1)

    def distance(self, values: NDArray[np.float32], k: int) -> NDArray[np.float64]:
        """(n,) mean Euclidean distance of ``values`` (n, SHAPE) to the k nearest stars."""
        even = self._even(values)
        with one_blas_thread():
            products = even @ self._known.T
        index = np.argpartition(self._squares - 2.0 * products, k - 1, axis=1)[:, :k]
        # From the differences: the product rounds as the number of rows has it, and a score is of its object alone.
        each = np.linalg.norm((self._known[index] - even[:, None]).astype(np.float64), axis=2)
        result: NDArray[np.float64] = np.sort(each, axis=1).mean(axis=1)
        return result
