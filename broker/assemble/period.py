"""Period search: a coarse periodogram by one non-uniform FFT, then harmonic fits at its highest peaks.

A plain Lomb-Scargle search evaluates the whole frequency grid finely enough for the final period. Here the
grid is only fine enough not to step over a peak (two points a peak width), costs one transform instead of
the four of a floating-mean Lomb-Scargle, and a model of several harmonics decides between the peaks. That
decides better, too: daily and yearly aliases of a signal fit one sine about equally well, but not its shape.
Bands share the shape and have an offset each; the coarse grid takes that offset for the band's mean.

The search is most of what an alert of a long light curve costs, and a few more points hardly ever change which peak is
right. ``refine_period`` fits harmonics only around the candidates that an earlier search was left with
(``broker.assemble.kept`` says when that is enough).
"""

from __future__ import annotations

import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.harmonics import MOST_HARMONICS, STEPS, band_means, best_candidates, turn_fraction

if TYPE_CHECKING:
    import finufft

MAX_FREQUENCY: Final = 24.0
"""Highest frequency searched, cycles/day: delta Scuti stars reach periods of about 0.04 day."""
SAMPLES_PER_PEAK: Final = 2
"""Coarse grid points in one peak width 1/T; at 2 the power between grid points falls by at most 19 %."""
MIN_POINTS_FOR_PERIOD: Final = 10
HARMONICS: Final = MOST_HARMONICS
"""Harmonics of the model that compares candidate periods."""
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 16, 64
_FITTED_POINTS: Final = 3200
"""Points times candidates: few points cost little to fit, and their coarse periodogram says less."""
_BAND_MODES: Final = 8192
KEPT_CANDIDATES: Final = 16
"""Frequencies that a search leaves for ``refine_period``: the best, the second and the next best fits."""
_FEWEST_REFINED: Final = 6
"""So many of them are refined however many points there are; of fewer points more, which cost no more."""
_REFINED_POINTS: Final = 800
"""Points times candidates that are refined, at least."""
_REVISION: Final = 1
"""To be raised with any change of this module or of the harmonic fits that changes what is found."""
SEARCH_VERSION: Final = zlib.crc32(
    repr(
        (_REVISION, MAX_FREQUENCY, SAMPLES_PER_PEAK, MIN_POINTS_FOR_PERIOD, HARMONICS, _FEWEST_CANDIDATES,
         _MOST_CANDIDATES, _FITTED_POINTS, STEPS, KEPT_CANDIDATES, _FEWEST_REFINED,
         _REFINED_POINTS)
    ).encode()
)  # fmt: skip
"""Tells results of this search from those of another code or other parameters, 32 bits."""


@dataclass(frozen=True, slots=True)
class PeriodSearch:
    """Outcome of the search in one light curve."""

    frequency: float
    """Best frequency in cycles/day, NaN where no search was possible."""
    r_squared: float
    """Share of the weighted variance that HARMONICS harmonics explain at ``frequency``, 0 to 1."""
    second_frequency: float
    """Frequency of the best candidate that is neither ``frequency`` nor a simple ratio of it."""
    second_r_squared: float
    candidates: tuple[tuple[float, float], ...] = ()
    """At most KEPT_CANDIDATES frequencies in cycles/day with their R^2: ``frequency``, ``second_frequency`` (NaN where
    there is none), then the candidates that fit next best."""


NO_PERIOD: Final = PeriodSearch(float("nan"), 0.0, float("nan"), 0.0)


_PLANNED_MODES: Final = 1 << 22
"""Modes of all plans that a thread keeps, of one transform after another: these take some 60 MB."""


class _Plans(threading.local):
    """Transform plans of this thread: making one costs more than using it, and none may be shared.

    The plans used last are kept, within _PLANNED_MODES: light curves of other lengths need other plans, without end.
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[int, int], finufft.Plan] = OrderedDict()
        self._modes = 0

    def get(self, modes: int, bands: int) -> finufft.Plan:
        import finufft  # of those who import this, most never search

        key = modes, bands
        if key not in self._plans:
            self._plans[key] = finufft.Plan(
                1, (modes,), n_trans=bands, eps=1e-3, isign=-1, dtype="complex64", nthreads=1, upsampfac=1.25
            )
            self._modes += modes * bands
            while self._modes > _PLANNED_MODES and len(self._plans) > 1:
                (old_modes, old_bands), _ = self._plans.popitem(last=False)
                self._modes -= old_modes * old_bands
        self._plans.move_to_end(key)
        return self._plans[key]


_PLANS: Final = _Plans()


def coarse_power(
    time: NDArray[np.float64], weighted: NDArray[np.float64], max_frequency: float
) -> tuple[float, NDArray[np.float32]]:
    """Classical periodogram |sum w y exp(-2 pi i f t)|^2 on a grid of step 1 / (SAMPLES_PER_PEAK T).

    ``time`` (n,) days from 0 to T, ``weighted`` (n,) weight times mean-subtracted value. Returns the step in
    cycles/day and power (m,), unnormalised, at frequencies step, 2 step, ... ``max_frequency``.

    The frequencies are done in bands of _BAND_MODES, each a transform of the signal shifted by the band's
    middle: transforms that fit the processor's cache are three times as fast as one over all frequencies.
    """
    step = _coarse_step(_span(time))
    count = max(int(max_frequency / step), 2)
    modes = min(_BAND_MODES, max(256, 1 << (count - 1).bit_length()))
    bands = -(-count // modes)
    cycles = time * step
    # A transform gives modes -modes/2 .. modes/2 - 1 around the band's middle; the first band's lowest is 1.
    shift = turn_fraction(np.outer(np.arange(bands) * modes + modes // 2 + 1, cycles)).astype(np.float32)
    shift *= np.float32(-2.0 * np.pi)
    strength = np.empty(shift.shape, np.complex64)
    weighted32 = weighted.astype(np.float32)
    np.multiply(weighted32, np.cos(shift), out=strength.real)
    np.multiply(weighted32, np.sin(shift), out=strength.imag)
    angle = (2.0 * np.pi * turn_fraction(cycles)).astype(np.float32)
    plan = _PLANS.get(modes, bands)
    plan.setpts(angle)
    amplitude = plan.execute(strength if bands > 1 else strength[0]).reshape(-1)[:count]
    return step, np.square(amplitude.real) + np.square(amplitude.imag)


def _coarse_step(span: float) -> float:
    """Step of the coarse grid, cycles/day, of a light curve of ``span`` days."""
    return 1.0 / (SAMPLES_PER_PEAK * span)


def _span(time: NDArray[np.float64]) -> float:
    """Days from the first time to the last, 0 of none."""
    return float(time.max() - time.min()) if len(time) else 0.0


def find_period(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp] | None = None,
    max_frequency: float = MAX_FREQUENCY,
) -> PeriodSearch:
    """Best period of one light curve.

    ``time`` (n,) days, ``value`` (n,) brightness in any unit, ``weight`` (n,) summing to 1, all sorted by band;
    ``band_start`` (b + 1,) from 0 to n, None where there is one band. NO_PERIOD where there are fewer than
    MIN_POINTS_FOR_PERIOD points or they span less than two hours.
    """
    if not _long_enough(time, _span(time)):
        return NO_PERIOD
    band_start = _all_or(band_start, time)
    value = value - band_means(value, weight, band_start)
    step, power = coarse_power(time - np.min(time), weight * value, max_frequency)
    peaks = _highest_peaks(power, int(np.clip(_FITTED_POINTS // len(time), _FEWEST_CANDIDATES, _MOST_CANDIDATES)))
    nearest = (STEPS * (peaks + 1)).astype(np.float64)
    return _decide(time, value, weight, band_start, nearest, step, STEPS // 2)


def refine_period(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp] | None,
    candidates: Sequence[float],
    earlier_span: float,
) -> PeriodSearch:
    """Best period near one of the frequencies that an earlier search of the light curve was left with.

    ``time``, ``value``, ``weight``, ``band_start`` as in ``find_period``; ``candidates``, at least one, in cycles/day,
    of which the last are left out where there are many points; ``earlier_span`` days, how long the light curve was
    then: half a coarse grid step of that time is looked at on either side of each, as finely as the present length
    asks for. NO_PERIOD as from ``find_period``.

    The frequencies looked at are among those that ``find_period`` would fit around the same peaks: where these are the
    right ones, both find the same, to the last bit.
    """
    span = _span(time)
    if not _long_enough(time, span):
        return NO_PERIOD
    step = _coarse_step(span)
    aside = math.ceil(STEPS // 2 * max(1.0, span / earlier_span))
    most = min(max(_REFINED_POINTS // len(time), _FEWEST_REFINED), KEPT_CANDIDATES)
    nearest = np.rint(np.array(candidates[:most], np.float64) * (STEPS / step))
    return _decide(time, value, weight, _all_or(band_start, time), nearest, step, aside)


def _long_enough(time: NDArray[np.float64], span: float) -> bool:
    return len(time) >= MIN_POINTS_FOR_PERIOD and span >= 1.0 / 12.0


def _all_or(band_start: NDArray[np.intp] | None, time: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where each band begins, all points being of one where that is not given."""
    return np.array([0, len(time)], np.intp) if band_start is None else band_start


def _decide(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    band_start: NDArray[np.intp],
    nearest: NDArray[np.float64],
    step: float,
    aside: int,
) -> PeriodSearch:
    """The best near the candidates ``nearest`` (c,), as in ``best_candidates``; ``step`` coarse."""
    harmonics = min(HARMONICS, max(1, len(time) // 8))
    found = best_candidates(time, value, weight, band_start, nearest, step, aside, harmonics, KEPT_CANDIDATES)
    candidates = tuple((frequency, r_squared) for frequency, r_squared in found.tolist())
    return PeriodSearch(*candidates[0], *candidates[1], candidates)


def _highest_peaks(power: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` highest local maxima of ``power``, at least one."""
    inner = power[1:-1]
    maxima = np.flatnonzero((inner >= power[:-2]) & (inner > power[2:])) + 1
    # The lowest frequency counts too where power rises towards it: a trend longer than the light curve.
    if power[0] > power[1]:
        maxima = np.append(maxima, 0)
    if len(maxima) <= count:
        return maxima if len(maxima) else np.array([int(np.argmax(power))])
    return maxima[np.argpartition(power[maxima], -count)[-count:]]
