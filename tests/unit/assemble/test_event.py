"""What tells a one-off event: values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.event import EVENT_FEATURES, event_features
from broker.assemble.usable import usable_points
from broker.bands import BAND_CODE
from broker.records import LightCurve, PhotometryKind

R, G = BAND_CODE["ztf:r"], BAND_CODE["ztf:g"]
DETECTION, FORCED, LIMIT = (int(kind) for kind in PhotometryKind)


def curve(
    mjd: list[float], flux: list[float], error: float, reference: float, band: list[int] | int = R,
    kind: list[int] | int = DETECTION,
) -> LightCurve:  # fmt: skip
    size = len(mjd)
    return LightCurve(
        np.array(mjd), np.array(flux, np.float32), np.full(size, error, np.float32),
        np.full(size, reference, np.float32), np.full(size, band, np.uint8), np.full(size, kind, np.uint8),
    )  # fmt: skip


def values(*curves: LightCurve) -> list[dict[str, float]]:
    return [dict(zip(EVENT_FEATURES, row, strict=True)) for row in event_features(usable_points(curves)).tolist()]


def test_total_fluxes_say_nothing() -> None:
    days = [60000.0 + i for i in range(8)]
    total = curve(days, [100.0 + i for i in range(8)], 1.0, 0.0)
    nothing = LightCurve.empty()
    assert not event_features(usable_points([total, nothing])).any()
    # And an event beside them is not changed by them.
    event = curve(days, [10.0 * i for i in range(1, 9)], 1.0, np.nan)
    assert values(total, event, nothing)[1] == values(event)[0]


def test_a_rise_and_decline_in_two_bands() -> None:
    """Parabolas of two bands that peak at 100 and 50, 16 days apart, without noise but that of the systematic floor."""
    time = np.arange(9) * 2.0  # x = -1 ... 1
    shape = 1.0 - 0.75 * (time / 8.0 - 1.0) ** 2
    mjd = np.concatenate([time, time + 1e-3]) + 60000.25
    flux = np.concatenate([100.0 * shape, 50.0 * shape])
    order = np.argsort(mjd)
    band = np.repeat([R, G], 9)[order]
    (found,) = values(curve(mjd[order].tolist(), flux[order].tolist(), 0.5, np.nan, band.tolist()))
    assert found["difference_share"] == found["positive_share"] == 1.0
    assert found["reference_share"] == 0.0
    assert found["log10_peak_to_reference"] == 0.0  # no source to compare with
    assert found["log10_peak_to_noise"] == pytest.approx(np.log10(200), abs=1e-5)
    assert found["log10_span"] == pytest.approx(np.log10(16.001), abs=1e-4)
    assert found["log10_nights"] == pytest.approx(np.log10(9), abs=1e-5)
    # Both begin and end at a quarter of their largest, which is in the middle.
    assert found["first_to_peak"] == pytest.approx(0.25, abs=1e-3)
    assert found["last_to_peak"] == pytest.approx(0.25, abs=1e-3)
    assert found["peak_position"] == pytest.approx(0.5, abs=1e-3)
    assert found["parabola_r2"] == pytest.approx(1.0, abs=2e-3)
    assert found["parabola_slope"] == pytest.approx(0.0, abs=1e-2)
    assert found["parabola_curvature"] == pytest.approx(-0.75, abs=2e-2)
    assert found["limits_before"] == found["limits_between"] == found["log10_days_before"] == 0.0


def test_a_recurring_star_has_both_signs_and_changes_within_days() -> None:
    days = [60000.0 + 0.5 * i for i in range(40)]
    star = curve(days, [90.0 * (-1) ** i for i in range(40)], 10.0, 100.0)
    slow = curve(days, [90.0 - i for i in range(40)], 1e-3, np.nan)
    found, other = values(star, slow)
    assert found["positive_share"] == 0.5
    assert found["reference_share"] == 1.0
    assert found["log10_peak_to_reference"] == pytest.approx(np.log10(1.9), abs=1e-5)
    # Neighbours differ by two units, less 2 x (1/9)^2 of the errors; the variance is 1: 3.975 / 2, at most 2.
    assert found["night_scatter"] == pytest.approx((4 - 2 / 81) / 2, abs=2e-2)
    assert found["parabola_r2"] < 0.02
    assert other["night_scatter"] < 0.01
    assert other["parabola_r2"] > 0.99


def test_upper_limits_before_and_between_are_told_apart() -> None:
    mjd = [59990.0, 59995.0, 60000.0, 60003.0, 60005.0, 60010.0, 60020.0]
    kind = [LIMIT, LIMIT, DETECTION, LIMIT, DETECTION, DETECTION, LIMIT]
    (found,) = values(curve(mjd, [np.nan, np.nan, 9.0, np.nan, 8.0, 7.0, np.nan], 1.0, np.nan, R, kind))
    assert found["limits_before"] == pytest.approx(np.log10(3))
    assert found["limits_between"] == pytest.approx(np.log10(2))  # what follows the last detection is neither
    assert found["log10_days_before"] == pytest.approx(np.log10(11))


def test_forced_photometry_of_nothing_is_no_sign() -> None:
    """Of three insignificant forced fluxes below the reference nothing is said; two detections are above it."""
    flux, kind = [-2.0, -1.0, -2.9, 50.0, 40.0], [FORCED] * 3 + [DETECTION] * 2
    (found,) = values(curve([60000.0 + i for i in range(5)], flux, 1.0, np.nan, R, kind))
    assert found["positive_share"] == 1.0
    assert found["first_to_peak"] == pytest.approx(-0.04)


def test_every_value_is_finite_whatever_the_fluxes() -> None:
    days = [60000.0] * 6
    odd = [
        curve(days, [0.0] * 6, 1.0, np.nan), curve(days[:1], [5.0], 1e-30, 1e-30),
        curve([60000.0 + i for i in range(6)], [1e30, -1e30, 0.0, 1e-30, 1e20, 5.0], 1e10, 1e-20),
    ]  # fmt: skip
    assert np.isfinite(event_features(usable_points(odd))).all()
