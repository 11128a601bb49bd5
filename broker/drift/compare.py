"""How far counts of a window are from those of a baseline, and whether chance explains it.

- Class mix, and shares of the bands: population stability index, sum of (p - q) ln(p / q). How significant it is, the
  share of the one class says that moved most (chi-squared of one degree of freedom): one class of twelve that doubles
  is lost in the sum over all.
- Histograms: the two-sample Kolmogorov-Smirnov distance D at the bins' edges; of 4 D^2 nm/(n+m) the tail is twice that
  of a chi-squared variable of two degrees of freedom.
- Embeddings: Hotelling's T^2 of principal axes and random Fourier features, which sees a shift of the mean and, by the
  second, other changes of the distribution (Chwialkowski et al. 2015, arXiv 1506.04725). The distance is that of the
  means in standard deviations.

All three suppose independent alerts. Those of one night are not: an object comes again, and another night looks at
another field. So each statistic is divided by what it is, on average, when each block (a day) of the baseline is
compared with the others (overdispersion; McCullagh & Nelder 1989, section 4.5), which grows with the number of alerts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.drift.counts import CLASSES, FEATURES, SCALE, SLICES, Counts

LEAST: Final = {
    "classes": 0.02, "anomaly": 0.05, "probability": 0.05, "embedding": 0.2, "brightness": 0.05, "colour": 0.05,
    "error": 0.05, "bands": 0.1,
}  # fmt: skip
"""Distances that are not worth a person's time, however significant: at LSST's rate everything is significant."""
SIGNIFICANCE: Final = 5.0
"""In standard deviations of a normal distribution: a chance of 3e-7, for a hundred tests every minute."""
MIN_ALERTS: Final = 100
"""In the window and in the baseline, that have the quantity: of fewer nothing is said."""
MIN_BLOCKS: Final = 3
ALL_BANDS: Final = "all"
"""In place of a band, for the shares of the bands, and for what is looked for in all bands together, too."""
_OF_ALL: Final = ("classes", "anomaly", "probability", "embedding")
"""What is not of a band's own, so that the alerts of all bands together say more."""
_RARE: Final = 5.0
"""Expected alerts of a class; rarer ones are put together."""
_KS_MEAN: Final = math.pi**2 / 3
"""Mean of 4 D^2 nm/(n+m) for equal distributions: 4 times that of Kolmogorov's distribution squared, pi^2/12."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One quantity of one survey and band."""

    survey: str
    band: str
    quantity: str
    distance: float
    """Population stability index, Kolmogorov-Smirnov distance, or standard deviations."""
    significance: float
    """How unlikely that is by chance, in standard deviations of a normal distribution; below 0 where it is likely."""
    overdispersion: float
    """How much more the baseline's own blocks differ than independent alerts would; 1 or more."""
    alerts: int
    """In the window, that have the quantity."""
    remark: str = ""
    """Of classes and bands which moved most, and from which share to which."""

    @property
    def detected(self) -> bool:
        """Whether it is neither chance nor small."""
        return self.significance >= SIGNIFICANCE and self.distance >= LEAST[self.quantity]


@dataclass(frozen=True, slots=True)
class _Statistic:
    chi: float
    """As chi-squared of ``freedom`` degrees of freedom, if alerts were independent; -1 where nothing can be said."""
    freedom: int
    mean: float
    """Of ``chi``, by chance."""
    distance: float
    size: float
    """nm / (n + m)"""
    alerts: int
    single: NDArray[np.float64] | None = None
    """Of classes and bands: chi-squared of each by itself, of one degree of freedom."""


_NOTHING: Final = _Statistic(-1.0, 1, 1.0, 0.0, 0.0, 0)


def compare(window: Counts, blocks: Sequence[Counts]) -> list[Drift]:
    """What can be said of each survey, band and quantity, from ``window`` and the blocks of the baseline.

    Nothing of a survey and band that the baseline does not know: that is new, and no drift. Its share of the survey's
    alerts is one.
    """
    found: list[Drift | None] = []
    for (survey, band), own in sorted(window.items()):
        parts = [block[survey, band] for block in blocks if (survey, band) in block]
        found += [_drift(own, parts, survey, band, quantity) for quantity in SLICES]
    for survey in sorted({survey for survey, _ in window}):
        bands = sorted({band for counts in (window, *blocks) for name, band in counts if name == survey})
        if len(bands) < 2:
            continue
        now, *past = (_of_survey(counts, survey) for counts in (window, *blocks))
        parts = [part for part in past if part is not None]
        if now is not None:
            found += [_drift(now, parts, survey, ALL_BANDS, quantity) for quantity in _OF_ALL]
        rows = [_band_alerts(counts, survey, bands) for counts in (window, *blocks)]
        found.append(_drift(rows[0], [row for row in rows[1:] if row.any()], survey, ALL_BANDS, "bands", bands))
    return [drift for drift in found if drift is not None]


def _of_survey(counts: Counts, survey: str) -> NDArray[np.int64] | None:
    own = [vector for (name, _), vector in counts.items() if name == survey]
    return np.sum(own, axis=0) if own else None


def _band_alerts(counts: Counts, survey: str, bands: Sequence[str]) -> NDArray[np.int64]:
    return np.array([counts[survey, band][0] if (survey, band) in counts else 0 for band in bands], np.int64)


def _drift(
    window: NDArray[np.int64],
    blocks: Sequence[NDArray[np.int64]],
    survey: str,
    band: str,
    quantity: str,
    names: Sequence[str] = CLASSES,
) -> Drift | None:
    """None where there are too few alerts or blocks. ``names`` are those of the classes or bands."""
    if len(blocks) < MIN_BLOCKS:
        return None
    total = np.sum(blocks, axis=0)
    now = _statistic(window, total, quantity)
    if now.chi < 0:
        return None
    past = [s for s in (_statistic(block, total - block, quantity) for block in blocks) if s.chi >= 0]
    if len(past) < MIN_BLOCKS:
        return None
    # What fields and nights add is a distance of its own, so that it counts the more, the more alerts there are.
    growth = max(1.0, now.size / float(np.mean([s.size for s in past])))
    spread = 1.0 + growth * float(_excess([s.chi / s.mean for s in past]))
    if now.single is not None:
        # A class that comes and goes more than the others is allowed more.
        own = np.maximum(spread, 1.0 + growth * _excess([s.single for s in past if s.single is not None]))
        chi = now.single / own
        most = int(np.argmax(chi))
        p, q = (part[most] / part.sum() for part in _rows((window, total), quantity))
        significance, remark = _normal(float(chi[most]), 1), f"{names[most]} {q:.3f} -> {p:.3f}"
        return Drift(survey, band, quantity, now.distance, significance, float(own[most]), now.alerts, remark)
    distance = now.distance
    if quantity == "embedding":  # whose square has a mean by chance
        distance = math.sqrt(max(0.0, distance**2 - spread * now.freedom / now.size))
    return Drift(survey, band, quantity, distance, _normal(now.chi / spread, now.freedom), spread, now.alerts)


def _excess(ratios: Sequence[float] | Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """By how much the mean of ``ratios``, one a block, is above 1, two of its standard errors added: few nights tell
    only roughly how much nights differ."""
    values = np.array(ratios)
    upper = values.mean(axis=0) + 2.0 * values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.asarray(np.maximum(0.0, upper - 1.0), np.float64)


def _rows(vectors: Sequence[NDArray[np.int64]], quantity: str) -> list[NDArray[np.int64]]:
    return [vector if quantity == "bands" else vector[SLICES[quantity]] for vector in vectors]


def _statistic(first: NDArray[np.int64], second: NDArray[np.int64], quantity: str) -> _Statistic:
    a, b = _rows((first, second), quantity)
    if quantity == "embedding":
        return _hotelling(a, b)
    return _homogeneity(a, b) if quantity in ("classes", "bands") else _kolmogorov(a, b)


def _size(n: float, m: float) -> float | None:
    return None if n < MIN_ALERTS or m < MIN_ALERTS else n * m / (n + m)


def _homogeneity(first: NDArray[np.int64], second: NDArray[np.int64]) -> _Statistic:
    n, m = int(first.sum()), int(second.sum())
    size = _size(n, m)
    if size is None:
        return _NOTHING
    both = (first + second).astype(np.float64)
    rare = both * min(n, m) / (n + m) < _RARE
    a, b = (np.append(part[~rare], part[rare].sum()).astype(np.float64) for part in (first, second))
    a, b = a[a + b > 0], b[a + b > 0]
    # Each against all others; nothing of a rare one, whose normal approximation does not hold.
    share = both / (n + m)
    variance = share * (1.0 - share) / size
    single = np.where(
        rare | (variance <= 0), 0.0, (first / n - second / m) ** 2 / np.where(variance > 0, variance, 1.0)
    )
    if len(a) < 2:
        return _Statistic(0.0, 1, 1.0, 0.0, size, n, single)
    chi = float(np.sum((a * math.sqrt(m / n) - b * math.sqrt(n / m)) ** 2 / (a + b)))
    # Half an alert in each bin: a class that does not come at all is far, not infinitely far.
    p, q = (part + 0.5 for part in (a, b))
    p, q = p / p.sum(), q / q.sum()
    return _Statistic(chi, len(a) - 1, len(a) - 1.0, float(np.sum((p - q) * np.log(p / q))), size, n, single)


def _kolmogorov(first: NDArray[np.int64], second: NDArray[np.int64]) -> _Statistic:
    n, m = int(first.sum()), int(second.sum())
    size = _size(n, m)
    if size is None:
        return _NOTHING
    distance = float(np.abs(np.cumsum(first) / n - np.cumsum(second) / m).max())
    return _Statistic(4.0 * distance**2 * size, 2, _KS_MEAN, distance, size, n)


def _hotelling(first: NDArray[np.int64], second: NDArray[np.int64]) -> _Statistic:
    n, m = int(first[0]), int(second[0])
    size = _size(n, m)
    if size is None:
        return _NOTHING
    means, scatter = zip(*(_moments(part) for part in (first, second)), strict=True)
    difference = means[0] - means[1]
    pooled = (scatter[0] + scatter[1]) / (n + m - 2)
    # Steps of the counts keep a feature that is always the same from being infinitely exact.
    pooled[np.diag_indices(FEATURES)] += 1.0 / SCALE**2
    squared = float(difference @ np.linalg.solve(pooled, difference))
    return _Statistic(size * squared, FEATURES, float(FEATURES), math.sqrt(max(0.0, squared)), size, n)


def _moments(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(FEATURES,) mean and (FEATURES, FEATURES) sum of squares about it."""
    n = float(counts[0])
    mean = counts[1 : 1 + FEATURES] / n / SCALE
    products = np.zeros((FEATURES, FEATURES))
    products[np.triu_indices(FEATURES)] = counts[1 + FEATURES :] / SCALE**2
    products += np.triu(products, 1).T
    return mean, products - n * np.outer(mean, mean)


def _normal(chi: float, freedom: int) -> float:
    """Standard deviations of a normal distribution with the tail of chi-squared (Wilson & Hilferty 1931)."""
    variance = 2.0 / (9.0 * freedom)
    return float(((chi / freedom) ** (1.0 / 3.0) - (1.0 - variance)) / math.sqrt(variance))


def add(parts: Sequence[Mapping[tuple[str, str], NDArray[np.int64]]]) -> Counts:
    """The sum of counts."""
    total: Counts = {}
    for part in parts:
        for group, vector in part.items():
            total[group] = total[group] + vector if group in total else vector
    return total
