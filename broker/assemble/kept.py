"""Which alerts need a full period search, and which only a refinement of the last one's result.

Of each full search of an object some candidate frequencies are kept (``KeptSearch``, which the store holds beside the
object). Where the light curve is the same again, so is the result; else it is refined, as long as

- the light curve holds the points that the search was made from, as they were: points of an exposure that were
  replaced or removed in between change a checksum. Only the oldest may be gone, as where an object has ``max_points``;
- points gone and points new, and the time that the light curve spans, are no more than a set fraction beyond it; and
- the best fit near the candidates leaves no more of the variance unexplained than it did, by WORSE_RATIO and
  WORSE_FLOOR.

Else the full search is done again, and always where there are fewer than FEW points: of these, each one more may change
which peak is the highest, and a search costs the least. (Among 1,200 stars of ASAS and Catalina, 1 to 7 % had another
class at 20 and 50 points after searches up to 20 % old, 0.3 to 2 % from 100 on: ``benchmarks/replay.py``.)

As each of these takes a fraction more of points or of time than the one before, an object of n points over T days has
had (log(n / FEW) + log(12 T)) / log(1 + fraction) of them at most, beside those of few points and of worse fits. Once
it has ``max_points``, there is one for so many alerts as half the fraction of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble import point_passes
from broker.assemble.period import MAX_FREQUENCY, NO_PERIOD, SEARCH_VERSION, PeriodSearch, find_period, refine_period
from broker.records import KeptSearch, LightCurve, ObjectState, TimeSystem

PARTS: Final = 8
"""Parts of a light curve's time with a checksum each."""
FEW: Final = 50
"""Of fewer points nothing is kept."""
WORSE_RATIO: Final = 1.1
WORSE_FLOOR: Final = 0.005
"""A fit is worse where it leaves more unexplained than WORSE_RATIO times what was left before, and WORSE_FLOOR of the
variance more: of a light curve without noise, that ratio would be one of rounding errors."""
_BELOW_ALL: Final = 1e-7
_ABOVE_ALL: Final = 2 * MAX_FREQUENCY
"""Cycles/day, outside of what a search finds; with frequencies of 1e-310 and 1e305 periods and phases overflow."""
_SYSTEMS: Final = tuple(TimeSystem)
_MIX: Final = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
"""Odd factors of mixing functions of 64 bits (splitmix64, and Vigna's and Wang's)."""


class Reason(StrEnum):
    """Why a full period search was done, or REFINED where none was; the values are those of the metric."""

    REFINED = "refined"
    FEW = "few"
    """There are fewer points than FEW."""
    FIRST = "first"
    """Nothing was kept."""
    GROWN = "grown"
    CHANGED = "changed"
    """Points were replaced or removed, or times or brightness are of another kind."""
    OTHER_SEARCH = "other_search"
    """What was kept is of other code or other parameters."""
    WORSE = "worse"


@dataclass(frozen=True, slots=True, eq=False)
class KeptSearches:
    """What is kept of each of n objects, and how their points were observed."""

    kept: Sequence[KeptSearch | None]
    growth: float
    """Fraction by which a light curve may grow before it is searched again; 0 for at every new point."""
    mjd: NDArray[np.float64]
    """(m,) of all points of all objects, one light curve after another, as observed: before times are corrected."""
    stamp: NDArray[np.uint64]
    """(m,) by which a point is known, its values included."""
    system: NDArray[np.int64]
    """(n,) which times these are: even where they are corrected to the barycentre."""

    @staticmethod
    def of(states: Sequence[ObjectState], growth: float) -> KeptSearches:
        """Of a batch of objects."""
        curves = [state.light_curve for state in states]
        system = [2 * _SYSTEMS.index(s.time_system) + (not np.isfinite(s.ra + s.dec)) for s in states]
        return KeptSearches(
            [s.kept_search for s in states], growth, _column(curves, "mjd").astype(np.float64), _stamps(curves),
            np.array(system, np.int64),
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class PeriodSearches:
    """Period searches in the objects of a batch; ``reason`` and ``kept`` are filled by ``find``."""

    earlier: KeptSearches
    index: NDArray[np.intp]
    """(p,) of the points that are searched, sorted by object: their numbers among those of ``earlier``."""
    start: NDArray[np.intp]
    """(n + 1,) where those of each object begin."""
    total: NDArray[np.bool_]
    """(n,) whether brightness is total flux."""
    reason: list[Reason | None] = field(init=False)
    """(n,) None where there are too few points for a period."""
    kept: list[KeptSearch | None] = field(init=False)
    """(n,) what is to be kept of a new full search; None where there was none."""
    _unchanged: NDArray[np.bool_] = field(init=False)
    """(n,) whether the points are those of the kept search, no more and no less, as where an alert comes again."""

    def __post_init__(self) -> None:
        self.reason = list(self._reasons())
        self.kept = [None] * len(self.reason)

    def find(
        self,
        row: int,
        time: NDArray[np.float64],
        value: NDArray[np.float64],
        weight: NDArray[np.float64],
        band_start: NDArray[np.intp],
    ) -> PeriodSearch:
        """The best period of object ``row``, by a refinement where that is enough; else as ``find_period``."""
        before = self.earlier.kept[row]
        if self.reason[row] is Reason.REFINED:
            assert before is not None
            if self._unchanged[row]:
                return PeriodSearch(*before.candidates[0], *before.candidates[1], before.candidates)
            candidates = [frequency for frequency, _ in before.candidates if np.isfinite(frequency)]
            found = refine_period(time, value, weight, band_start, candidates, before.last - before.first)
            if found is not NO_PERIOD and not _is_worse(found.r_squared, before.candidates[0][1]):
                return found
            self.reason[row] = Reason.WORSE
        found = find_period(time, value, weight, band_start)
        if found is NO_PERIOD:
            self.reason[row] = None
        elif self.reason[row] is not Reason.FEW:
            self.kept[row] = self._keep(row, found)
        return found

    def _keep(self, row: int, found: PeriodSearch) -> KeptSearch:
        own = self.index[self.start[row] : self.start[row + 1]]
        mjd = self.earlier.mjd[own]
        first, last = mjd.min(keepdims=True), mjd.max(keepdims=True)
        sums, *_ = point_passes.parts(
            self.earlier.mjd, self.earlier.stamp, own, np.array([0, len(own)]), first, last, PARTS
        )
        return KeptSearch(
            SEARCH_VERSION, self._basis(row), len(own), float(first[0]), float(last[0]),
            tuple((sums[0] & np.uint64(0xFFFFFFFF)).tolist()), found.candidates,
        )  # fmt: skip

    def _basis(self, row: int) -> int:
        return int(2 * self.earlier.system[row] + self.total[row])

    def _reasons(self) -> list[Reason | None]:
        """Whether what is kept of each object can be refined; no loop over points."""
        size = len(self.start) - 1
        count = np.diff(self.start)
        kept = self.earlier.kept
        first, last, then = np.zeros(size), np.ones(size), np.ones(size)
        sums = np.zeros((size, PARTS), np.uint64)
        known = [row for row in np.flatnonzero(count >= FEW).tolist() if _usable(kept[row])]
        for row in known:
            before = kept[row]
            assert before is not None
            first[row], last[row], then[row], sums[row] = before.first, before.last, before.points, before.checksums
        wanted = np.zeros(size, np.bool_)
        wanted[known] = True
        present, new, oldest, newest = point_passes.parts(
            self.earlier.mjd, self.earlier.stamp, self.index, self.start, first, last, PARTS
        )
        same = (present & np.uint64(0xFFFFFFFF)) == sums
        gone = np.maximum(then - (count - new), 0)
        # A part that begins before the oldest point that is left has lost points.
        begins = first[:, None] + (last - first)[:, None] * np.arange(PARTS) / PARTS
        intact = np.all(same | (begins < oldest[:, None]), axis=1)
        self._unchanged = wanted & intact & (new == 0) & (gone == 0)
        with np.errstate(invalid="ignore"):
            beyond = np.maximum((new + gone) / then, (newest - oldest) / (last - first) - 1)
        reasons: list[Reason | None] = [
            None if not n else Reason.FEW if n < FEW else Reason.FIRST for n in count.tolist()
        ]
        for row in known:
            before = kept[row]
            assert before is not None
            if before.search != SEARCH_VERSION:
                reasons[row] = Reason.OTHER_SEARCH
            elif not intact[row] or before.basis != self._basis(row):
                reasons[row] = Reason.CHANGED
            else:
                reasons[row] = Reason.GROWN if beyond[row] > self.earlier.growth else Reason.REFINED
        return reasons


def _usable(kept: KeptSearch | None) -> bool:
    """Whether something is kept that can be compared at all; stored values may say anything."""
    return (
        kept is not None
        and len(kept.checksums) == PARTS
        and kept.points > 0
        and 0 < kept.last - kept.first < np.inf
        and len(kept.candidates) > 1
        and all(_BELOW_ALL < f < _ABOVE_ALL or (f != f and at == 1) for at, (f, _) in enumerate(kept.candidates))
    )


def _is_worse(r_squared: float, before: float) -> bool:
    left, was = 1.0 - r_squared, 1.0 - before
    return left > WORSE_RATIO * was and left > was + WORSE_FLOOR


def _column(curves: Sequence[LightCurve], name: str) -> NDArray[np.generic]:
    """One column of all light curves; float32 where there is none."""
    parts = [getattr(curve, name) for curve in curves]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _stamps(curves: Sequence[LightCurve]) -> NDArray[np.uint64]:
    """(m,) 64 bits of each point that its time, fluxes, error and band decide."""
    stamp: NDArray[np.uint64] = _column(curves, "band").astype(np.uint64) * _MIX[4]
    for name, factor in zip(("mjd", "flux", "flux_error", "reference_flux"), _MIX, strict=False):
        value = _column(curves, name).astype(np.float64)
        # One NaN and one zero of the several that there are.
        value = np.where(np.isnan(value), np.nan, value + 0.0)
        stamp ^= value.view(np.uint64)
        stamp *= factor
        stamp ^= stamp >> np.uint64(31)
    return stamp
