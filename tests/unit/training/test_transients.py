"""Simulated events, and what alerts hold of them."""

from __future__ import annotations

import numpy as np
import pytest

from broker.bands import BAND_CODE
from broker.records import LightCurve, PhotometryKind
from training.simulate import transients
from training.simulate.transients import KINDS, as_difference, observed, simulated_event
from training.streams import Cadence

R = BAND_CODE["ztf:r"]


def cadence(seed: int = 0) -> Cadence:
    rng = np.random.default_rng(seed)
    mjd = 59000.0 + np.sort(rng.uniform(0, 700, 500))
    return Cadence(mjd, rng.choice([BAND_CODE["ztf:g"], R], 500).astype(np.uint8))


def test_microlensing_amplifies_by_paczynski_s_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the closest approach of u = 0.5 the amplification is 2.25 / (0.5 sqrt(4.25)) = 2.183."""
    monkeypatch.setattr(transients, "_even", lambda _rng, _low, _high: 20.0)
    rng_fixed = type("Rng", (), {"uniform": staticmethod(lambda low, _high: 0.5 if low == 0.01 else 5000.0),
                                 "exponential": staticmethod(lambda _mean: 0.0)})()  # fmt: skip
    t = np.array([30.0, 30.0 + 1e4, 30.0 + 20.0 * np.sqrt(0.75)])  # the last has u = 1
    flux, star = transients._microlensing(t, np.full(3, 600.0), rng_fixed)
    np.testing.assert_allclose(flux / star, [2.25 / (0.5 * np.sqrt(4.25)) - 1, 0.0, 3 / np.sqrt(5) - 1], atol=1e-6)


def test_a_black_body_of_6000_k_is_planck_s() -> None:
    """h c / (k T) is 2398 nm: at 600 and 480 nm B_nu differs by (600/480)^3 (exp(3.9967) - 1) / (exp(4.9959) - 1)."""
    flux = transients._relative(np.array([600.0, 480.0]), 6000.0)
    x = 1.4387769e7 / 6000.0 / np.array([600.0, 480.0])
    assert flux[0] == pytest.approx(1.0)
    assert flux[1] == pytest.approx((600 / 480) ** 3 * np.expm1(x[0]) / np.expm1(x[1]), rel=1e-4)


def test_a_damped_walk_has_the_deviation_and_the_memory_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacLeod et al. (2010): the correlation falls as exp(-dt / tau); here tau is 50 d and the deviation 0.2 mag."""
    monkeypatch.setattr(transients, "_even", lambda _rng, low, _high: 50.0 if low == 30.0 else 0.2)
    t = np.arange(0.0, 40_000.0, 10.0)
    flux, source = transients._nucleus(t, np.full(len(t), 500.0), np.random.default_rng(3))
    own = source - source.min()
    assert np.ptp(own) == 0.0  # one band, one reference
    rng = np.random.default_rng(3)
    reference = [rng.normal(0.0, 0.2), rng.normal(0.0, 0.2)][1]
    # The nucleus alone: what is added to the reference is the host's.
    share = _nucleus_share(flux, source[0], reference)
    assert np.std(share) == pytest.approx(0.2, rel=0.15)
    lag = 5
    correlation = np.corrcoef(share[:-lag], share[lag:])[0, 1]
    assert correlation == pytest.approx(np.exp(-1.0), abs=0.12)


def _nucleus_share(flux: np.ndarray, source: float, reference: float) -> np.ndarray:
    """Magnitudes of the nucleus, for the host's flux that makes the mean of the walk 0."""
    best = None
    for own in np.linspace(0.01, 1.0, 400) * source:
        total = flux + own
        if np.any(total <= 0):
            continue
        magnitude = -2.5 * np.log10(total / own) + reference
        if best is None or abs(np.mean(magnitude)) < abs(np.mean(best)):
            best = magnitude
    assert best is not None
    return best


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_detected_at_five_sigma(kind: str) -> None:
    curves = [simulated_event(kind, [cadence()], np.random.default_rng(i)) for i in range(30)]
    found = [curve for curve in curves if curve is not None]
    assert len(found) >= 25
    signs = []
    for curve in found:
        detected = curve.kind == PhotometryKind.DETECTION
        assert detected.sum() >= 2
        assert np.all(np.abs(curve.flux[detected]) > 5 * curve.flux_error[detected] * (1 - 1e-5))
        assert np.all(np.diff(curve.mjd) >= 0)
        assert np.isnan(curve.flux[curve.kind == PhotometryKind.LIMIT]).all()
        signs.append(np.mean(curve.flux[detected] > 0))
    # One-off events are brighter than the reference; a nucleus is as often fainter.
    assert (np.mean(signs) < 0.9) if kind == "nucleus" else (np.mean(signs) > 0.98)


@pytest.mark.parametrize(("style", "kept"), [(0, [2, 4]), (1, [1, 2, 3, 4]), (2, [1, 2, 3, 4])])
def test_what_is_not_detected_is_left_out_forced_or_a_limit(style: int, kept: list[int]) -> None:
    """Of six visits two are 5 sigma from the reference; the first is 40 days before, the last after both."""
    mjd = np.array([0.0, 35.0, 40.0, 45.0, 50.0, 60.0])
    flux = np.array([1.0, 2.0, 10.0, -3.0, -8.0, 4.0])
    for seed in range(20):
        curve = observed(
            mjd, np.full(6, R, np.uint8), flux, np.ones(6), np.full(6, np.nan), np.random.default_rng(seed), style
        )
        assert curve is not None
        whole = len(curve) == len(kept)
        assert curve.mjd.tolist() == mjd[kept].tolist() or not whole
        if style == 2 and whole:
            assert np.isnan(curve.flux).tolist() == [True, False, True, False]
        if whole:
            break
    assert whole


def test_a_star_as_alerts_is_told_from_its_own_mean() -> None:
    """A sine of 20 % about 1000: half of what is detected is fainter than the reference, whose flux it keeps."""
    mjd = 59000.0 + np.arange(300) * 1.37
    flux = (1000.0 * (1.0 + 0.2 * np.sin(2 * np.pi * mjd / 0.6))).astype(np.float32)
    star = LightCurve(
        mjd, flux, np.full(300, 1.0, np.float32), np.zeros(300, np.float32), np.full(300, R, np.uint8),
        np.zeros(300, np.uint8),
    )  # fmt: skip
    sources, shares = [], []
    for seed in range(40):
        with_source = as_difference(star, np.random.default_rng(seed), has_source=True, style=0)
        without = as_difference(star, np.random.default_rng(seed), has_source=False, style=0)
        assert with_source is not None
        assert without is not None
        np.testing.assert_array_equal(with_source.flux, without.flux)
        assert np.isnan(without.reference_flux).all()
        sources.append(float(with_source.reference_flux[0]))
        shares.append(float(np.mean(with_source.flux > 0)))
    assert np.mean(sources) == pytest.approx(1000.0, abs=40.0)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.12)
    quiet = LightCurve(mjd, np.full(300, 1e3, np.float32), *(getattr(star, n) for n in star.__slots__[2:]))
    assert as_difference(quiet, np.random.default_rng(0)) is None
