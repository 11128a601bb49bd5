"""The union of two light curves.

A point is known by exposure time, band and kind; ``merge`` keeps one point of each. Times are compared to
2e-6 day, a sixth of a second: the same exposure arrives in many packets, and reprocessing or a change of
float format moves it by less, while no survey exposes twice in that time. Times closer than that are one
instant wherever they lie: rounded to a fixed grid, two that are 4e-7 day apart fall on both sides of a
boundary in one case of five. As long as the times of one exposure stay within 2e-6 day and exposures are
further apart than that, merging is idempotent, commutative and associative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.records import LightCurve

TIME_STEP: Final = 2e-6  # days
MAX_POINTS: Final = 2000
"""Points kept of one object in one survey: more than any of the ten classes needs, and 44 kB."""
_DTYPES: Final = (np.float64, np.float32, np.float32, np.float32, np.uint8, np.uint8)
"""Of a light curve's columns."""


def merge(first: LightCurve, second: LightCurve, max_points: int = MAX_POINTS) -> LightCurve:
    """All points of both, in order of time, band and kind; at most ``max_points``, any number where it is 0.

    Where there are more, upper limits go first, which no class is told by, and of the rest the oldest.

    Of two points with one identity and different values the one with a reference flux is kept, then the one
    with the smaller error, then the larger flux, then the larger reference: an order of the values alone.
    Cutting keeps the result independent of order too, as it goes by what identifies a point: one that was cut
    comes after all that are kept, whatever is merged later.
    """
    size = len(first) + len(second)
    columns: list[Any] = [np.empty(size, dtype) for dtype in _DTYPES]
    found = _union()(*_columns(first), *_columns(second), TIME_STEP, max_points, *columns)
    if found < size:
        for column in columns:
            column.resize(found, refcheck=False)  # no other array shares its memory, and the rest is freed
    return LightCurve(*columns)


def warm_up() -> None:
    """Compile now and not at the first alert."""
    _union()


def _columns(curve: LightCurve) -> Iterator[NDArray[Any]]:
    columns = curve.mjd, curve.flux, curve.flux_error, curve.reference_flux, curve.band, curve.kind
    return map(np.asarray, columns, _DTYPES)


@cache
def _union() -> Callable[..., int]:
    """Loads Numba, which whoever needs no more than the constants of this module need not."""
    from broker.state.merge_points import union

    return union()
