"""What a light curve says without a period: brightness by band, colour, ranges, changes against the reference image.

A few detections in two bands have no shape yet, but they have a colour and an amplitude, which is most of what is
known of an object on the night it first sends an alert. These values are part of the third modality, beside the
catalogue's and the packet's (``broker.assemble.metadata``).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble import point_passes
from broker.assemble.grouped import group_quantiles
from broker.assemble.usable import UsablePoints
from broker.bands import AB_OFFSET, BANDS, WAVELENGTH

HISTORY_FEATURES: Final[tuple[str, ...]] = (
    "reference_r_mag", "reference_g_r", "total_r_mag", "total_g_r", "blue_range", "red_range",
    "brightest_change", "faintest_change", "median_change", "latest_change", "change_scatter", "change_roughness",
    "bright_share", "log10_detections", "detected_share",
)  # fmt: skip
"""Magnitudes are AB. ``reference_*`` are of the source in the reference images, ``total_*`` of the median total flux;
both are interpolated between bands to 637 nm, and their g - r (475 and 637 nm) is the slope between bands.
``*_range`` is the central 90 % of total magnitudes in a band bluer than 600 nm and in a redder one. ``*_change`` are
total minus reference magnitudes over all bands: a difference-imaging survey sends no other points than changed ones;
``latest_change`` is the last point's, ``bright_share`` the share of the points brighter than the reference and
``detected_share`` that of detections among detections and upper limits."""

_BLUE, _RED = 475.0, 637.0
_OPTICAL: Final = (WAVELENGTH > 430.0) & (WAVELENGTH < 800.0)
_G_TO_R: Final = 1.0 / _BLUE - 1.0 / _RED
_LEAST_LEVER: Final = 0.3 * _G_TO_R
"""Bands must differ by this much in 1/wavelength, or a colour is a guess."""
_SPLIT: Final = 600.0
_AB_NJY: Final = 31.4
"""AB magnitude of 1 nJy (3631 Jy is magnitude 0)."""


def history_features(points: UsablePoints) -> NDArray[np.float64]:
    """(batch, HISTORY_FEATURES) of the usable points of a batch; NaN where unknown."""
    size = points.size
    result = np.full((size, len(HISTORY_FEATURES)), np.nan)
    columns = {name: result[:, i] for i, name in enumerate(HISTORY_FEATURES)}
    detections = np.bincount(points.row, minlength=size).astype(np.float64)
    some = detections > 0
    columns["log10_detections"][some] = np.log10(detections[some])
    columns["detected_share"][some] = (detections / np.maximum(detections + points.limits, 1))[some]
    # A reference flux of 0 says that the flux is total as it stands.
    has_reference = np.isfinite(points.reference) & (points.reference > 0)
    magnitude, reference = (_magnitude(flux, points.band) for flux in (points.total_flux, points.reference))
    total = np.isfinite(magnitude)
    of_reference, reference_median, *_ = _by_band(reference, has_reference, points)
    of_total, total_median, low, high = _by_band(magnitude, total, points)
    for prefix, median, count in (
        ("reference", reference_median, of_reference),
        ("total", total_median, of_total),
    ):
        red, color = _by_wavelength(median, count)
        columns[f"{prefix}_r_mag"][:], columns[f"{prefix}_g_r"][:] = red, color
    for name, side in (("blue_range", WAVELENGTH < _SPLIT), ("red_range", WAVELENGTH >= _SPLIT)):
        columns[name][:] = _range(low, high, np.where(side, of_total, 0))
    changed = total & has_reference
    _changes(magnitude - reference, points, changed, columns)
    return result


def _magnitude(flux: NDArray[np.float64], band: NDArray[np.intp]) -> NDArray[np.float64]:
    """AB magnitudes of fluxes in nJy, NaN where not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, _AB_NJY - 2.5 * np.log10(flux), np.nan) + AB_OFFSET[band]


def _by_band(
    value: NDArray[np.float64], use: NDArray[np.bool_], points: UsablePoints
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """How many points to ``use`` (m,) there are, and median and central 90 % of their values, each (size, bands)."""
    shape = points.size, len(BANDS)
    cell, cells = (points.row * len(BANDS) + points.band)[use], points.size * len(BANDS)
    median, low, high = group_quantiles(value[use], cell, cells, (0.5, 0.05, 0.95))
    count = np.bincount(cell, minlength=cells).reshape(shape)
    return count, median.reshape(shape), low.reshape(shape), high.reshape(shape)


def _by_wavelength(
    median: NDArray[np.float64], count: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitude at 637 nm and g - r, each (size,), from the median of each optical band, a line in 1/wavelength.

    ``median`` and ``count`` (size, bands) are of the points in each band.

    Over the optical a star's magnitudes are close to a line in 1/wavelength (a black body's are, in Wien's limit), so
    that g - r is comparable whatever bands it comes from.
    """
    weight = np.where(_OPTICAL & (count > 0), np.sqrt(count), 0.0)
    x = 1.0 / WAVELENGTH - 1.0 / _RED
    sums = weight.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = (weight @ x) / sums, (weight * median).sum(axis=1) / sums
        apart = np.where(weight > 0, x - mean_x[:, None], 0.0)
        spread = (weight * apart**2).sum(axis=1)
        slope = (weight * apart * (median - mean_y[:, None])).sum(axis=1) / spread
    far = np.where(weight > 0, x, -np.inf).max(axis=1) - np.where(weight > 0, x, np.inf).min(axis=1) >= _LEAST_LEVER
    near = np.abs(mean_x) < 0.5 * _G_TO_R
    at_red = np.where(far, mean_y - slope * mean_x, np.where(near, mean_y, np.nan))
    return at_red, np.where(far, slope * _G_TO_R, np.nan)


def _range(low: NDArray[np.float64], high: NDArray[np.float64], count: NDArray[np.intp]) -> NDArray[np.float64]:
    """(size,) from ``low`` to ``high`` in the band with most points; NaN with fewer than two; all (size, bands)."""
    best = count.argmax(axis=1)[:, None]
    width = np.take_along_axis(high, best, 1) - np.take_along_axis(low, best, 1)
    return np.where(count.max(axis=1) >= 2, width[:, 0], np.nan)


def _changes(
    change: NDArray[np.float64],
    points: UsablePoints,
    use: NDArray[np.bool_],
    columns: dict[str, NDArray[np.float64]],
) -> None:
    """Fill what is known of total minus reference magnitudes (m,), those to ``use`` (m,)."""
    size, row = points.size, points.row[use]
    count = np.bincount(row, minlength=size)
    some, several = count > 0, count > 2
    low, middle, high = group_quantiles(change[use], row, size, (0.0, 0.5, 1.0))
    columns["brightest_change"][some] = low[some]
    columns["median_change"][some] = middle[some]
    columns["faintest_change"][some] = high[some]
    by_time = points.by_time[use[points.by_time]]
    start = np.concatenate([[0], np.cumsum(count)]).astype(np.intp)
    variance, successive, latest, negative = point_passes.changes(change[by_time], start)
    columns["bright_share"][some] = (negative / np.maximum(count, 1))[some]
    columns["latest_change"][some] = latest[some]
    columns["change_scatter"][several] = np.sqrt(variance)[several]
    roughness = successive / np.maximum(2.0 * variance * np.maximum(count - 1, 1), 1e-9)
    columns["change_roughness"][several] = np.clip(roughness, 0.0, 4.0)[several]
