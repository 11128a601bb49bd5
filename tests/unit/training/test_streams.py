"""Stars of one band as a survey of several bands would have seen them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.bands import BAND_CODE, WAVELENGTH
from broker.records import LightCurve
from training import streams
from training.streams import Cadence, as_alerts, as_streamed, load_cadences

FEATURE = {name: i for i, name in enumerate(LIGHT_CURVE_FEATURES)}
PERIOD = 0.61


def in_v(points: int = 300, noise: float = 0.01, amplitude: float = 0.4) -> LightCurve:
    rng = np.random.default_rng(5)
    mjd = 52000 + np.sort(rng.uniform(0, 900, points))
    magnitude = 12 + amplitude * np.cos(2 * np.pi * mjd / PERIOD) + rng.normal(0, noise, points)
    flux = 3631e9 * 10 ** (-0.4 * magnitude)
    return LightCurve(
        mjd, flux.astype(np.float32), (flux * max(noise, 1e-3)).astype(np.float32), np.zeros(points, np.float32),
        np.full(points, BAND_CODE["asas:V"], np.uint8), np.zeros(points, np.uint8),
    )  # fmt: skip


def cadence(points: int = 400) -> Cadence:
    rng = np.random.default_rng(6)
    codes = np.array([BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]], np.uint8)
    return Cadence(59000 + np.sort(rng.uniform(0, 600, points)), codes[rng.integers(0, 2, points)])


def test_a_periodic_star_is_seen_at_the_survey_s_epochs_with_its_own_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXPONENT", {"RRAB": (1.3, 0.0)})
    monkeypatch.setattr(streams, "LAG", {"RRAB": (0.03, 0.0)})
    own = cadence()
    seen = as_streamed(in_v(), "RRAB", 1 / PERIOD, 0.99, [own], np.random.default_rng(1))
    assert len(seen) == 300
    assert set(seen.mjd) <= set(own.mjd)
    assert set(seen.band) == {BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]}
    inputs = assemble_light_curves([seen])
    assert inputs.period[0] == pytest.approx(PERIOD, rel=1e-4)
    found = inputs.features[0]
    assert found[FEATURE["chromatic_slope"]] == pytest.approx(0.9 - 1.3, abs=0.1)
    assert found[FEATURE["phase_lag"]] == pytest.approx(0.03, abs=0.01)


def test_other_stars_keep_their_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BAND_SETS", (("ztf:g", "ztf:r"),))
    curve = in_v()
    seen = as_streamed(curve, None, float("nan"), 0.0, [cadence()], np.random.default_rng(2))
    np.testing.assert_array_equal(seen.mjd, curve.mjd)
    assert set(seen.band) == {BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]}


def test_amplitudes_fall_with_wavelength_as_the_class_s_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXPONENT", {"M": (1.5, 0.0)})
    monkeypatch.setattr(streams, "BAND_SETS", (("lsst:g", "lsst:y"),))
    curve = in_v(3000, noise=1e-4)
    seen = as_streamed(curve, "M", float("nan"), 0.0, [], np.random.default_rng(3))

    def amplitude(band: str) -> float:
        magnitude = -2.5 * np.log10(seen.flux[seen.band == BAND_CODE[band]])
        return float(np.ptp(np.quantile(magnitude, [0.01, 0.99])))

    expected = (WAVELENGTH[BAND_CODE["lsst:g"]] / WAVELENGTH[BAND_CODE["lsst:y"]]) ** -1.5
    assert amplitude("lsst:g") / amplitude("lsst:y") == pytest.approx(expected, rel=0.02)


def test_alerts_are_what_differs_from_the_reference() -> None:
    curve = in_v(noise=0.02)
    alerts = as_alerts(curve, np.random.default_rng(4))
    assert 5 <= len(alerts) < len(curve)
    # 5 sigma of 2 % are 0.1: no point so near to the mean of some epochs is left.
    middle = np.abs(alerts.flux / np.mean(curve.flux) - 1) < 0.03
    assert not middle.any()
    constant = in_v(amplitude=0.0)
    assert len(as_alerts(constant, np.random.default_rng(4))) == len(constant)


def test_a_light_curve_without_a_positive_flux_is_left_alone() -> None:
    curve = in_v(20)
    negative = LightCurve(curve.mjd, -curve.flux, curve.flux_error, curve.reference_flux, curve.band, curve.kind)
    assert as_streamed(negative, None, 1.0, 0.9, [cadence()], np.random.default_rng(0)) is negative


def test_no_surveys_no_epochs(tmp_path: Path) -> None:
    assert load_cadences(tmp_path) == []
