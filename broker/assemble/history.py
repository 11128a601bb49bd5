"""What a light curve says without a period: brightness by band, colour, ranges, changes against the reference image.

A few detections in two bands have no shape yet, but they have a colour and an amplitude, which is most of what is
known of an object on the night it first sends an alert. These values are part of the third modality, beside the
catalogue's and the packet's (``broker.assemble.metadata``).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.grouped import group_median, group_quantiles, order_within
from broker.assemble.lightcurve import UsablePoints
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
    for prefix, value, use in (
        ("reference", reference, has_reference),
        ("total", magnitude, total),
    ):
        red, color = _by_wavelength(value[use], points.row[use], points.band[use], size)
        columns[f"{prefix}_r_mag"][:], columns[f"{prefix}_g_r"][:] = red, color
    blue = WAVELENGTH[points.band] < _SPLIT
    for name, side in (("blue_range", total & blue), ("red_range", total & ~blue)):
        columns[name][:] = _range(magnitude[side], points.row[side], points.band[side], size)
    changed = total & has_reference
    row, time = points.row[changed], points.time[changed]
    change = magnitude[changed] - reference[changed]
    _changes(change, row, time, size, columns)
    return result


def _magnitude(flux: NDArray[np.float64], band: NDArray[np.intp]) -> NDArray[np.float64]:
    """AB magnitudes of fluxes in nJy, NaN where not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, _AB_NJY - 2.5 * np.log10(flux), np.nan) + AB_OFFSET[band]


def _by_wavelength(
    magnitude: NDArray[np.float64], row: NDArray[np.intp], band: NDArray[np.intp], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitude at 637 nm and g - r, each (size,), from the median of each optical band, a line in 1/wavelength.

    Over the optical a star's magnitudes are close to a line in 1/wavelength (a black body's are, in Wien's limit), so
    that g - r is comparable whatever bands it comes from.
    """
    bands = len(BANDS)
    cell = row * bands + band
    count = np.bincount(cell, minlength=size * bands).reshape(size, bands)
    median = group_median(magnitude, cell, size * bands).reshape(size, bands)
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


def _range(
    magnitude: NDArray[np.float64], row: NDArray[np.intp], band: NDArray[np.intp], size: int
) -> NDArray[np.float64]:
    """(size,) the central 90 % of the magnitudes in the band with most points; NaN with fewer than two in all."""
    bands = len(BANDS)
    cell = row * bands + band
    count = np.bincount(cell, minlength=size * bands).reshape(size, bands)
    best = count.argmax(axis=1)
    own = best[row] == band
    low, high = group_quantiles(magnitude[own], row[own], size, (0.05, 0.95))
    return np.where(count.max(axis=1) >= 2, high - low, np.nan)


def _changes(
    change: NDArray[np.float64],
    row: NDArray[np.intp],
    time: NDArray[np.float64],
    size: int,
    columns: dict[str, NDArray[np.float64]],
) -> None:
    """Fill what is known of total minus reference magnitudes."""
    count = np.bincount(row, minlength=size)
    some, several = count > 0, count > 2
    low, middle, high = group_quantiles(change, row, size, (0.0, 0.5, 1.0))
    columns["brightest_change"][some] = low[some]
    columns["median_change"][some] = middle[some]
    columns["faintest_change"][some] = high[some]
    columns["bright_share"][some] = (np.bincount(row, change < 0, size) / np.maximum(count, 1))[some]
    order = order_within(time, count)
    row, change = row[order], change[order]
    columns["latest_change"][row] = change  # the last one written stays
    mean = np.bincount(row, change, size) / np.maximum(count, 1)
    variance = np.bincount(row, (change - mean[row]) ** 2, size) / np.maximum(count, 1)
    successive = np.bincount(row[1:], np.where(row[1:] == row[:-1], np.diff(change) ** 2, 0.0), size)
    columns["change_scatter"][several] = np.sqrt(variance)[several]
    roughness = successive / np.maximum(2.0 * variance * np.maximum(count - 1, 1), 1e-9)
    columns["change_roughness"][several] = np.clip(roughness, 0.0, 4.0)[several]
