"""Values of a light curve that need no period, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.history import HISTORY_FEATURES, history_features
from broker.assemble.usable import usable_points
from broker.bands import AB_OFFSET, BAND_CODE, WAVELENGTH
from broker.records import LightCurve, PhotometryKind


def flux(magnitude: float) -> float:
    """nJy of an AB magnitude."""
    return 3631e9 * 10 ** (-0.4 * magnitude)


def curve(*points: tuple[float, str, float, float | None]) -> LightCurve:
    """Points of (time, band, total magnitude, reference magnitude); without a reference the flux is total."""
    reference = [0.0 if ref is None else flux(ref) for _, _, _, ref in points]
    return LightCurve(
        np.array([p[0] for p in points], np.float64),
        np.array([flux(p[2]) - r for p, r in zip(points, reference, strict=True)], np.float32),
        np.full(len(points), 1.0, np.float32),
        np.array(reference, np.float32),
        np.array([BAND_CODE[p[1]] for p in points], np.uint8),
        np.full(len(points), PhotometryKind.DETECTION, np.uint8),
    )


def features(*curves: LightCurve) -> list[dict[str, float]]:
    table = history_features(usable_points(curves))
    assert table.shape == (len(curves), len(HISTORY_FEATURES))
    return [dict(zip(HISTORY_FEATURES, row, strict=True)) for row in table.tolist()]


def test_two_detections_of_a_star_with_a_reference() -> None:
    (f,) = features(curve((1.0, "ztf:g", 16.5, 17.0), (2.0, "ztf:r", 16.2, 16.4), (3.0, "ztf:g", 17.2, 17.0)))
    assert f["reference_g_r"] == pytest.approx(0.6, abs=1e-3)
    assert f["reference_r_mag"] == pytest.approx(16.4, abs=1e-3)
    assert f["total_g_r"] == pytest.approx(16.85 - 16.2, abs=1e-3)
    assert f["brightest_change"] == pytest.approx(-0.5, abs=1e-3)
    assert f["faintest_change"] == pytest.approx(0.2, abs=1e-3)
    assert f["median_change"] == pytest.approx(-0.2, abs=1e-3)
    assert f["latest_change"] == pytest.approx(0.2, abs=1e-3)
    assert f["bright_share"] == pytest.approx(2 / 3)
    assert f["blue_range"] == pytest.approx(0.9 * 0.7, abs=1e-3)  # the central 90 % between two points
    assert np.isnan(f["red_range"])  # one point has no range
    assert f["log10_detections"] == pytest.approx(np.log10(3))
    # Mean of (-0.5, -0.2, 0.2) is -1/6; successive differences are 0.3 and 0.4.
    variance = np.var([-0.5, -0.2, 0.2])
    assert f["change_scatter"] == pytest.approx(np.sqrt(variance), abs=1e-3)
    assert f["change_roughness"] == pytest.approx((0.09 + 0.16) / (2 * variance * 2), rel=1e-2)


def test_color_is_the_same_in_whatever_bands() -> None:
    """A source whose AB magnitudes are a line in 1/wavelength has one g - r."""
    slope = 0.6 / (1 / 475 - 1 / 637)

    def star(*bands: str) -> LightCurve:
        return curve(
            *(
                (float(i), b, 16.0 + slope * (1 / WAVELENGTH[BAND_CODE[b]] - 1 / 637) - AB_OFFSET[BAND_CODE[b]], None)
                for i, b in enumerate(bands)
            )
        )

    stars = [("ztf:g", "ztf:r"), ("sdss:g", "sdss:r", "sdss:i"), ("eros:B", "eros:R"), ("gaia:BP", "gaia:RP")]
    for found in features(*(star(*bands) for bands in stars)):
        assert found["total_g_r"] == pytest.approx(0.6, abs=1e-3)
        assert found["total_r_mag"] == pytest.approx(16.0, abs=1e-3)
    single, far = features(star("ztf:r"), star("lsst:y"))
    assert np.isnan(single["total_g_r"])
    assert single["total_r_mag"] == pytest.approx(16.0, abs=1e-3)
    assert np.isnan(far["total_r_mag"])  # one band in the infrared says nothing about 637 nm


def test_unknown_stays_unknown_and_objects_do_not_mix() -> None:
    empty = LightCurve.empty()
    difference = LightCurve(
        np.array([1.0, 2.0]), np.array([50.0, -80.0], np.float32), np.ones(2, np.float32),
        np.full(2, np.nan, np.float32), np.zeros(2, np.uint8), np.zeros(2, np.uint8),
    )  # fmt: skip
    alone = curve((1.0, "ztf:g", 16.5, 17.0))
    nothing, changes, one = features(empty, difference, alone)
    assert all(np.isnan(value) for value in nothing.values())
    assert {name for name, value in changes.items() if not np.isnan(value)} == {"log10_detections", "detected_share"}
    assert one == pytest.approx(features(alone)[0], nan_ok=True)


def test_upper_limits_count_as_visits_without_a_detection() -> None:
    seen = curve((1.0, "ztf:g", 16.5, 17.0))
    limits = LightCurve(
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.array([seen.flux[0], np.nan, np.nan, np.nan], np.float32),
        np.ones(4, np.float32),
        np.array([seen.reference_flux[0], np.nan, np.nan, np.nan], np.float32),
        np.zeros(4, np.uint8),
        np.array([PhotometryKind.DETECTION] + [PhotometryKind.LIMIT] * 3, np.uint8),
    )
    (f,) = features(limits)
    assert f["detected_share"] == pytest.approx(0.25)
    assert f["log10_detections"] == 0.0
