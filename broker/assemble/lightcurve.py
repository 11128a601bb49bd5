"""Light curves to model inputs, the one way for training and serving.

The points of all objects of a batch are kept in flat columns, with the object's row beside each point, so
that every step but the period search is one array operation over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble import passes
from broker.assemble.chromatic import AMPLITUDE_EXPONENT, LAG_DEVIATION, SLOPE_DEVIATION, fit_bands, log_wavelength
from broker.assemble.event import event_features
from broker.assemble.grouped import group_median, group_order, group_quantiles
from broker.assemble.harmonics import harmonic_fit
from broker.assemble.inputs import LightCurveInputs
from broker.assemble.kept import KeptSearches, PeriodSearches
from broker.assemble.period import NO_PERIOD, PeriodSearch, find_period
from broker.assemble.usable import UsablePoints, usable_points
from broker.bands import BANDS, WAVELENGTH
from broker.photometry import POGSON
from broker.records import LightCurve

POINTS: Final = 200
"""Points of a light curve that the model sees one by one (AstroM3, section 3.1)."""
POINT_CHANNELS: Final = 5
"""time scaled to 0-1, flux and flux error normalised by mean and MAD, phase at twice the best period, and
ln(wavelength) of the band against V's."""
PHASE_BINS: Final = 128
FOLDED_CHANNELS: Final = 4
"""At twice the best period, mean, scatter and log10(1 + count) of each phase bin; then the mean at the best
period itself, twice over. All in units of the light curve's standard deviation."""
MIN_POINTS: Final = 5
"""Fewer usable points than this are no light curve."""
SYSTEMATIC_ERROR: Final = 0.3
"""Weights are 1 / (error^2 + (this x standard deviation)^2): a few points with underestimated errors must not
decide the period."""

LIGHT_CURVE_FEATURES: Final[tuple[str, ...]] = (
    "log10_mad", "log10_std", "log10_span", "log10_points", "is_total_flux",
    "noise_to_std", "skewness", "kurtosis",
    "log10_range_90", "log10_range_95", "bright_share_90", "range_50_to_90", "range_20_to_90", "range_98_to_90",
    "von_neumann_time",
    "has_period", "log10_period", "r2_period", "r2_half_period", "r2_double_period",
    "log10_second_period", "r2_second_period", "log10_period_to_span",
    "amplitude_1_to_std", "amplitude_21", "amplitude_31", "amplitude_41",
    "cos_phase_21", "sin_phase_21", "cos_phase_31", "sin_phase_31",
    "odd_even_13", "von_neumann_phase",
    "bands", "tone", "tone_spread", "chromatic_slope", "chromatic_slope_error", "phase_lag", "phase_lag_error",
)  # fmt: skip
"""Names of the columns of ``LightCurveInputs.features``. Amplitudes and phases are those of the harmonics at
the best period (Simon & Lee 1981, ApJ 248, 291); the percentile ratios follow Richards et al. (2011, ApJ 733,
10); von Neumann's ratio is the mean squared successive difference over the variance, in time and in phase.
``tone`` is the points' mean ln(wavelength) against V's; slope and lag are those of ``broker.assemble.chromatic``."""

_TONE: Final = log_wavelength(WAVELENGTH)
_TO_REFERENCE: Final = np.exp(AMPLITUDE_EXPONENT * _TONE)
"""By which an amplitude in each band is multiplied for that at V's wavelength."""
_FEATURE: Final = {name: column for column, name in enumerate(LIGHT_CURVE_FEATURES)}
_CHROMATIC: Final = [
    _FEATURE[name] for name in ("chromatic_slope", "chromatic_slope_error", "phase_lag", "phase_lag_error")
]
_TRIED: Final = np.array([0.5, 1.0, 2.0, 4.0])
"""Of the best frequency, where the light curve is fitted to describe it."""
_MOST_ROUGHNESS: Final = 4.0
"""Of von Neumann's ratio, which is 2 for noise and at most 4 but for few points."""


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """The usable points of a batch, by object and time."""

    row: NDArray[np.intp]
    time: NDArray[np.float64]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    band: NDArray[np.intp]
    index: NDArray[np.intp]
    count: NDArray[np.intp]
    total: NDArray[np.bool_]

    @property
    def edges(self) -> NDArray[np.intp]:
        """(size + 1,) where each object's begin, and the end."""
        return np.concatenate([[0], np.cumsum(self.count)]).astype(np.intp)

    @property
    def start(self) -> NDArray[np.intp]:
        return self.edges[:-1]


def assemble_light_curves(light_curves: Sequence[LightCurve]) -> LightCurveInputs:
    """Model inputs of a batch of light curves.

    Objects with fewer than MIN_POINTS usable points are marked absent and their rows are zero. Brightness is
    total flux on a logarithmic (magnitude-like, brighter is larger) scale where at least half of the points
    have a reference flux, otherwise difference flux relative to its largest value; each band is taken
    relative to its own median. Upper limits are left out, and forced photometry where the same exposure has
    a detection.
    """
    return assemble_points(usable_points(light_curves))


def assemble_points(usable: UsablePoints) -> LightCurveInputs:
    """``assemble_light_curves`` from the usable points of a batch."""
    return _assemble(usable, None)[0]


def assemble_with_kept(usable: UsablePoints, earlier: KeptSearches) -> tuple[LightCurveInputs, PeriodSearches]:
    """As ``assemble_points``, with full period searches only where refining an earlier one's result is not enough.

    Returns what is to be kept of the full searches, too.
    """
    inputs, searches = _assemble(usable, earlier)
    assert searches is not None
    return inputs, searches


def _assemble(usable: UsablePoints, earlier: KeptSearches | None) -> tuple[LightCurveInputs, PeriodSearches | None]:
    size = usable.size
    points = _brightness(usable)
    detections = points.count.astype(np.int32)
    present = points.count >= MIN_POINTS
    keep = present[points.row]
    points = _Points(
        points.row[keep], points.time[keep], points.value[keep], points.error[keep], points.band[keep],
        points.index[keep], np.where(present, points.count, 0), points.total,
    )  # fmt: skip
    inputs = LightCurveInputs(
        points=np.zeros((size, POINTS, POINT_CHANNELS), np.float32),
        points_mask=np.zeros((size, POINTS), np.bool_),
        folded=np.zeros((size, FOLDED_CHANNELS, PHASE_BINS), np.float32),
        features=np.zeros((size, len(LIGHT_CURVE_FEATURES)), np.float32),
        present=present,
        period=np.full(size, np.nan),
        detections=detections,
        event=event_features(usable),
    )
    searches = None if earlier is None else PeriodSearches(earlier, points.index, points.edges, points.total)
    if not present.any():
        return inputs, searches
    center, scale = _center_and_scale(points)
    value = (points.value - center[points.row]) / scale[points.row]
    frequency, value = _period_features(points, value, scale, inputs, searches)
    points = replace(points, value=value * scale[points.row])
    center, scale = _shape_features(points, inputs.features)
    value = (points.value - center[points.row]) / scale[points.row]
    phase = _fold(points, value, frequency, inputs)
    _fill_points(points, phase, inputs)
    inputs.period[:] = 1.0 / frequency
    np.nan_to_num(inputs.features, copy=False)
    return inputs, searches


def _brightness(points: UsablePoints) -> _Points:
    """Put the points on one brightness scale and sort them by object and time."""
    size, row, band, error = points.size, points.row, points.band, points.error
    has_total = np.isfinite(points.reference)
    total_flux = points.total_flux
    with_total = np.bincount(row, has_total, size)
    is_total = (with_total >= 0.5 * np.bincount(row, minlength=size)) & (with_total > 0)
    chosen = ~is_total[row] | (has_total & (total_flux > 0))
    order, by_time = np.flatnonzero(chosen), points.by_time
    if len(order) < len(chosen):
        by_time = (np.cumsum(chosen) - 1)[by_time[chosen[by_time]]]

    row, time, error, band = row[order], points.time[order], error[order], band[order]
    total = is_total[row]
    flux = np.where(total, total_flux[order], points.flux[order])
    unit = np.abs(flux)
    if not total.all():
        largest = np.zeros(size)
        np.maximum.at(largest, row, unit)
        unit = np.where(total, unit, largest[row])
    unit = np.where(unit > 0, unit, 1.0)
    value = np.where(total, POGSON * np.log(unit), POGSON * flux / unit)
    error = POGSON * error / unit
    # Difference fluxes rise and fall with the star's colour, too: no rule for these.
    to_reference = np.where(total, _TO_REFERENCE[band], 1.0)
    cell = row * len(BANDS) + band
    value -= group_median(value, cell, size * len(BANDS))[cell]
    value *= to_reference
    error = np.clip(error * to_reference, 1e-4, 1.0)
    count = np.bincount(row, minlength=size).astype(np.intp)
    return _Points(
        row, time[by_time], value[by_time], error[by_time], band[by_time], points.index[order][by_time], count,
        is_total,
    )  # fmt: skip


def _center_and_scale(points: _Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each object's points, each (batch,); the latter 1 where they are all alike."""
    center, std = passes.center_and_scale(points.value, points.edges)
    return center, np.where(std > 1e-6, std, 1.0)


def _shape_features(points: _Points, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fill the features that need no period; returns mean and standard deviation, each (batch,)."""
    size = len(points.count)
    row, value, some = points.row, points.value, points.count > 0
    count = np.maximum(points.count, 1)
    center, std = _center_and_scale(points)
    skewness, kurtosis, roughness = passes.moments(value, points.edges, center, std)
    tone, tone_spread = passes.center_and_scale(_TONE[points.band], points.edges)
    levels = group_quantiles(value, row, size, (0.01, 0.05, 0.25, 0.4, 0.5, 0.6, 0.75, 0.95, 0.99, 0.025, 0.975))
    mad = group_median(np.abs(value - levels[4][row]), row, size)
    error = group_median(points.error, row, size)
    first, last = points.start, points.start + points.count - 1
    span = np.zeros(size)
    span[some] = points.time[last[some]] - points.time[first[some]]
    range_90 = np.maximum(levels[7] - levels[1], 1e-6)
    for name, feature in {
        "log10_mad": np.log10(np.maximum(mad, 1e-4)),
        "log10_std": np.log10(np.maximum(std, 1e-4)),
        "log10_span": np.log10(np.maximum(span, 1e-3)),
        "log10_points": np.log10(count),
        "is_total_flux": points.total.astype(np.float64),
        "noise_to_std": np.clip(error / std, 0, 3),
        "skewness": np.clip(skewness, -5, 5),
        "kurtosis": np.log10(np.maximum(kurtosis, 0.1)),
        "log10_range_90": np.log10(np.maximum(range_90, 1e-4)),
        "log10_range_95": np.log10(np.maximum(levels[10] - levels[9], 1e-4)),
        "bright_share_90": (levels[7] - levels[4]) / range_90,
        "range_50_to_90": (levels[6] - levels[2]) / range_90,
        "range_20_to_90": (levels[5] - levels[3]) / range_90,
        "range_98_to_90": np.clip((levels[8] - levels[0]) / range_90, 0, 10),
        "von_neumann_time": np.clip(roughness, 0, _MOST_ROUGHNESS),
        "tone": tone,
        "tone_spread": tone_spread,
    }.items():
        features[:, _FEATURE[name]] = np.where(some, feature, 0.0)
    return center, std


def _period_features(
    points: _Points,
    value: NDArray[np.float64],
    scale: NDArray[np.float64],
    inputs: LightCurveInputs,
    searches: PeriodSearches | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Search each object's period and fill the features that describe it.

    ``value`` (n,) has standard deviation 1 within each object, ``scale`` (batch,) is what it was. Returns frequency
    (batch,) and the values, without the bands' offsets and at V's amplitude where there is a period and several bands.
    """
    size = len(points.count)
    frequency = np.full(size, np.nan)
    weight = 1.0 / ((points.error / scale[points.row]) ** 2 + SYSTEMATIC_ERROR**2)
    weight /= np.bincount(points.row, weight, size)[points.row]
    start = points.start
    by_band = group_order(points.row * len(BANDS) + points.band, size * len(BANDS))
    time, banded, weight, band = points.time[by_band], value[by_band], weight[by_band], points.band[by_band]
    time -= points.time[np.minimum(start, len(time) - 1)][points.row]
    tone = _TONE[band]
    result = np.array(value)
    inputs.features[:, _FEATURE["chromatic_slope_error"]] = np.where(points.count > 0, SLOPE_DEVIATION, 0.0)
    inputs.features[:, _FEATURE["phase_lag_error"]] = np.where(points.count > 0, LAG_DEVIATION, 0.0)
    # Where each band of each object begins, all objects' one after another, counted from the object's first point.
    begins = np.flatnonzero(np.diff(points.row * len(BANDS) + band, prepend=-1))
    bands = np.bincount(points.row[begins], minlength=size)
    inputs.features[:, _FEATURE["bands"]] = bands
    begins -= start[points.row[begins]]
    of_object = np.concatenate([[0], np.cumsum(bands)]).tolist()
    rows: list[int] = []
    found: list[PeriodSearch] = []
    fits: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    parts: list[tuple[slice, NDArray[np.intp]]] = []
    for row, (first, count) in enumerate(zip(start.tolist(), points.count.tolist(), strict=True)):
        if not count:
            continue
        own = slice(first, first + count)
        band_start = np.append(begins[of_object[row] : of_object[row + 1]], count)
        light_curve = time[own], banded[own], weight[own], band_start
        search = find_period(*light_curve) if searches is None else searches.find(row, *light_curve)
        if search is NO_PERIOD:
            continue
        rows.append(row)
        found.append(search)
        fits.append(harmonic_fit(*light_curve, search.frequency * _TRIED, _harmonics(count)))
        parts.append((own, band_start))
    if not rows:
        return frequency, result
    at = _describe_periods(np.array(rows), found, fits, points, inputs.features)
    frequency[rows] = np.array([search.frequency for search in found]) * _TRIED[at]
    for row, (own, band_start), (_, coefficients), tried in zip(rows, parts, fits, at.tolist(), strict=True):
        if len(band_start) == 2:
            continue
        chromatic = fit_bands(
            time[own], banded[own], weight[own], band_start, tone[own], float(frequency[row]), coefficients[tried]
        )
        result[by_band[own]] = chromatic.value
        inputs.features[row, _CHROMATIC] = (
            chromatic.slope, chromatic.slope_error, chromatic.lag, chromatic.lag_error,
        )  # fmt: skip
    return frequency, result


def _harmonics(points: int) -> int:
    return 4 if points >= 32 else max(1, points // 8)


def _describe_periods(
    rows: NDArray[np.intp],
    found: Sequence[PeriodSearch],
    fits: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    points: _Points,
    features: NDArray[np.float32],
) -> NDArray[np.intp]:
    """Fill the features (batch, ...) of the light curves ``rows`` (n,) at their best periods.

    ``fits`` are those of ``harmonic_fit`` at _TRIED times the frequencies ``found``. Returns which of _TRIED to take.

    A binary with two like minima fits at half its period as well as at its period. The higher of the two
    frequencies is taken, so that the fold at twice the period always shows the whole cycle.
    """
    size = len(rows)
    r_squared = np.stack([fit[0] for fit in fits])
    cosine, sine = np.zeros((size, len(_TRIED), 4)), np.zeros((size, len(_TRIED), 4))
    width = np.array([fit[1].shape[1] // 2 for fit in fits])
    for harmonics in np.unique(width).tolist():
        alike = np.flatnonzero(width == harmonics)
        several = np.stack([fits[i][1] for i in alike.tolist()])
        cosine[alike, :, :harmonics], sine[alike, :, :harmonics] = several[..., :harmonics], several[..., harmonics:]
    at = np.where((1 - r_squared[:, 2]) < 1.1 * (1 - r_squared[:, 1]), 2, 1)
    each = np.arange(size)
    frequency = np.array([search.frequency for search in found]) * _TRIED[at]
    second = np.array([search.second_frequency for search in found])
    amplitude = np.hypot(cosine[each, at], sine[each, at])
    phase = np.arctan2(-sine[each, at], cosine[each, at])
    odd = np.hypot(cosine[each, at - 1], sine[each, at - 1])
    first = np.maximum(amplitude[:, 0], 1e-3)
    phase_21, phase_31 = phase[:, 1] - 2 * phase[:, 0], phase[:, 2] - 3 * phase[:, 0]
    begin = points.start[rows]
    span = points.time[begin + points.count[rows] - 1] - points.time[begin]
    for name, feature in {
        "has_period": np.ones(size),
        "log10_period": -np.log10(frequency),
        "r2_period": r_squared[each, at],
        "r2_half_period": r_squared[each, at + 1],
        "r2_double_period": r_squared[each, at - 1],
        "log10_second_period": np.where(np.isfinite(second), -np.log10(second), 0.0),
        "r2_second_period": np.array([search.second_r_squared for search in found]),
        "log10_period_to_span": -np.log10(frequency * span),
        "amplitude_1_to_std": np.clip(amplitude[:, 0], 0, 5),
        "amplitude_21": np.clip(amplitude[:, 1] / first, 0, 3),
        "amplitude_31": np.clip(amplitude[:, 2] / first, 0, 3),
        "amplitude_41": np.clip(amplitude[:, 3] / first, 0, 3),
        "cos_phase_21": np.cos(phase_21),
        "sin_phase_21": np.sin(phase_21),
        "cos_phase_31": np.cos(phase_31),
        "sin_phase_31": np.sin(phase_31),
        "odd_even_13": np.clip((odd[:, 0] + odd[:, 2]) / np.maximum(odd[:, 1], 1e-3), 0, 5),
    }.items():
        features[rows, _FEATURE[name]] = feature
    return at


def _fold(
    points: _Points, value: NDArray[np.float64], frequency: NDArray[np.float64], inputs: LightCurveInputs
) -> NDArray[np.float64]:
    """Fold at twice the period, faintest bin at phase 0; fills ``folded``; returns phase (n,), 0 without one."""
    phase, folded, ratio = passes.fold(points.time, value, points.edges, frequency, PHASE_BINS)
    folded[:, 2] = np.log10(1.0 + folded[:, 2])
    inputs.folded[:] = np.clip(folded, -10, 10)
    inputs.features[:, _FEATURE["von_neumann_phase"]] = np.clip(ratio, 0, _MOST_ROUGHNESS)
    return phase


def _fill_points(points: _Points, phase: NDArray[np.float64], inputs: LightCurveInputs) -> None:
    """Fill ``points``: all of them, or POINTS evenly chosen in time order where there are more."""
    size = len(points.count)
    center = np.bincount(points.row, points.value, size) / np.maximum(points.count, 1)
    mad = 10.0 ** inputs.features[:, _FEATURE["log10_mad"]].astype(np.float64)
    used = np.minimum(points.count, POINTS)
    slot = np.arange(POINTS)
    mask = slot < used[:, None]
    stretch = np.maximum(points.count - 1, 0) / np.maximum(used - 1, 1)
    source = points.start[:, None] + np.floor(slot * stretch[:, None] + 1e-9).astype(np.intp)
    source = source[mask]
    row = points.row[source]
    first = points.time[np.minimum(points.start, len(points.time) - 1)]
    last = points.time[np.maximum(points.start + points.count - 1, 0)]
    span = np.maximum(last - first, 1e-6)
    inputs.points_mask[:] = mask
    inputs.points[mask] = np.stack(
        [
            (points.time[source] - first[row]) / span[row],
            np.clip((points.value[source] - center[row]) / mad[row], -1e3, 1e3),
            np.clip(points.error[source] / mad[row], 0, 1e3),
            phase[source],
            _TONE[points.band[source]],
        ],
        axis=1,
    )
