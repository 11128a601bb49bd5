"""The two filters of ASAS-SN in tables that do not name them.

ASAS-SN (Shappee et al. 2014, ApJ 788, 48; Kochanek et al. 2017, PASP 129, 104502) observed in V with its first eight
cameras, ba to bh, and since the autumn of 2017 in g with twelve others, bi to bt; in the autumn of 2018 the first
eight changed to g, too (Jayasinghe et al. 2019, MNRAS 485, 961; https://asas-sn.osu.edu, note of September 2018).
Earlier points are in V and later ones in g. Between the two dates a point's camera tells, or on which of two levels it
lies: g - V is -0.2 for the hottest and 1.3 for the coolest stars (both are on the scale of APASS; Jester et al. 2005,
AJ 130, 873).
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.bands import BAND_CODE

Array = NDArray[np.float64]

FIRST_G: Final = 57_980.0
"""MJD (August 2017) before which there is no g."""
LAST_V: Final = 58_490.0
"""MJD (January 2019) after which there is no V."""
V: Final = BAND_CODE["asassn:V"]
G: Final = BAND_CODE["asassn:g"]
UNNAMED: Final = 128
"""Instead of a band's code: V or g, but nothing says which."""
_LEVELS: Final = (-0.3, 1.5)
"""The least and the largest g - V, magnitudes."""
_STEP: Final = 0.05
_SMOOTHINGS: Final = (400.0, 20.0)
"""Days over which variations are followed (standard deviation of a Gaussian): by default, and of slow variables."""
_SLOW: Final = 0.75
"""A variable is slow where the shorter of these leaves less than such a share of the scatter about the longer."""
_CERTAIN: Final = 0.9
"""Probability from which a point is taken to be in a filter."""
_EVIDENCE: Final = 10.0
"""Logarithm of the ratio of likelihoods from which two levels are seen where only one filter is sure to be there."""
_UNSURE: Final = 0.2
_LAST_CHANGED: Final = 7
"""Number of the last camera that was in V, bh."""
_ROUNDS: Final = 6
_MOST: Final = 1500
"""Points of one side that the levels are learnt from: those next to the overlap."""


def is_asassn(text: str) -> bool:
    """Whether a file, a column or an object is named after ASAS-SN, however it is spelled."""
    return "asassn" in re.sub(r"[^a-z]", "", text.lower())


def bands_of_cameras(camera: Sequence[str | None], mjd: Array) -> NDArray[np.uint8]:
    """(n,) V, G or, where a name is none of ASAS-SN's cameras, UNNAMED."""
    number = np.array([_camera_number(name) for name in camera], np.int64)
    known = np.where((number <= _LAST_CHANGED) & (mjd <= LAST_V), V, G)
    return np.where(number >= 0, known, UNNAMED).astype(np.uint8)


def _camera_number(name: str | None) -> int:
    """0 for ``ba`` to 25 for ``bz``, 26 and more for ``bA`` and those after it; -1 for what is no camera."""
    match = re.fullmatch(r"b([a-zA-Z])", (name or "").strip())
    return string.ascii_letters.index(match[1]) if match else -1


def split_filters(mjd: Array, magnitude: Array, band: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``band`` (n,) of the points of one star with V or G for UNNAMED, from times (n,) and magnitudes (n,).

    Where both filters were in use, a smooth variation, the same in both, and the star's own scatter about it are
    learnt together with the difference of the levels (expectation-maximisation). What is less than 90 % sure remains
    UNNAMED; with it all others of these months where it is more than a fifth, since those that remained would be the
    brightest in one filter and the faintest in the other.
    """
    asked = band == UNNAMED
    result = np.where(asked, np.where(mjd < (FIRST_G + LAST_V) / 2, V, G), band).astype(np.uint8)
    between = asked & (mjd >= FIRST_G) & (mjd <= LAST_V) & np.isfinite(magnitude)
    if between.any():
        found = _by_level(mjd, magnitude, between, result)
        if np.mean(found == UNNAMED) > _UNSURE and np.sum(~between) > np.sum(between):
            found[:] = UNNAMED
        result[between] = found
    return result


def _by_level(mjd: Array, magnitude: Array, between: NDArray[np.bool_], known: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """V, G or UNNAMED of the points ``between``; the others are as ``known`` says."""
    finite = np.isfinite(magnitude)
    before = np.flatnonzero(finite & ~between & (known == V))
    after = np.flatnonzero(finite & ~between & (known == G))
    before = before[np.argsort(mjd[before], kind="stable")][-_MOST:]
    after = after[np.argsort(mjd[after], kind="stable")][:_MOST]
    asked = np.flatnonzero(between)
    rows = np.concatenate([before, asked, after])
    time, value = mjd[rows], magnitude[rows]
    is_asked = np.zeros(len(rows), np.bool_)
    is_asked[len(before) : len(before) + len(asked)] = True
    in_g = np.repeat([0.0, np.nan, 1.0], [len(before), len(asked), len(after)])
    parts = [rows_of for rows_of in (in_g == 0, in_g == 1) if rows_of.any()] or [is_asked]
    left = [np.concatenate([_residuals(time[p], value[p], days) for p in parts]) for days in _SMOOTHINGS]
    slow = _width(left[1]) < _SLOW * _width(left[0])
    weight = _weights(time, _SMOOTHINGS[slow])
    scatter = _Scatter(left[slow])
    expected, spread = _level(value, in_g)
    # The share of g grows from one end to the other.
    share = np.clip((time[is_asked] - FIRST_G) / (LAST_V - FIRST_G), 0.1, 0.9)
    best, likelihood = np.full(len(asked), np.nan), -np.inf
    for offset in np.arange(*_LEVELS, _STEP):
        found, own = _assign(value, in_g, weight, is_asked, float(offset), share, scatter)
        own -= 0.5 * ((offset - expected) / spread) ** 2
        if own > likelihood:
            best, likelihood = found, own
    if not (len(before) and len(after)):
        smooth = weight[is_asked] @ value
        alone = float(np.log(scatter.density(value[is_asked] - smooth)).sum())
        if likelihood - alone < _EVIDENCE:
            return np.full(len(asked), G if len(after) else V, np.uint8)
    return np.where(best >= _CERTAIN, G, np.where(best <= 1 - _CERTAIN, V, UNNAMED)).astype(np.uint8)


def _level(value: Array, in_g: Array) -> tuple[float, float]:
    """g - V as the points whose filter is known say, and how far a star that varies slowly may be from it."""
    v, g = value[in_g == 0], value[in_g == 1]
    if len(v) < 10 or len(g) < 10:
        return 0.5, 1.0
    parts = [np.median(part) - np.median(own) for own in (v, g) for part in np.array_split(own, min(len(own) // 10, 8))]
    return float(np.median(g) - np.median(v)), float(max(0.03, 1.5 * np.std(parts)))


def _weights(time: Array, days: float) -> Array:
    """(n, n) of every other point in the smooth variation at each."""
    weight = np.exp(-0.5 * ((time[:, None] - time[None]) / days) ** 2) + 1e-9
    np.fill_diagonal(weight, 0.0)
    return np.asarray(weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30), np.float64)


def _residuals(time: Array, value: Array, days: float) -> Array:
    """What is left of points in one filter when a smooth variation is taken off."""
    return np.asarray(value - _weights(time, days) @ value, np.float64) if len(value) > 1 else np.zeros(len(value))


def _width(value: Array) -> float:
    """A standard deviation that outliers do not change."""
    low, high = np.quantile(value, [0.16, 0.84])
    return float(high - low) / 2


class _Scatter:
    """Density of the deviations from a smooth variation: a star's own light curve at any phase, and the noise."""

    _BIN: Final = 0.01

    def __init__(self, residuals: Array) -> None:
        limit = 4.0
        edges = np.arange(-limit, limit + self._BIN, self._BIN)
        counts, _ = np.histogram(np.clip(residuals, -limit + 0.01, limit - 0.01), edges)
        width = max(0.02, 0.9 * _width(residuals) * len(residuals) ** -0.2) / self._BIN  # Silverman's rule
        reach = np.arange(-int(4 * width), int(4 * width) + 1)
        smooth = np.convolve(counts, np.exp(-0.5 * (reach / width) ** 2), mode="same")
        self._limit = limit
        self._density = 0.99 * smooth / (smooth.sum() * self._BIN) + 0.01 / (2 * limit)

    def density(self, deviation: Array) -> Array:
        """Density at each deviation, per magnitude."""
        at = np.clip(((deviation + self._limit) / self._BIN).astype(np.intp), 0, len(self._density) - 1)
        return np.asarray(self._density[at], np.float64)


def _assign(
    value: Array, in_g: Array, weight: Array, asked: NDArray[np.bool_], offset: float, share: Array, scatter: _Scatter
) -> tuple[Array, float]:
    """Probability of g of the points ``asked``, if g - V is ``offset``, and the logarithm of their likelihood."""
    probability = share
    likelihood = -np.inf
    filled = np.where(asked, 0.0, in_g)
    for _ in range(_ROUNDS):
        filled[asked] = probability
        smooth = weight[asked] @ (value - offset * filled)
        in_v = (1 - share) * scatter.density(value[asked] - smooth)
        both = in_v + (green := share * scatter.density(value[asked] - smooth - offset))
        probability = green / both
        likelihood = float(np.log(both).sum())
    return probability, likelihood
