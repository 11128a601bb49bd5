"""What tells a one-off event from a recurring variable in difference fluxes: signs, one rise and decline, limits.

The light-curve encoder sees brightness relative to each band's median, and so neither whether an object was ever
fainter than in the reference image nor what was measured before its first detection. These values say so. They are not
part of a modality: the classifier takes them beside the embeddings, for ``Other`` alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.event_passes import Passes, event_passes
from broker.assemble.usable import UsablePoints

EVENT_FEATURES: Final[tuple[str, ...]] = (
    "difference_share", "reference_share", "positive_share", "log10_peak_to_noise", "log10_peak_to_reference",
    "log10_span", "log10_nights", "first_to_peak", "last_to_peak", "peak_position",
    "parabola_r2", "parabola_slope", "parabola_curvature", "log10_quiet_scatter", "night_scatter",
    "limits_before", "limits_between", "log10_days_before",
)  # fmt: skip
"""All of difference fluxes, 0 for an object whose fluxes are total as they come (archives). ``difference_share`` of the
points are difference photometry, ``reference_share`` of these have a reference source, ``positive_share`` of those
beyond 3 sigma are brighter than the reference. Peak, first and last are of fluxes in units of each band's largest.
The parabola is the least-squares one in time through these, with an offset for each band; slope and curvature are
those of the time scaled to -1 to 1. ``night_scatter`` is the mean squared difference of neighbouring points of a band
within two days, less what their errors make, against the variance: of slow events it is small.
``log10_quiet_scatter`` is that of the residuals from the parabola. ``limits_before`` and ``limits_between`` are log10
of one plus the number of upper limits before the first and between first and last detection, ``log10_days_before`` of
one plus the days from the first limit to the first detection."""

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "difference_share": (0.0, 1.0), "reference_share": (0.0, 1.0), "positive_share": (0.0, 1.0),
    "log10_peak_to_noise": (0.0, 4.0), "log10_peak_to_reference": (0.0, 4.0),
    "log10_span": (-3.0, 4.0), "log10_nights": (0.0, 4.0),
    "first_to_peak": (-1.0, 1.0), "last_to_peak": (-1.0, 1.0), "peak_position": (0.0, 1.0),
    "parabola_r2": (0.0, 1.0), "parabola_slope": (-2.0, 2.0), "parabola_curvature": (-2.0, 2.0),
    "log10_quiet_scatter": (-3.0, 1.0), "night_scatter": (0.0, 2.0),
    "limits_before": (0.0, 3.0), "limits_between": (0.0, 3.0), "log10_days_before": (0.0, 4.0),
}  # fmt: skip
"""Within which each feature is kept."""
_PARABOLA_POINTS: Final = 5
"""Points from which the parabola says something."""

Values = NDArray[np.float64]
"""(batch,)."""
Features = dict[str, Values]
"""Some of EVENT_FEATURES, whatever they are where there is no difference flux."""


def event_features(points: UsablePoints) -> NDArray[np.float32]:
    """(batch, EVENT_FEATURES) of the usable points of a batch: always finite, 0 where there is nothing to say."""
    result = np.zeros((points.size, len(EVENT_FEATURES)), np.float32)
    difference = points.reference != 0.0  # NaN, too: without a reference source it is difference flux
    if not difference.any():
        return result
    total = np.bincount(points.row, minlength=points.size)
    count = np.bincount(points.row[difference], minlength=points.size)
    found = event_passes(
        points.time[difference], points.flux[difference], points.error[difference], points.reference[difference],
        points.band[difference], np.concatenate([[0], np.cumsum(count)]),
    )  # fmt: skip
    features = (
        _shares(found, count, total)
        | _heights(found)
        | _times(found)
        | _parabola(found, count)
        | _night_scatter(found)
        | _upper_limits(points)
    )
    for column, name in enumerate(EVENT_FEATURES):
        kept = np.clip(np.nan_to_num(features[name]), *_BOUNDS[name])
        result[:, column] = np.where(count > 0, kept, 0.0)
    return result


def _known(value: Values) -> Values:
    """0 where no point says what it is."""
    return np.where(np.isfinite(value), value, 0.0)


def _shares(found: Passes, count: NDArray[np.intp], total: NDArray[np.intp]) -> Features:
    """Of the ``total`` points of each object, of which ``count`` are difference photometry."""
    return {
        "difference_share": count / np.maximum(total, 1),
        "reference_share": found.with_source / np.maximum(count, 1),
        "positive_share": found.positive / np.maximum(found.beyond, 1),
    }


def _heights(found: Passes) -> Features:
    """Of the peak, against noise, reference, and what is there first and last."""
    peak = np.maximum(np.abs(_known(found.peak)), 1e-6)
    return {
        "log10_peak_to_noise": np.log10(np.maximum(_known(found.to_noise), 1.0)),
        "log10_peak_to_reference": np.log10(1.0 + _known(found.to_reference)),
        "first_to_peak": found.first_level / peak,
        "last_to_peak": found.last_level / peak,
    }


def _times(found: Passes) -> Features:
    """How long it is seen, in how many nights, and when the peak is."""
    first = _known(found.first)
    span = np.maximum(_known(found.last) - first, 1e-3)
    return {
        "log10_span": np.log10(span),
        "log10_nights": np.log10(np.maximum(found.nights, 1)),
        "peak_position": (found.when - first) / span,
    }


def _parabola(found: Passes, count: NDArray[np.intp]) -> Features:
    """0 of objects with fewer than _PARABOLA_POINTS."""
    features = {
        "parabola_r2": found.r_squared,
        "parabola_slope": found.slope,
        "parabola_curvature": found.curvature,
        "log10_quiet_scatter": np.log10(np.sqrt(np.maximum(found.residual, 1e-6))),
    }
    return {name: np.where(count >= _PARABOLA_POINTS, value, 0.0) for name, value in features.items()}


def _night_scatter(found: Passes) -> Features:
    scatter = found.squared / np.maximum(2.0 * found.pairs * np.maximum(found.variance, 1e-4), 1e-9)
    # Without a pair nothing is known: between slow, 0, and random, 1.
    return {"night_scatter": np.where(found.pairs > 0, scatter, 0.5)}


def _upper_limits(points: UsablePoints) -> Features:
    return {
        "limits_before": np.log10(1.0 + points.limits_before),
        "limits_between": np.log10(1.0 + points.limits_between),
        "log10_days_before": np.log10(1.0 + points.days_before),
    }
